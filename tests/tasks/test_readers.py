import json

import datasets
import pandas as pd
import pytest

from compressor.errors import UserError
from compressor.tasks import get_task, readers
from compressor.tasks.schema import DatasetFiles, TaskKeys


def read(path, task_type="text-classification", **options):
    dataset = DatasetFiles(train=path, validation=path, **options)
    return readers.read_file(path, task_type, dataset)


def rejected(path, task_type="text-classification", **options):
    with pytest.raises(UserError) as caught:
        read(path, task_type, **options)
    return str(caught.value)


def test_csv_has_quotes_and_tsv_has_none(write):
    csv = read(write("a.csv", 'text,label\n"one, two\nthree",x\nplain,y\n'))
    assert csv.frame["text"].tolist() == ["one, two\nthree", "plain"]
    assert csv.frame.index.tolist() == [2, 4]  # the lines they start on
    tsv = read(write("a.tsv", 'text\tlabel\n"one\tx\nsay "hi"\ty\n'))
    assert tsv.frame["text"].tolist() == ['"one', 'say "hi"']


def test_a_byte_order_mark_is_no_part_of_the_first_name(write):
    assert "text" in read(write("a.csv", b"\xef\xbb\xbftext,label\na,b\n")).frame.columns


def test_text_that_looks_like_missing_stays_text(write):
    assert read(write("a.csv", "text,label\nNA,null\n")).frame.iloc[0].tolist() == ["NA", "null"]


def test_without_a_header_columns_are_numbers(write):
    table = read(write("a.tsv", "x\ty\nz\tw\n"), header=False)
    assert table.frame[1].tolist() == ["y", "w"]
    with pytest.raises(UserError, match="by number, 0 to 1"):
        table.texts("text")


@pytest.mark.parametrize(
    ("name", "content", "options", "parts"),
    [
        ("a.csv", "text,label\na,b\nc\n", {}, ["line 3", "1 fields where line 1 has 2"]),
        ("a.tsv", "text\tlabel\na\tb\n\nc\td\te\n", {}, ["line 4", "3 fields"]),
        ("a.csv", 'text,label\na,b\n"c,d\n', {}, ["line 3", "quoting: false"]),
        ("a.csv", "text,text\na,b\n", {}, ["'text' twice", "header: false"]),
        ("a.csv", "text,label\n", {}, ["no rows"]),
        ("a.csv", "", {}, ["is empty"]),
        ("a.csv", b"text,label\na,b\ncaf\xe9,b\n", {}, ["line 3", "0xe9", "encoding"]),
        ("a.csv", b"PK\x03\x04\x00\x00\x01", {}, ["binary"]),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', {}, ["line 3", "not JSON"]),
        ("a.jsonl", '[{"text": "a"}]\n', {}, ["line 1", "list", "one object a line"]),
        ("a.parquet", "no parquet", {}, ["no readable parquet"]),
    ],
)
def test_a_broken_file_is_named_with_its_line(write, name, content, options, parts):
    message = rejected(write(name, content), **options)
    assert all(part in message for part in (name, *parts)), message


def test_other_encodings_are_read(write):
    assert (
        read(write("a.csv", "text,label\ncafé,b\n".encode("cp1252")), encoding="cp1252").frame["text"][2]
        == "café"
    )
    assert len(read(write("b.csv", "text,label\na,b\n".encode("utf-16")), encoding="utf-16").frame) == 1


def test_a_missing_file_is_answered_with_the_nearest_name(write):
    path = write("train.tsv", "a\tb\nc\td\n")
    assert "did you mean 'train.tsv'" in rejected(path.replace("train.tsv", "trian.tsv"))
    assert "no folder" in rejected("nowhere/at/all.csv")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"version": "1.1"}, "no list of articles"),
        ({"data": [{"title": "x"}]}, "data[0] has no 'paragraphs'"),
        ({"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1"}]}]}]}, "qas[0] has no 'answers'"),
        ({"data": ["x"]}, "data[0] is not an object"),
    ],
)
def test_json_that_is_not_squad_is_refused(write, content, part):
    assert part in rejected(write("a.json", json.dumps(content)), "question-answering")


def test_parquet_keeps_types_and_class_names(tmp_path):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    rows = {"text": ["a", "b"], "label": [1, 0]}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    assert read(str(path)).class_names == {"label": ["no", "yes"]}
    pd.DataFrame(rows).to_parquet(path)
    assert read(str(path)).class_names == {}


def test_a_folder_of_data_files_is_read_like_a_hub_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        rows = {"text": [f"{split} {n}" for n in range(20)], "label": [n % 2 for n in range(20)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    keys = TaskKeys(type="text-classification", dataset=str(folder))
    task = get_task(keys.type).load(keys, 0)
    assert task.labels == ["no", "yes"]
    assert len(task.examples.validation) == 20  # the test split, there being no other
    before = task.fingerprint(keys)
    (folder / "train.parquet").write_bytes(b"changed")
    assert task.fingerprint(keys) != before


def test_what_keeps_a_hub_data_set_from_loading_is_said(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'squad' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    keys = TaskKeys(type="question-answering", dataset="squad")
    with pytest.raises(UserError, match="cannot load 'squad': Couldn't reach"):
        readers.read_tables(keys)
    with pytest.raises(UserError, match="no folder"):
        readers.read_tables(TaskKeys(type="question-answering", dataset="./nowhere"))


def test_the_commit_of_a_cached_hub_data_set_is_its_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    keys = TaskKeys(type="question-answering", dataset={"hub": "owner/set"})
    assert readers.fingerprint(keys)["revision"] is None
    reference = tmp_path / "datasets--owner--set" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("abc123")
    assert readers.fingerprint(keys)["revision"] == "abc123"


def test_the_fingerprint_of_files_follows_their_content(write):
    path = write("a.csv", "text,label\na,b\n")
    keys = TaskKeys(type="text-classification", dataset={"train": path, "validation": path})
    before = readers.fingerprint(keys)
    assert readers.fingerprint(keys) == before
    write("a.csv", "text,label\na,c\n")
    assert readers.fingerprint(keys) != before

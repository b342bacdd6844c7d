import json

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import UserError
from compressor.tasks import get_task
from compressor.tasks.entities import entities
from compressor.tasks.schema import TaskKeys

ROWS = [
    {"tokens": ["John", "lives", "in", "Paris", "."], "ner_tags": ["B-PER", "O", "O", "B-LOC", "O"]},
    {"tokens": ["John", "Johns", "sleeps"], "ner_tags": ["B-PER", "I-PER", "O"]},
] * 10


@pytest.fixture
def load(write):
    def load(rows=ROWS, **keys):
        path = write("a.jsonl", "\n".join(map(json.dumps, rows)))
        made = TaskKeys(type="token-classification", dataset={"train": path, "validation": path}, **keys)
        return get_task(made.type).load(made, 0)

    return load


def run(task, tokenizer, change=lambda tags: tags):
    """Predictions of a model that finds the tags of the features, changed by `change`."""
    frame = task.examples.validation
    features = task.features(frame, tokenizer)
    eye = np.eye(len(task.labels))
    logits = [eye[change(np.maximum(labels, 0))] for labels in features["labels"]]
    return task.predictions({"logits": logits}, features, frame)


def test_the_first_token_of_a_word_carries_its_tag(load, tokenizer):
    task = load()
    assert task.labels == ["B-LOC", "B-PER", "I-PER", "O"]
    row = task.features(task.examples.validation, tokenizer)[1]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]",
        "john",
        "john",
        "##s",
        "sleeps",
        "[SEP]",
    ]
    assert row["labels"] == [-100, 1, 2, -100, 3, -100]
    assert row["words"] == [-1, 0, 1, -1, 2, -1]


def test_labels_are_padded_with_what_the_loss_ignores(load, tokenizer):
    task = load()
    batch = task.collate(tokenizer)(list(task.features(task.examples.validation, tokenizer).select([0, 1])))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert batch["labels"][1].tolist() == [-100, 1, 2, -100, 3, -100, -100]


def test_the_right_tags_score_one_and_others_less(load, tokenizer):
    task = load()
    assert task.score(run(task, tokenizer)) == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}
    beginnings_only = run(task, tokenizer, lambda tags: np.where(tags == 2, 3, tags))
    scores = task.score(beginnings_only)
    # of 30 entities 20 are found, and 10 that are too short
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == pytest.approx(70 / 80)
    assert beginnings_only["prediction"][1] == ["B-PER", "O", "O"]


def test_words_that_are_cut_off_count_as_outside(load, tokenizer):
    rows = [{"tokens": ["the"] * 20 + ["Paris"], "ner_tags": ["O"] * 20 + ["B-LOC"]}, ROWS[1]] * 10
    task = load(rows, max_length=16)
    found = run(task, tokenizer)
    assert found["prediction"][0][-1] == "O"
    assert task.score(found)["recall"] == 0.5
    assert task.features(task.examples.validation, tokenizer)["truncated"][:2] == [True, False]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, "differ in length"),
        ({"tokens": [], "ner_tags": []}, "'tokens' is empty"),
        ({"tokens": "a b", "ner_tags": ["O", "O"]}, "'tokens' holds no list"),
        ({"tokens": [1], "ner_tags": ["O"]}, "holds no words"),
        ({"tokens": ["a"], "ner_tags": ["B-PERS"]}, "did you mean 'B-PER'"),
        ({"tokens": ["a"]}, "holds no list"),
        ({"tokens": ["a", "b"], "ner_tags": ["O", None]}, "'ner_tags' has no label; give every word one"),
        ({"tokens": ["a", "b"], "ner_tags": ["O", ""]}, "'ner_tags' has no label"),
        ({"tokens": ["a"], "ner_tags": [["O", "B-PER"]]}, "'ner_tags' holds several labels.*every word one"),
    ],
)
def test_a_bad_row_is_named_with_its_line(load, row, problem):
    with pytest.raises(UserError, match=f"line 21: .*{problem}"):
        load([*ROWS, row], labels=["O", "B-PER", "I-PER", "B-LOC"])


def test_a_class_number_that_is_missing_is_no_class(tmp_path):
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "X"])),
        }
    )
    rows = [{"tokens": ["a", "b"], "tags": [0, 1]}, {"tokens": ["a", "b"], "tags": [0, None]}]
    path = str(tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    keys = TaskKeys(type="token-classification", dataset={"train": path, "validation": path})
    with pytest.raises(UserError, match="row 2: 'tags' has no label"):
        get_task(keys.type).load(keys, 0)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-A I-A O", {("A", 1, 3)}),
        ("B-A B-A I-B", {("A", 0, 1), ("A", 1, 2), ("B", 2, 3)}),
        ("I-A I-A O I-A", {("A", 0, 2), ("A", 3, 4)}),
        ("S-A B-A E-A E-A", {("A", 0, 1), ("A", 1, 3), ("A", 3, 4)}),
        ("U-A B-A L-A", {("A", 0, 1), ("A", 1, 3)}),
        ("A A B O", {("A", 0, 2), ("B", 2, 3)}),
        ("O O", set()),
    ],
)
def test_entities_of_all_tagging_schemes(tags, expected):
    assert entities(tags.split()) == expected


@given(st.lists(st.tuples(st.sampled_from(["", "A", "B"]), st.integers(1, 4)), max_size=8), st.booleans())
def test_entities_survive_being_written_as_tags(runs, ends_marked):
    tags, expected = [], set()
    for kind, length in runs:
        if kind:
            expected.add((kind, len(tags), len(tags) + length))
            inside = [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
            if ends_marked:
                inside[-1] = f"S-{kind}" if length == 1 else f"E-{kind}"
            tags += inside
        else:
            tags += ["O"] * length
    assert entities(tags) == expected

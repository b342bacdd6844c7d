"""Data that are refused before the first stage: missing, empty, mislabelled, damaged, or of another task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from compressor.tasks.base import Examples
from compressor.tasks.reference import classification
from tests.cli.refusals import Call, refused

RECIPE = """\
name: tiny
model: {model}
task:
  type: {type}
  dataset: {dataset}
  max_length: 16
{more}
stages:
  - finetune: {{epochs: 1}}
  - export: {{}}
benchmark: {{threads: [1], sequence_lengths: [16]}}
"""
GOOD = "text,label\na cat,good\na dog,bad\nthe dog,bad\n"
ANSWERS = {"text": ["cat"], "answer_start": [2]}
QUESTION = {"id": "q1", "question": "who runs", "context": "a cat runs", "answers": ANSWERS}
TOKENS = {"tokens": ["a", "cat"], "tags": ["O", "B-X"]}

Run = Callable[..., None]


@pytest.fixture
def run(call: Call, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a recipe on these files; it must be refused with these words, leaving nothing."""
    monkeypatch.chdir(tmp_path)

    def refuse(
        files: dict[str, Any],
        *words: str,
        dataset: str = "{train: train.csv, validation: validation.csv}",
        kind: str = "text-classification",
        more: str = "",
    ) -> None:
        for name, content in files.items():
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        keys = {"model": tiny, "dataset": dataset, "type": kind, "more": more}
        Path("recipe.yaml").write_text(RECIPE.format(**keys), encoding="utf-8")
        refused(call, tmp_path, ["run", "recipe.yaml"], *words)

    return refuse


TRAIN = {
    "missing": (None, ["no file train.csv"]),
    "empty": ("", ["train.csv is empty"]),
    "byte order mark alone": (b"\xef\xbb\xbf", ["train.csv is empty"]),
    "only a header": ("text,label\n", ["train.csv holds no rows"]),
    "one row": ("text,label\na cat,good\n", ["every row has the label 'good'"]),
    "one label": (
        "text,label\na,x\nb,x\n",
        ["train.csv: every row has the label 'x'; there is nothing to learn"],
    ),
    "no text column": (
        "words,label\na,x\nb,y\n",
        ["no column with the text: name it in task.columns", "words"],
    ),
    "no label column": (
        "text,lable\na,x\nb,y\n",
        ["no column with the label: name it in task.columns", "lable"],
    ),
    "empty text": ("text,label\na,x\n  ,y\n", ["train.csv line 3: 'text' is empty"]),
    "empty label": (
        "text,label\na,x\nb,\nc,\n",
        [
            "train.csv line 3: 'label' has no label (and 1 more rows); give every row one, or leave the row out"
        ],
    ),
    "text as label": (
        "text,label\n" + "".join(f"a,text {n}\n" for n in range(50)),
        ["'label' has 50 different values in 50 rows; is it the label?", "task.labels"],
    ),
    "missing field": ("text,label\na,x\nb\n", ["train.csv line 3: 1 fields where line 1 has 2", "quoting"]),
    "open quote": ('text,label\na,x\n"b,y\n', ["train.csv line 3", "set task.dataset.quoting: false"]),
    "column twice": ("text,text\na,x\nb,y\n", ["the header names 'text' twice", "header: false"]),
    "Latin-1": (
        b"text,label\ncaf\xe9,x\n",
        ["train.csv line 2: byte 0xe9 is not utf-8", "task.dataset.encoding"],
    ),
    "binary": (b"PK\x03\x04\x00\x00text", ["train.csv holds NUL bytes: it is a binary file"]),
    "UTF-16": (GOOD.encode("utf-16"), ["train.csv holds NUL bytes", "set task.dataset.encoding (for"]),
}


@pytest.mark.parametrize(("content", "words"), TRAIN.values(), ids=list(TRAIN))
def test_training_files(run: Run, content: str | bytes | None, words: list[str]) -> None:
    files = {"validation.csv": GOOD} | ({} if content is None else {"train.csv": content})
    run(files, *words)


VALIDATION = {
    "missing": (None, "no file validation.csv"),
    "empty": ("\n\n", "validation.csv is empty"),
    "other columns": ("text,class\na,good\n", "validation.csv: no column 'label'"),
    "other labels": (
        "text,label\na,good\nb,godo\n",
        "line 3: 'label' holds 'godo', which is not among the labels",
    ),
    "nearest label": ("text,label\nb,godo\n", "(bad, good); did you mean 'good'?"),
}


@pytest.mark.parametrize(("content", "words"), VALIDATION.values(), ids=list(VALIDATION))
def test_validation_files(run: Run, content: str | None, words: str) -> None:
    run({"train.csv": GOOD} | ({} if content is None else {"validation.csv": content}), words)


SETTINGS = {
    "column": ("  columns: {text: txt}", "train.csv: no column 'txt'; did you mean 'text'? (its columns are: text"),
    "labels": ("  labels: [good, fine]", "'label' holds 'bad', which is not among the labels (good, fine)"),
    "metric": ("  metric: pearson", "task.metric pearson: the labels are classes, scored by accuracy, f1"),
    "regression": ("  regression: true", "line 2: 'label' holds 'good', not a number"),
    "limit": ("  limit: {train: 1}", "train has only one row; task.selection takes a part of it"),
}  # fmt: skip


@pytest.mark.parametrize(("more", "words"), SETTINGS.values(), ids=list(SETTINGS))
def test_settings_that_do_not_fit_the_data(run: Run, more: str, words: str) -> None:
    run({"train.csv": GOOD, "validation.csv": GOOD}, words, more=more)


def test_names_that_are_nearly_right_and_folders_that_are_files(run: Run) -> None:
    files = {"train.csv": GOOD, "validation.csv": GOOD}
    run(
        files,
        "no file trian.csv; did you mean 'train.csv'?",
        dataset="{train: trian.csv, validation: train.csv}",
    )
    run(files, "there is no folder gone here", dataset="{train: gone/train.csv, validation: train.csv}")
    run(files, "no file ~nobody-here/a.csv", dataset="{train: ~nobody-here/a.csv, validation: train.csv}")
    Path("folder.csv").mkdir()
    run(files, "folder.csv is a folder, not a file", dataset="{train: folder.csv, validation: train.csv}")


JSON_LINES = {
    "broken": ('{"text": "a", "label": "x"}\n{"text": \n', "train.jsonl line 2: not JSON"),
    "an array": (
        '[\n{"text": "a", "label": "x"}\n]\n',
        "line 1: not JSON (Expecting value); one object a line",
    ),
    "a list a line": ('["a", "x"]\n', "train.jsonl line 1: a JSON list; one object a line is read"),
    "numbers as text": (
        '{"text": 3, "label": "x"}\n{"text": "b", "label": "y"}\n',
        "line 1: 'text' holds no text",
    ),
    "a key missing": ('{"text": "a", "label": "x"}\n{"label": "y"}\n', "train.jsonl line 2: 'text' is empty"),
    "deep": ("[" * 100_000 + "\n", "train.jsonl line 1: too long a number or too deep a nesting"),
    "half a character": ('{"text": "\\ud83d", "label": "x"}\n', "line 1: half of a character"),
}


@pytest.mark.parametrize(("content", "words"), JSON_LINES.values(), ids=list(JSON_LINES))
def test_json_lines(run: Run, content: str, words: str) -> None:
    run({"train.jsonl": content, "v.csv": GOOD}, words, dataset="{train: train.jsonl, validation: v.csv}")


def squad(**changes: Any) -> dict[str, Any]:
    question = QUESTION | changes
    context = question.pop("context")
    return {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}]}


QUESTIONS = {
    "no context": ({"data": [{"paragraphs": [{"qas": []}]}]}, "data[0].paragraphs[0] has no 'context'"),
    "no data": ({"version": "1.1"}, "is not in SQuAD's format: no list of articles under 'data'"),
    "a list": ([], "is not in SQuAD's format: no list of articles"),
    "text for an object": ({"data": ["x"]}, "data[0] is not an object"),
    "no questions": ({"data": []}, "train.json holds no rows"),
    "answer elsewhere": (
        squad(answers=[{"text": "dog", "answer_start": 2}]),
        "question q1: the context does not hold the answer 'dog' at its answer_start",
    ),
    "start off by one": (
        squad(answers=[{"text": "cat", "answer_start": 3}]),
        "does not hold the answer 'cat'",
    ),
    "start behind the end": (
        squad(answers=[{"text": "cat", "answer_start": 99}]),
        "does not hold the answer 'cat'",
    ),
    "empty answer": (squad(answers=[{"text": "", "answer_start": 0}]), "does not hold the answer ''"),
    "start missing": (squad(answers=[{"text": "cat"}]), "qas[0] has no 'answer_start'"),
    "start no number": (
        squad(answers=[{"text": "cat", "answer_start": "two"}]),
        "'answers' is not {text: [...]",
    ),
    "empty question": (squad(question=" ", answers=[]), "question 1: 'question' is empty"),
    "empty context": (squad(context="", answers=[]), "question 1: 'context' is empty"),
    "one context": (squad(answers=[]), "train has only one context; task.selection"),
}


@pytest.mark.parametrize(("content", "words"), QUESTIONS.values(), ids=list(QUESTIONS))
def test_question_answering_files(run: Run, content: Any, words: str) -> None:
    dataset = "{train: train.json, validation: validation.json}"
    good = json.dumps(squad(answers=[{"text": "cat", "answer_start": 2}]))
    files = {"train.json": json.dumps(content), "validation.json": good}
    run(files, words, dataset=dataset, kind="question-answering", more="  stride: 4")


def test_ids_of_questions_are_unique(run: Run) -> None:
    rows = "".join(json.dumps(QUESTION) + "\n" for _ in range(2))
    files = {"train.jsonl": rows}
    dataset = "{train: train.jsonl, validation: train.jsonl}"
    run(
        files,
        "line 2: the id 'q1' was there before",
        dataset=dataset,
        kind="question-answering",
        more="  stride: 4",
    )


TOKEN_ROWS = {
    "another length": (TOKENS | {"tags": ["O"]}, "line 1: 'tokens' and 'tags' differ in length"),
    "no list": (TOKENS | {"tokens": "a cat"}, "line 1: 'tokens' holds no list"),
    "no words": (TOKENS | {"tokens": [1, 2]}, "line 1: 'tokens' holds no words"),
    "empty": ({"tokens": [], "tags": []}, "line 1: 'tokens' is empty"),
    "no tags": ({"tokens": ["a"]}, "no column with the tags: name it in task.columns"),
}


@pytest.mark.parametrize(("row", "words"), TOKEN_ROWS.values(), ids=list(TOKEN_ROWS))
def test_token_classification_files(run: Run, row: dict[str, Any], words: str) -> None:
    files = {"train.jsonl": json.dumps(row) + "\n", "v.jsonl": json.dumps(TOKENS) + "\n"}
    dataset = "{train: train.jsonl, validation: v.jsonl}"
    run(files, words, dataset=dataset, kind="token-classification")


def test_damaged_parquet(run: Run) -> None:
    files = {"train.parquet": "PAR1 no parquet", "v.csv": GOOD}
    run(
        files,
        "train.parquet is no readable parquet file",
        dataset="{train: train.parquet, validation: v.csv}",
    )


def test_a_hub_data_set_without_a_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    run({}, "task.dataset: cannot load 'nobody/nothing'", dataset="nobody/nothing")


def test_a_folder_in_the_place_of_a_hub_data_set(run: Run) -> None:
    Path("squad").mkdir()
    run({}, "'squad' is a folder here: write ./squad if it is the data set", dataset="squad")
    run({}, "there is no folder ./gone", dataset="./gone")
    run({}, "cannot load './squad'", dataset="./squad")


def test_texts_without_words_have_no_bag_of_words() -> None:
    frame = pd.DataFrame({"text": ["!!!", "?", "..."], "label": [0, 1, 1]})
    assert classification(Examples(frame, frame, frame)) == {"largest_class": 2 / 3}

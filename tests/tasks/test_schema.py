import subprocess
import sys

import pytest
from pydantic import ValidationError

from compressor.tasks.schema import DatasetFiles, DatasetHub, TaskKeys

FILES = {"train": "a.csv", "validation": "b.csv"}


def keys(**changes):
    return TaskKeys(**{"type": "text-classification", "dataset": FILES, **changes})


def test_defaults_depend_on_the_type():
    assert (keys().max_length, keys().stride) == (128, None)
    squad = keys(type="question-answering", dataset="squad")
    assert (squad.max_length, squad.stride) == (384, 128)
    assert squad.dataset == "squad"
    assert keys(type="question-answering", dataset="squad", max_length=90).stride == 30


def test_a_stored_recipe_loads_again():
    for made in (
        keys(),
        keys(type="question-answering", dataset={"hub": "squad"}, max_length=200, stride=50),
    ):
        assert TaskKeys(**made.model_dump(mode="json")) == made


def test_kinds_of_data_sets_are_told_apart_by_their_keys():
    assert isinstance(keys().dataset, DatasetFiles)
    assert isinstance(keys(dataset={"hub": "nyu-mll/glue", "config": "sst2"}).dataset, DatasetHub)


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        ({"type": "text-clasification"}, ("type",), "text-classification"),
        ({"type": ["text-classification"]}, ("type",), "text-classification"),
        ({"dataset": 3}, ("dataset", "files"), "dictionary"),
        ({"dataset": "data/train.csv"}, ("dataset", "hub id"), "is a file, not a hub id"),
        ({"dataset": {"train": "a.csv"}}, ("dataset", "files", "validation"), "required"),
        ({"dataset": {"hub": "a", "conf": "b"}}, ("dataset", "hub data", "conf"), ""),
        ({"dataset": {**FILES, "encoding": "utf9"}}, ("dataset", "files", "encoding"), "no encoding"),
        ({"dataset": {**FILES, "train": "a.doc"}}, ("dataset",), "format of 'a.doc'"),
        ({"dataset": {**FILES, "format": "squad"}}, ("dataset",), "cannot be read from squad"),
        (
            {"dataset": {**FILES, "format": "jsonl", "quoting": True}},
            ("dataset", "files"),
            "'quoting' is for csv",
        ),
        ({"type": "question-answering"}, ("dataset",), "cannot be read from csv"),
        ({"type": "token-classification", "dataset": {"builtin": "docstrings"}}, ("dataset",), "builtin"),
        ({"metric": "acuracy"}, ("metric",), "did you mean 'accuracy'"),
        ({"metric": "exact_match"}, ("metric",), "no metric of text-classification"),
        ({"columns": {"txt": "a"}}, ("columns",), "did you mean 'text'"),
        ({"stride": 3}, ("stride",), "for question-answering"),
        (
            {"type": "question-answering", "dataset": "squad", "stride": 300},
            ("stride",),
            "half of max_length",
        ),
        ({"pooling": "cls"}, ("pooling",), "for feature-extraction"),
        ({"normalize": False}, ("normalize",), "for feature-extraction"),
        ({"type": "feature-extraction", "pooling": "max"}, ("pooling",), "'mean' or 'cls'"),
        ({"type": "feature-extraction", "labels": ["a", "b"]}, ("labels",), "has no labels"),
        ({"labels": ["a", "a"]}, ("labels",), "'a' is there twice"),
        ({"labels": ["a"]}, ("labels",), "2"),
        ({"labels": ["a", "b"], "regression": True}, ("regression",), "has no labels"),
        ({"metric": "f1", "regression": True}, ("regression",), "f1 is no metric of regression"),
        ({"dataset": {**FILES, "header": False}}, (), "by number"),
        ({"dataset": {**FILES, "header": False}, "columns": {"text": 0, "label": "x"}}, (), "by number"),
        ({"selection": {"fraction": 1.0}}, ("selection", "fraction"), "less than 1"),
        ({"limit": {"train": 0}}, ("limit", "train"), "greater than 0"),
    ],
)
def test_a_mistake_is_named_where_it_is(changes, place, message):
    with pytest.raises(ValidationError) as caught:
        keys(**changes)
    errors = {error["loc"]: error["msg"] for error in caught.value.errors()}
    assert place in errors
    assert message in errors[place]


def test_importing_the_schema_is_cheap():
    heavy = "{'torch', 'transformers', 'datasets', 'pandas', 'numpy', 'sklearn'}"
    code = f"import sys, compressor.tasks.schema, compressor.tasks; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

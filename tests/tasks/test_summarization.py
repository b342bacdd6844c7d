"""Summaries: reading texts and their references, ROUGE, and what a model writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.tasks import get_task
from compressor.tasks.schema import TaskKeys
from compressor.tasks.summarization import rouge
from tests.zoo import tiny_config, tiny_model

ROWS = [
    {"source": ["A cat sat.", "It slept."], "target": ["A cat slept.", "It sat and slept."]},
    {"source": ["The dog ran."], "target": ["A dog ran."]},
    {"source": ["Two birds sang all day."], "target": ["Birds sang."]},
]


def load(folder: Path, rows: list[dict[str, Any]] = ROWS, **keys: Any) -> Any:
    for name in ("train", "validation"):
        text = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    made = TaskKeys(**{"type": "summarization", "dataset": files, **keys})
    return get_task("summarization").load(made, 0)


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizerFast:
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator([json.dumps(ROWS)] * 3, vocab_size=120, show_progress=False)
    trained.save_model(str(tmp_path))
    return BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=64)


def test_sentences_are_joined_and_references_kept_apart(tmp_path: Path) -> None:
    frame = load(tmp_path).examples.validation
    assert frame["text"].tolist()[0] == "A cat sat. It slept."
    assert frame["references"].tolist()[0] == ["A cat slept.", "It sat and slept."]
    named = [{"a": "One two.", "b": "One."} for _ in range(3)]
    frame = load(tmp_path, named, columns={"text": "a", "summary": "b"}).examples.validation
    assert frame["references"].tolist()[0] == ["One."]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"source": [], "target": ["a"]}, "line 4: 'source' is empty"),
        ({"source": ["a"], "target": [" "]}, "line 4: 'target' is empty"),
        ({"source": ["a"], "target": [7]}, "'target' holds no text; a summary is a text or a list of texts"),
    ],
)
def test_rows_without_text_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path, [*ROWS, row])


def test_unknown_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="columns with text and summary"):
        load(tmp_path, [{"x": "a", "y": "b"}] * 3)


def test_the_nearest_reference_counts_metric_by_metric() -> None:
    """By hand: one of two bigrams, two of three words."""
    scores = rouge("the cat slept", ["a dog ran", "the cat sat"])
    assert scores["rouge1"] == pytest.approx(2 / 3)
    assert scores["rouge2"] == pytest.approx(1 / 2)
    assert scores["rougeL"] == pytest.approx(2 / 3)
    assert rouge("Cats. Dogs.", ["Dogs. Cats."])["rougeLsum"] == 1.0
    assert rouge("Cats. Dogs.", ["Dogs. Cats."])["rougeL"] == pytest.approx(1 / 2)
    assert rouge("", ["a"])["rougeL"] == 0.0


def test_features_have_the_first_reference_as_labels_and_prefixes_count(
    tmp_path: Path, tokenizer: BertTokenizerFast
) -> None:
    task = load(tmp_path, prefix="say: ", max_target_length=5, max_length=8)
    features = task.features(task.examples.validation, tokenizer)
    assert tokenizer.decode(features[0]["input_ids"]).startswith("[CLS] say :")
    assert len(features[0]["labels"]) == 5
    assert features[0]["labels"][0] == tokenizer.cls_token_id
    assert features["truncated"][0]
    batch = task.collate(tokenizer)(list(features))
    assert batch["labels"].shape[0] == 3
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    padded = [len(row["labels"]) for row in features]
    assert (batch["labels"] == -100).sum() == sum(batch["labels"].shape[1] - n for n in padded)


def test_predictions_are_texts_with_their_scores(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    task = load(tmp_path, max_length=32)
    frame = task.examples.validation
    features = task.features(frame, tokenizer)
    written = [
        np.array([*tokenizer(row[-1])["input_ids"], 0, 0], dtype=np.float32) for row in frame["references"]
    ]
    table = task.predictions({"sequences": written}, features, frame)
    assert table["prediction"].tolist()[1] == "a dog ran."
    assert task.primary == "rougeL"
    assert task.score(table) == dict.fromkeys(("rougeL", "rouge1", "rouge2", "rougeLsum"), 1.0)
    assert task.agreement(table, table) == 1.0
    table.to_parquet(tmp_path / "rows.parquet")
    again = pd.read_parquet(tmp_path / "rows.parquet")
    assert task.scorer(again, "rouge2")(np.array([0, 0, 1])) == 1.0
    assert 0 < task.reference_points()["first sentence of the text"] < 1


def test_how_a_model_writes_is_the_recipe_s_and_the_model_s(tmp_path: Path) -> None:
    task = load(tmp_path, generation={"max_tokens": 9, "beams": 2})
    config = tiny_config("bart", forced_bos_token_id=0)
    settings = task.settings(config)
    assert (settings.max_tokens, settings.beams, settings.first, settings.end, settings.forced) == (
        9,
        2,
        2,
        2,
        0,
    )
    config.decoder_start_token_id = None
    with pytest.raises(UserError, match="lacks decoder_start_token_id"):
        task.settings(config)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"generation": {"max_tokens": 4, "min_tokens": 5}}, "min_tokens 5 is more than max_tokens 4"),
        ({"labels": ["a", "b"]}, "summarization has no labels"),
        ({"metric": "rouge3"}, "did you mean 'rouge"),
        ({"type": "text-classification", "prefix": "a"}, "prefix is for summarization"),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, Any], words: str) -> None:
    files = {"train": "a.jsonl", "validation": "b.jsonl"}
    with pytest.raises(ValidationError, match=words):
        TaskKeys(**{"type": "summarization", "dataset": files, **keys})


def test_a_first_token_that_is_forced_survives_saving(tmp_path: Path) -> None:
    """Transformers moves it out of config.json, and out of the model's config, when a model is saved."""
    model = tiny_model("bart", forced_bos_token_id=0)
    checkpoint.save(model, tmp_path / "one")
    again = checkpoint.load(tmp_path / "one")
    again.config.save_pretrained(tmp_path / "exported")
    checkpoint.save(again, tmp_path / "two")
    for name in ("one", "exported", "two"):
        assert checkpoint.read_config(tmp_path / name).forced_bos_token_id == 0
    assert checkpoint.load(tmp_path / "two").config.forced_bos_token_id == 0

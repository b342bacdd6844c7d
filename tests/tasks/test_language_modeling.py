"""A running text as a task: rows, segments, vocabularies and metrics."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import UserError
from compressor.models.source import TrainTokenizer
from compressor.stages.vocabulary import train_vocabulary
from compressor.tasks import get_task
from compressor.tasks.language_modeling import LONGEST, LanguageModeling, start_of
from compressor.tasks.schema import TaskKeys

TEXT = " the cat sat \n the dog sat on the <unk> mat \n\n \n = title = \n the end \n"


def load(folder: Path, train: str = TEXT, validation: str = TEXT, **keys: Any) -> LanguageModeling:
    for name, text in (("train", train), ("validation", validation)):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    dataset = {name: str(folder / f"{name}.txt") for name in ("train", "validation")}
    found = TaskKeys(type="language-modeling", dataset=dataset, **({"max_length": 8} | keys))
    task = get_task("language-modeling").load(found, seed=0)
    assert isinstance(task, LanguageModeling)
    return task


def vocabulary(kind: str, text: str = TEXT, **keys: Any) -> Any:
    return train_vocabulary(TrainTokenizer(train=kind, **keys), [text])


def scored(task: LanguageModeling, tokenizer: Any, losses: Any) -> Any:
    """Predictions where the token at each place costs what `losses(places)` says."""
    frame = task.examples.validation
    features = task.features(frame, tokenizer)
    starts = np.cumsum([0, *(len(row["labels"]) for row in features)])
    outputs = {"losses": [losses(np.arange(a, b)) for a, b in pairwise(starts)]}
    return task.predictions(outputs, features, frame)


def test_rows_are_lines_with_the_empty_ones_after_them(tmp_path: Path) -> None:
    frame = load(tmp_path).examples.validation
    assert "".join(frame["text"]) == TEXT
    assert frame["text"].tolist() == [
        " the cat sat \n",
        " the dog sat on the <unk> mat \n\n \n",
        " = title = \n",
        " the end \n",
    ]
    assert frame["id"].tolist() == ["1", "2", "5", "6"]


def test_a_corpus_of_one_line_is_read_in_pieces_cut_before_spaces(tmp_path: Path) -> None:
    text = "word and more " * 3000 + "\n"
    frame = load(tmp_path, validation=text).examples.validation
    assert "".join(frame["text"]) == text
    assert frame["text"].str.len().max() <= LONGEST
    assert all(piece.startswith(" ") for piece in frame["text"][1:])
    assert frame["id"].tolist()[:2] == ["1", "1.1"]


def test_selection_is_the_end_of_the_training_text_and_limits_its_beginning(tmp_path: Path) -> None:
    lines = "".join(f"line {number:04d}\n" for number in range(100))
    task = load(tmp_path, train=lines, limit={"train": 50, "validation": 2})
    examples = task.examples
    assert "".join(examples.train["text"]) + "".join(examples.selection["text"]) == lines[: 50 * 10]
    assert len(examples.selection) == 5
    assert len(examples.validation) == 2


@pytest.mark.parametrize("kind", ["word", "bpe", "character"])
def test_every_token_of_the_text_is_a_label_once_and_comes_after_the_start(kind: str, tmp_path: Path) -> None:
    task, tokenizer = load(tmp_path), vocabulary(kind, vocab_size=300)
    features = task.features(task.examples.validation, tokenizer)
    labels = [token for row in features for token in row["labels"]]
    inputs = [token for row in features for token in row["input_ids"]]
    assert inputs == [start_of(tokenizer), *labels[:-1]]
    assert labels == tokenizer.encode(TEXT, add_special_tokens=False)
    assert {len(row["input_ids"]) for row in list(features)[:-1]} == {8}


def test_words_end_lines_with_a_token_and_characters_decode_to_the_text() -> None:
    words, characters = vocabulary("word"), vocabulary("character")
    tokens = words.convert_ids_to_tokens(words.encode(TEXT, add_special_tokens=False))
    assert " ".join(tokens).split() == TEXT.replace("\n", " </s> ").split()
    assert tokens.count("</s>") == TEXT.count("\n")
    assert tokens.count("<unk>") == 1
    assert characters.decode(characters.encode(TEXT)) == TEXT
    assert len(characters.encode(TEXT)) == len(TEXT)


@pytest.mark.parametrize("kind", ["word", "bpe", "character"])
def test_ids_rise_as_tokens_get_rarer(kind: str) -> None:
    tokenizer = vocabulary(kind, vocab_size=280 if kind == "bpe" else 12)
    counts = np.bincount(tokenizer.encode(TEXT, add_special_tokens=False), minlength=len(tokenizer))
    assert (np.diff(counts) <= 0).all()
    assert len(tokenizer) <= 280


def test_byte_pairs_know_every_text_and_give_it_back() -> None:
    tokenizer = vocabulary("bpe", vocab_size=300)
    for text in (TEXT, "Zürich \U0001f40d\n\n x"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_metrics_are_means_over_the_whole_stream(tmp_path: Path) -> None:
    task, tokenizer = load(tmp_path), vocabulary("word")
    rows = scored(task, tokenizer, lambda at: np.full(len(at), 0.5))
    total = 0.5 * rows["tokens"].sum()
    scores = task.score(rows)
    assert rows["tokens"].sum() == len(tokenizer.encode(TEXT)) == len(TEXT.split()) + TEXT.count("\n")
    assert rows["characters"].sum() == len(TEXT)
    assert scores["perplexity"] == pytest.approx(math.exp(0.5))
    assert scores["word_perplexity"] == pytest.approx(math.exp(0.5))
    assert scores["bits_per_character"] == pytest.approx(total / math.log(2) / len(TEXT))
    assert scores["bits_per_byte"] == scores["bits_per_character"]
    assert not any(task.higher_is_better(name) for name in scores)


def test_losses_belong_to_the_line_of_their_token(tmp_path: Path) -> None:
    task, tokenizer = load(tmp_path), vocabulary("word")
    rows = scored(task, tokenizer, lambda at: at.astype(float))
    ends = np.cumsum(rows["tokens"])
    expected = [sum(range(end - count, end)) for end, count in zip(ends, rows["tokens"], strict=True)]
    assert rows["loss"].tolist() == expected


def test_agreement_is_one_for_equal_losses_and_the_ratio_of_probabilities_else(tmp_path: Path) -> None:
    task, tokenizer = load(tmp_path), vocabulary("word")
    one, other = (scored(task, tokenizer, lambda at, c=cost: np.full(len(at), c)) for cost in (1.0, 1.1))
    assert task.agreement(one, one) == 1
    assert task.agreement(one, other) == pytest.approx(math.exp(-0.1))


def test_a_text_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"validation\.txt.*(holds no text|is empty)"):
        load(tmp_path, validation="\n\n \n")


def test_a_memory_is_carried_from_segment_to_segment_in_order(tmp_path: Path) -> None:
    task, tokenizer = load(tmp_path), vocabulary("word")
    features = task.features(task.examples.validation, tokenizer)

    def run(inputs: Any) -> dict[str, np.ndarray]:
        before = inputs.get("memory", np.zeros(1))
        return {"losses": before + np.zeros(inputs["labels"].shape), "memory": before + 1}

    outputs = task.outputs(run, features, tokenizer, lambda *_: None, 32, "")
    assert [set(losses.tolist()) for losses in outputs["losses"]] == [{n} for n in range(len(features))]

"""The tokenizer that goes through a run: what its model reads, no more, and no fixed lengths in what is saved."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from compressor.benchmark.schema import BenchmarkKeys
from compressor.models.source import NewModel, TrainTokenizer
from compressor.schema import Distill
from compressor.stages.base import Data, Work, open_tokenizer
from compressor.stages.context import TaskContext
from compressor.stages.open import OpenModel, make_tokenizer
from compressor.stages.release import GateKeys
from compressor.stages.teacher import Teacher
from compressor.tasks.schema import TaskKeys
from compressor.tasks.text_classification import TextClassification
from tests.zoo import CONFIGS, tiny_config, tiny_model

TEXT = "a cat"
LONG = "a cat " * 100
TIED = ["ab", "cd", "ef", "gh", "ij", "kl"]
WITHOUT_TYPES: list[dict[str, Any]] = [
    {"model_type": "distilbert", "dim": 32, "n_heads": 2, "hidden_dim": 32, "n_layers": 1},
    {
        "model_type": "roberta",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "type_vocab_size": 1,
    },
]


def source(folder: Path, family: str, **settings: Any) -> Path:
    """A model folder with a tokenizer of BERT's kind and these settings."""
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters])}
    inner = BertWordPieceTokenizer(vocab=vocabulary)._tokenizer
    BertTokenizerFast(tokenizer_object=inner, model_max_length=64, **settings).save_pretrained(folder)
    tiny_config(family).save_pretrained(folder)
    return folder


def fixed_lengths(folder: Path) -> None:
    """As sentence-transformers ships them: every text is cut at, and padded to, 32 tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(32)
    tokenizer.save(str(folder / "tokenizer.json"))


def work(folder: Path, model: Any) -> Work:
    """The first stage's, on a handful of pairs."""
    rows = [{"sentence1": TEXT, "sentence2": "the dog", "label": n % 2} for n in range(8)]
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    keys = TaskKeys(
        type="text-classification", dataset={"train": str(path), "validation": str(path)}, max_length=16
    )
    made = folder / "model"
    made.mkdir()
    return Work(
        model,
        Data(keys, 0),
        0,
        made,
        made,
        folder / "scratch",
        folder,
        folder.joinpath,
        lambda *_: None,
        GateKeys(),
        BenchmarkKeys(),
    )


def test_fixed_lengths_of_the_source_do_not_reach_what_is_saved(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "bert")
    fixed_lengths(folder)
    assert len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT)) == 32
    open_tokenizer(folder, TextClassification).save_pretrained(tmp_path / "saved")
    served = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert len(served.encode(TEXT)) < 8
    assert len(served.encode(LONG)) > 300


def test_the_first_stage_frees_them_too(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "bert")
    AutoModelForSequenceClassification.from_config(tiny_config("bert")).save_pretrained(folder)
    fixed_lengths(folder)
    first = work(tmp_path, str(folder))
    OpenModel().run(first)
    saved = json.loads((first.folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert (saved["padding"], saved["truncation"]) == (None, None)


@pytest.mark.parametrize("family", [name for name in CONFIGS if not name.endswith("-wide")])
@pytest.mark.parametrize("names", [["input_ids", "token_type_ids", "attention_mask"], ["input_ids"]])
def test_it_makes_the_inputs_that_the_model_reads(tmp_path: Path, family: str, names: list[str]) -> None:
    folder = source(tmp_path, family, model_input_names=names)
    made = open_tokenizer(folder, TextClassification)(TEXT, "the dog", return_tensors="pt")
    assert ("token_type_ids" in made) == (family in ("bert", "electra", "xlnet", "albert"))
    assert "attention_mask" in made
    AutoModelForSequenceClassification.from_config(tiny_config(family))(**made)


def test_a_tokenizer_is_trained_to_the_same_vocabulary_every_time(tmp_path: Path) -> None:
    """Two merges that are equally frequent come in the same order, and letters get the same numbers."""
    found = []
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        first = work(folder, NewModel(config=WITHOUT_TYPES[0], tokenizer=TrainTokenizer(vocab_size=200)))
        rows = [{"text": f"{one}{other} {one}!", "label": 0} for one in TIED for other in TIED]
        first.data.task = SimpleNamespace(examples=SimpleNamespace(train=pd.DataFrame(rows)))  # type: ignore[misc]
        found.append(make_tokenizer(first).get_vocab())
    assert all(vocabulary == found[0] for vocabulary in found[1:])
    assert found[0]["[PAD]"] == 0
    assert "##!" not in found[0]


@pytest.mark.parametrize("config", WITHOUT_TYPES, ids=lambda config: config["model_type"])
def test_pairs_train_in_families_without_token_types(tmp_path: Path, config: dict[str, Any]) -> None:
    first = work(tmp_path, NewModel(config=config))
    OpenModel().run(first)
    model = AutoModelForSequenceClassification.from_pretrained(first.folder)
    batch = first.data.task.collate(first.tokenizer())(list(first.features("train")))
    assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize(("family", "side"), [("bert", "right"), ("xlnet", "left")])
@pytest.mark.parametrize("given", ["left", "right"])
def test_padding_goes_where_the_family_expects_it(tmp_path: Path, family: str, side: str, given: str) -> None:
    folder = source(tmp_path, family, padding_side=given)
    assert open_tokenizer(folder, TextClassification).padding_side == side


def test_a_tokenizer_made_for_xlnet_puts_cls_last(tmp_path: Path) -> None:
    sizes = {"model_type": "xlnet", "d_model": 32, "n_head": 2, "d_inner": 32, "n_layer": 1}
    first = work(tmp_path, NewModel(config=sizes))
    OpenModel().run(first)
    tokenizer = first.tokenizer()
    for pair, types in ((None, [0, 2]), ("the dog", [0, 1, 2])):
        encoded = tokenizer(TEXT, pair)
        words = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        assert words[-2:] == ["[SEP]", "[CLS]"]
        assert words.count("[CLS]") == 1
        assert sorted(set(encoded["token_type_ids"])) == types
        assert encoded["token_type_ids"][-1] == 2


def test_beside_no_model_that_is_known_it_stays_as_it_is(tmp_path: Path) -> None:
    folder = source(tmp_path, "bert", padding_side="left")
    (folder / "config.json").unlink()
    assert open_tokenizer(folder, TextClassification).padding_side == "left"


def test_a_teacher_reads_inputs_that_its_student_lacks(tmp_path: Path) -> None:
    """A BERT that teaches a DistilBERT sees which text of a pair is which."""
    first = work(tmp_path, NewModel(config=WITHOUT_TYPES[0]))
    OpenModel().run(first)
    teacher = tiny_model("bert", vocab_size=len(first.tokenizer()))
    teacher.save_pretrained(tmp_path / "teacher")
    first.tokenizer().save_pretrained(tmp_path / "teacher")
    found = Teacher(first, Distill(teacher="teacher")).outputs(first.features("train"))["logits"]
    tokenizer = open_tokenizer(tmp_path / "teacher", TextClassification)
    inputs = tokenizer(TEXT, "the dog", return_tensors="pt")
    assert inputs["token_type_ids"].any()
    with torch.no_grad():
        np.testing.assert_allclose(found[0], teacher(**inputs).logits[0].numpy(), atol=1e-5)
        del inputs["token_type_ids"]
        assert (teacher(**inputs).logits[0] - torch.tensor(found[0])).abs().max() > 1e-3


def test_a_metric_that_is_no_number_scores_below_all_others(tmp_path: Path) -> None:
    """A constant prediction has no correlation; the search that meets it must be able to store that."""
    first = work(tmp_path, NewModel(config=WITHOUT_TYPES[0]))
    context = TaskContext(first)
    context.evaluate = lambda *_: float("nan")  # type: ignore[method-assign]
    score = context.score(tiny_model("bert"))
    assert score < -1e6
    json.dumps(score, allow_nan=False)

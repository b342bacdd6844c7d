"""A tiny classifier as checkpoint and as exported model, a recipe for its task, and the program to call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from compressor.cli import main
from compressor.models import checkpoint
from compressor.onnx.export import export_onnx
from tests.zoo import VOCABULARY, tiny_model

WORDS = "the a cat dog runs sleeps bad good very movie"
LABELS = ["bad", "good"]
TEXTS = [
    "the cat runs",
    "a very good movie",
    "the dog sleeps a very bad movie",
    "good",
    "a bad dog",
    "the cat",
]
RECIPE = """
name: tiny
model: {model}
task:
  type: text-classification
  dataset: {{train: {folder}/train.csv, validation: {folder}/validation.csv}}
  labels: [bad, good]
  max_length: 16
stages:
  - finetune: {{id: teacher, epochs: 1}}
  - prune: {{method: movement, from: model, epochs: 1, distill: {{teacher: teacher}}}}
  - slice: {{}}
  - export: {{}}
"""


class Said(NamedTuple):
    """How a call of the program ended, and what it printed, each line with its words one space apart."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[str]:
        return [" ".join(line.split()) for line in self.out.splitlines()]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Calls the program with these arguments on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Said:
        code = main([str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizerFast:
    """A few words and all letters, fewer than the tiny models' vocabulary."""
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split() + letters)]
    assert len(words) <= VOCABULARY
    inner = BertWordPieceTokenizer(vocab={word: number for number, word in enumerate(words)})
    return BertTokenizerFast(tokenizer_object=inner._tokenizer, model_max_length=64)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    """A checkpoint folder with a head for the two labels."""
    folder = tmp_path_factory.mktemp("tiny")
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: n for n, name in enumerate(LABELS)}}
    checkpoint.save(tiny_model("bert", **names), folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny: Path, tokenizer: BertTokenizerFast) -> Path:
    """The same model as `export` leaves it."""
    folder = tmp_path_factory.mktemp("exported")
    model = checkpoint.load(tiny)
    export_onnx(model, "text-classification", 18, folder / "model.onnx")
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Path:
    """A recipe for the tiny model on a handful of texts."""
    for split, times in (("train", 10), ("validation", 1)):
        rows = [f"{text},{LABELS[n % 2]}" for n, text in enumerate(TEXTS * times)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny, folder=tmp_path), encoding="utf-8")
    return path


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder with results; keyword arguments change what stands in them."""

    def make(folder: str, **changes: object) -> Path:
        cell = {"provider": "cpu", "threads": 2, "batch_size": 1, "sequence_length": 128, "part": "forward"}
        metric = {"name": "accuracy", "value": 0.9, "higher_is_better": True, "examples": 872}
        dense = {"metric": metric, "latency": [cell | {"p50_ms": 10.0}], "file_bytes": 91_000_000}
        small = {
            "metric": metric | {"value": 0.89},
            "latency": [cell | {"p50_ms": 5.0}],
            "speedup": [cell | {"value": 2.0, "ci95": [1.9, 2.1], "noisy": False}],
            "metric_drop": {"value": 0.01, "ci95": [0.0, 0.02]},
        }
        results = {
            "schema_version": 1,
            "name": "tiny",
            "recipe": {},
            "baseline": "dense_fp32",
            "final": "pruned_fp32",
            "variants": {"dense_fp32": dense, "pruned_fp32": small},
            "gates": [],
        }
        (tmp_path / folder).mkdir()
        text = json.dumps(results | changes)
        (tmp_path / folder / "results.json").write_text(text, encoding="utf-8")
        return tmp_path / folder

    return make

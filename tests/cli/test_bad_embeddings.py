"""What a recipe for embeddings is refused for before its first stage."""

import json
from pathlib import Path

import pytest

from compressor.models import checkpoint
from tests.cli.refusals import Call, refused
from tests.zoo import tiny_model

RECIPE = """\
name: tiny
model: ./model
task:
  type: feature-extraction
  dataset: {train: data.csv, validation: data.csv}
  max_length: 16
stages:
  - prune: {method: layer-drop, drop: 1}
  - slice: {}
  - finetune: {epochs: 1, distill: {teacher: model}}
  - export: {}
benchmark: {threads: [1], sequence_lengths: [16]}
"""
DISTILL = "distill: {teacher: model}"
MODULES = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
CLS_POOLING = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


@pytest.fixture
def folder(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain encoder at ./model and three texts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text\na cat\na dog\nthe dog\n", encoding="utf-8")
    model = checkpoint.load(tiny).base_model
    model.save_pretrained(tmp_path / "model")
    for file in tiny.glob("*token*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


def refuse(call: Call, folder: Path, recipe: str, *words: str) -> None:
    Path("recipe.yaml").write_text(recipe, encoding="utf-8")
    refused(call, folder.parent, ["run", "recipe.yaml"], *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (f", {DISTILL}", "", ("stages.finetune.distill", "teacher's embeddings", "{teacher: model}")),
        (
            "er: model}",
            "er: model, alpha: 0.5}",
            ("stages.finetune.distill.alpha", "is for tasks with labels"),
        ),
        ("method: layer-drop, drop: 1", "method: greedy, drop: 1", ("stages.prune.distill", "no labels")),
        ("./model", "{config: {model_type: bert}}", ("keeps the embeddings of a model that exists",)),
        ("er: model}", "er: {model: ./wide}}", ("gives vectors of 96 numbers, the model of",)),
    ],
)
def test_a_recipe_that_cannot_work(
    call: Call, folder: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    wide = tiny_model("bert", "feature-extraction", hidden_size=96)
    checkpoint.save(wide, folder.parent / "wide")
    assert old in RECIPE
    refuse(call, folder, RECIPE.replace(old, new), *words)


def test_a_model_that_says_it_pools_otherwise(call: Call, folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps(MODULES), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(CLS_POOLING), encoding="utf-8")
    refuse(call, folder, RECIPE, "pooling cls, normalize false", "set task.pooling and task.normalize")

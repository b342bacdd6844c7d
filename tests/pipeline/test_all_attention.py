"""The All-attention Transformer from text to an artifact: trained, pruned head by head, sliced, trained, exported."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from compressor.models import checkpoint
from compressor.recipe import load_recipe
from tests.pipeline.tiny import finish, start

RECIPE = """
name: stream
model:
  config: {model_type: FAMILY, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, memory_length: 12,
           WIDTH: 24, cutoffs: [8], divisor: 2, word_dropout: 0.0}
  tokenizer: {train: word, vocab_size: 100}
task:
  type: language-modeling
  dataset: {train: DATA/train.txt, validation: DATA/validation.txt}
  max_length: 12
seed: 3
stages:
  - finetune: {id: dense, epochs: 4, learning_rate: 5.0e-3, batch_size: 8}
  - prune: {method: head-gates, penalty: 0.1, epochs: 3, learning_rate: 1.0e-3, gate_learning_rate: 0.05,
            batch_size: 8}
  - slice: {}
  - finetune: {epochs: 1, learning_rate: 1.0e-3, batch_size: 8}
  - export: {}
benchmark: {threads: [1], sequence_lengths: [12], seconds: 0.05, processes: 3}
"""


def write_text_recipe(folder: Path, family: str) -> Path:
    """Sentences whose verb comes back at their end: a little grammar to learn."""
    dice = random.Random(0)
    verbs, names = ["sees", "hears", "finds", "takes"], ["ann", "bob", "cat", "dog", "elk"]
    for name, lines in (("train", 1500), ("validation", 150)):
        text = []
        for _ in range(lines):
            verb = dice.choice(verbs)
            text.append(
                f"{dice.choice(names)} {verb} the {dice.choice(names)} and {dice.choice(names)} {verb} it"
            )
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    width = "persistent_vectors" if family == "all-attention" else "intermediate_size"
    recipe = folder / "stream.yaml"
    made = RECIPE.replace("FAMILY", family).replace("WIDTH", width).replace("DATA", str(folder))
    recipe.write_text(made, encoding="utf-8")
    return recipe


@pytest.mark.parametrize("family", ["all-attention", pytest.param("transformer-xl", marks=pytest.mark.slow)])
def test_the_whole_chain(family: str, tmp_path: Path) -> None:
    recipe, output = write_text_recipe(tmp_path, family), tmp_path / "run"
    finish(start(recipe, output))
    results: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    dense, pruned = results["variants"]["dense_fp32"], results["variants"]["pruned_fp32"]
    assert dense["metric"]["name"] == "perplexity"
    assert dense["metric"]["value"] < 5
    assert pruned["metric"]["value"] < 6
    assert pruned["parity"]["max_abs_error"] < 1e-4
    info = json.loads((output / "prune" / "stage.json").read_text(encoding="utf-8"))["info"]
    kept = info["members"]["pruned"]["heads"]
    assert 0 < kept < 8
    assert info["method"]["scale_outputs"] is True
    small = checkpoint.load(output / "finetune-2")
    sizes = [layer["attention"] for layer in pruned["structure"]["layers"]]
    assert sum(len(sub["kept"]) for sub in sizes if isinstance(sub, dict)) == kept
    assert small.num_parameters() == pruned["parameters"]
    if family == "all-attention":
        head = 5 * 32 * 8 + 2 * 24 * 8 + 2 * 8
        assert dense["body_parameters"] - pruned["body_parameters"] == (8 - kept) * head
    assert "done before, kept" in finish(start(recipe, output))


@pytest.mark.parametrize("name", ["wikitext103_all_attention_heads", "ptb_all_attention_heads"])
def test_the_shipped_recipes_make_their_models(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml").recipe
    config = checkpoint.peek(recipe.model)
    assert config.model_type == "all-attention"
    assert config.memory_length == recipe.task.max_length

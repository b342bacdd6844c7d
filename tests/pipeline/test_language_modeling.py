"""Language models from text to an artifact that streams: GPT-2 and the All-attention Transformer."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import transformers

from compressor.errors import GateError
from compressor.models.heads import class_named
from compressor.project import Project
from compressor.recipe import load_recipe
from compressor.stages.evaluate import evaluate_onnx
from compressor.stages.package import verify
from compressor.stages.sample import replay
from compressor.views.evaluate import evaluate_torch
from tests.pipeline.served import serve
from tests.pipeline.test_all_attention import write_text_recipe
from tests.pipeline.tiny import finish, start

GPT2 = "{model_type: gpt2, n_embd: 32, n_layer: 3, n_head: 4, n_inner: 48, n_positions: 24}"
STAGES = """
  - finetune: {id: dense, epochs: 2, learning_rate: 5.0e-3, batch_size: 16}
  - prune: PRUNE
  - slice: {}
  - finetune: {epochs: 1, learning_rate: 2.0e-3, batch_size: 16, evaluate_every: 0.5}
  - export: EXPORT
  - quantize: {mode: dynamic}
"""
HEADER = """
name: gpt2
model: {config: CONFIG, tokenizer: {train: KIND, vocab_size: 300}}
task:
  type: language-modeling
  dataset: {train: DATA/train.txt, validation: DATA/validation.txt}
  max_length: 12
  metric: METRIC
  limit: {train: 600, validation: 60}
seed: 3
stages:STAGES
benchmark: {threads: [1], sequence_lengths: [12], seconds: 0.05, processes: 3}
gates: {max_metric_drop_relative: 2.0, on_noise: warn}
"""


def gpt2_recipe(
    folder: Path, prune: str, export: str = "{}", kind: str = "bpe", metric: str = "perplexity"
) -> Path:
    write_text_recipe(folder, "all-attention")
    recipe = folder / "gpt2.yaml"
    made = HEADER.replace("STAGES", STAGES).replace("PRUNE", prune).replace("EXPORT", export)
    made = made.replace("CONFIG", GPT2).replace("KIND", kind).replace("METRIC", metric)
    recipe.write_text(made.replace("DATA", str(folder)), encoding="utf-8")
    return recipe


def results_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return found


def assert_it_serves(recipe: Path, output: Path, variant: str = "pruned_fp32") -> None:
    """The client scores the validation text as the run did, and continues it, the same with the same seed."""
    artifact, task = output / "artifacts" / variant, load_recipe(recipe).recipe.task
    lines = (recipe.parent / "validation.txt").read_text(encoding="utf-8").splitlines()
    text = "\n".join(lines[: task.limit.validation]) + "\n"
    rows = [
        {"text": text},
        *({"text": "ann sees the", "tokens": 30, "temperature": 1.0, "seed": s} for s in (1, 1, 2)),
    ]
    scored, one, again, other = serve(artifact, [*rows])
    stored = pd.read_parquet(output / "measurements" / variant / "predictions.parquet")
    assert scored["tokens"] == stored["tokens"].sum()
    assert scored["loss"] == pytest.approx(stored["loss"].sum(), rel=1e-5)
    metrics = results_of(output)["variants"][variant]["metrics"]
    assert scored["perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-5)
    assert one == again != other
    assert one["continuation"]
    for wrong in ("20", 0):
        with pytest.raises(AssertionError, match="how many more to write"):  # of a client that ended
            serve(artifact, [{"text": "ann sees the", "tokens": wrong}])


def assert_its_sample_tells(artifact: Path, altered: Path) -> None:
    """Of every graph of the artifact whether it is another one."""
    assert replay(artifact) < 1e-6
    for name in ("model.onnx", "scores.onnx"):
        shutil.copytree(artifact, altered, dirs_exist_ok=True)
        model = onnx.load(artifact / name)
        norm = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("ln_f.bias"))
        norm.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(norm) + 0.1, norm.name))
        onnx.save(model, altered / name)
        assert replay(altered) > 1e-3
    shutil.copytree(artifact, altered, dirs_exist_ok=True)
    (altered / "parts.json").unlink()  # it may be a hard link
    (altered / "parts.json").write_text("[", encoding="utf-8")
    with pytest.raises(GateError, match=r"parts\.json is not the file that was released"):
        verify(altered)


@pytest.mark.parametrize(
    ("prune", "export"),
    [
        ("{method: heads, keep: 0.5}", "{memory: cache}"),
        ("{method: layer-drop, strategy: top, drop: 1}", "{}"),
    ],
)
def test_gpt2(prune: str, export: str, tmp_path: Path) -> None:
    recipe, output = gpt2_recipe(tmp_path, prune, export), tmp_path / "run"
    printed = finish(start(recipe, output))
    results = results_of(output)
    dense, pruned = (results["variants"][name] for name in ("dense_fp32", "pruned_fp32"))
    assert dense["metric"] | {"value": 0} == {
        "name": "perplexity", "value": 0, "higher_is_better": False, "examples": 60,
    }  # fmt: skip
    drop = pruned["metric_drop"]
    assert drop["value"] == pytest.approx(pruned["metric"]["value"] - dense["metric"]["value"])
    assert drop["ci95"][0] < drop["value"] < drop["ci95"][1]
    assert {row["part"] for row in pruned["latency"]} == {"segment", "prompt", "step"}
    assert max(v["parity"]["max_abs_error"] for n, v in results["variants"].items() if "fp32" in n) < 1e-4
    assert 0.5 < results["variants"]["pruned_int8"]["parity"]["agreement"] < 1
    assert "perplexity" in printed
    assert "%" not in next(line for line in printed.splitlines() if line.startswith("pruned_fp32"))
    for variant in results["variants"]:
        assert_it_serves(recipe, output, variant)
    assert_its_sample_tells(output / "artifacts" / "pruned_fp32", tmp_path / "altered")
    if "layer-drop" in prune:
        plain = transformers.AutoModelForCausalLM.from_pretrained(output / "finetune-2")
        assert len(plain.transformer.h) == 2
    assert "done before, kept" in finish(start(recipe, output))


@pytest.mark.parametrize("memory", ["hidden", "cache"])
def test_all_attention_streams_as_pytorch_does(memory: str, tmp_path: Path) -> None:
    recipe, output = write_text_recipe(tmp_path, "all-attention"), tmp_path / "run"
    finish(
        start(recipe, output, "--set", "task.limit.validation=60", "--set", f"stages.export.memory={memory}")
    )
    assert_it_serves(load_limited(recipe), output)
    manifest = json.loads(
        (output / "artifacts" / "pruned_fp32" / "manifest.json").read_text(encoding="utf-8")
    )
    assert set(manifest["graphs"]) == {"model.onnx", "scores.onnx"}
    name = "memory" if memory == "hidden" else "memory.0"
    assert manifest["state"][name] == {"output": f"{name}_out", "length": 0, "value": 0.0, "limit": None}
    assert {part["name"] for part in manifest["parts"]} == {"segment", "prompt", "step"}
    by_torch, by_onnx = (evaluated(recipe, output / name) for name in ("finetune-2", "artifacts/pruned_fp32"))
    np.testing.assert_allclose(by_torch, by_onnx, rtol=1e-4)


def load_limited(recipe: Path) -> Path:
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(
        text.replace("  max_length", "  limit: {validation: 60}\n  max_length"), encoding="utf-8"
    )
    return recipe


def evaluated(recipe: Path, model: Path) -> list[float]:
    """All metrics of a checkpoint by PyTorch, or of an artifact by onnxruntime."""
    data = Project(load_recipe(recipe), recipe.parent / "none").data
    graph = (model / "model.onnx").is_file()
    rows = evaluate_onnx(data, model, silent)[1] if graph else evaluate_torch(data, model, silent)
    return list(data.task.score(rows).values())


def silent(_what: str, _share: float) -> None:
    """No progress."""


def test_characters_are_scored_in_bits(tmp_path: Path) -> None:
    recipe = gpt2_recipe(
        tmp_path,
        "{method: layer-drop, strategy: top, drop: 1}",
        kind="character",
        metric="bits_per_character",
    )
    output = tmp_path / "run"
    finish(start(recipe, output, "--set", "task.limit.train=100"))
    variant = results_of(output)["variants"]["dense_fp32"]
    assert variant["metric"]["name"] == "bits_per_character"
    assert variant["metric"]["value"] == pytest.approx(np.log2(variant["metrics"]["perplexity"]), rel=1e-6)
    assert 0 < variant["metric"]["value"] < np.log2(60)


def test_the_shipped_recipe_makes_sense() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "gpt2_head_gates.yaml").recipe
    assert recipe.benchmark.parts == ["segment", "prompt", "step"]
    assert class_named("AutoModelForLanguageModeling")

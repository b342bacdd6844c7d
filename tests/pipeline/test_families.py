"""Every family from a recipe to an artifact: layers dropped, trained again, exported, served."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers

from compressor.cli import main
from tests.pipeline.served import serve
from tests.pipeline.tiny import write_recipe
from tests.zoo import CONFIGS, CUTTABLE

RECIPE = """
name: tiny
model:
  config: CONFIG
  tokenizer: {train: wordpiece, vocab_size: 300}
task:
  type: text-classification
  dataset: {train: DATA/train.csv, validation: DATA/validation.csv}
  max_length: 16
stages:
  - finetune: {id: teacher, epochs: 6, learning_rate: 3.0e-3, batch_size: 16}
  - prune: PRUNE
  - slice: {}
  - finetune: {epochs: 2, learning_rate: 1.0e-3, batch_size: 16, distill: {teacher: teacher}}
  - export: {}
  - quantize: {}
benchmark: {threads: [1], sequence_lengths: [16], seconds: 0.02, processes: 3}
gates: {min_agreement: 0.0}
"""
TOP = "{method: layer-drop, strategy: top, drop: 1}"
METHODS = {
    "greedy": "{method: greedy, drop: 1, epochs: 1, learning_rate: 1.0e-3, batch_size: 16}",
    "heads": "{method: heads, keep: 0.5}",
    "movement": "{method: movement, attention_block: [8, 8], epochs: 1}",
}


def config_of(family: str) -> dict[str, Any]:
    """Two layers of 32, four heads."""
    if family == "distilbert":
        return {"model_type": family, "dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 2}
    if family == "xlnet":
        return {"model_type": family, "d_model": 32, "n_head": 4, "d_inner": 48, "n_layer": 2}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    wide = {"embedding_size": 16} if family in ("albert", "electra") else {}
    return {"model_type": family, "max_position_embeddings": 32, **sizes, **wide}


def recipe(folder: Path, family: str, prune: str = TOP) -> Path:
    path = write_recipe(folder)
    text = RECIPE.replace("CONFIG", json.dumps(config_of(family))).replace("PRUNE", prune)
    path.write_text(text.replace("DATA", str(folder)), encoding="utf-8")
    return path


def run(folder: Path, family: str, prune: str = TOP) -> dict[str, Any]:
    """The results of a run, all of whose artifacts verify."""
    assert main(["run", str(recipe(folder, family, prune)), "--output", str(folder / "run")]) == 0
    found: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    for variant in found["variants"]:
        assert main(["verify", str(folder / "run" / "artifacts" / variant)]) == 0
    return found


@pytest.mark.parametrize("family", [name for name in CONFIGS if not name.endswith("-wide")])
def test_from_a_recipe_to_an_artifact(family: str, tmp_path: Path) -> None:
    variants = run(tmp_path, family)["variants"]
    dense, pruned = variants["dense_fp32"], variants["pruned_fp32"]
    assert dense["metric"]["value"] > 0.8
    assert pruned["parity"]["max_abs_error"] < 1e-4
    assert len(pruned["structure"]["layers"]) == 1
    assert pruned["sliced_density"] == (0.5 if family in CUTTABLE else 1.0)
    assert (pruned["parameters"] < dense["parameters"]) == (family in CUTTABLE)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "finetune-2")
    assert plain.config.num_hidden_layers == 1
    assert_client_agrees(tmp_path / "run", "pruned_fp32")


def assert_client_agrees(run_folder: Path, variant: str) -> None:
    """What the client answers is what the run stored, in batches with padding too."""
    rows = pd.read_csv(run_folder.parent / "validation.csv")[["text"]].to_dict("records")
    stored = pd.read_parquet(run_folder / "measurements" / variant / "predictions.parquet")["prediction"]
    alone, together = (serve(run_folder / "artifacts" / variant, rows, "--batch", n) for n in ("1", "7"))
    assert [row["label"] for row in alone] == list(stored)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(list(one["scores"].values()), list(other["scores"].values()), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "method"), [("albert", "greedy"), *(("xlnet", method) for method in METHODS)]
)
def test_other_methods_where_the_layout_is_another(family: str, method: str, tmp_path: Path) -> None:
    pruned = run(tmp_path, family, METHODS[method])["variants"]["pruned_fp32"]
    assert pruned["parity"]["max_abs_error"] < 1e-4
    assert len(pruned["structure"]["layers"]) == (1 if method == "greedy" else 2)


def test_an_artifact_of_xlnet_says_how_it_is_fed_and_loads_with_optimum(tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification

    run(tmp_path, "xlnet")
    artifact = tmp_path / "run" / "artifacts" / "pruned_fp32"
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["padding_side"] == "left"
    assert list(manifest["inputs"]) == ["input_ids", "attention_mask", "token_type_ids"]
    assert list(manifest["outputs"]) == ["logits"]
    triton = (artifact / "serve" / "config.pbtxt").read_text(encoding="utf-8")
    assert re.findall(r'name: "(\w+)"', triton)[-4:] == [*manifest["inputs"], "logits"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(artifact)
    encoded = tokenizer("red", "one two")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"])[-1] == "[CLS]"
    assert encoded["token_type_ids"][-1] == 2
    config = json.loads((artifact / "config.json").read_text(encoding="utf-8"))
    assert not config["use_mems_eval"]
    assert not config["use_mems_train"]
    model = ORTModelForSequenceClassification.from_pretrained(artifact)
    texts = ["red and green paint", "one two three"]
    answers = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.softmax(-1).tolist()
    served = serve(artifact, [{"text": text} for text in texts])
    np.testing.assert_allclose(answers, [list(row["scores"].values()) for row in served], atol=1e-5)


@pytest.mark.parametrize("method", ["heads", "movement"])
def test_what_cannot_be_pruned_is_refused_with_those_that_can(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, "albert", METHODS[method])
    assert main(["run", str(path), "--output", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"error: {method}: the layers of albert share their weights" in said
    assert "(layer-drop, greedy)" in said
    assert "one of bert, roberta, xlm-roberta, camembert, electra, distilbert, xlnet" in said
    assert not (tmp_path / "run").exists()

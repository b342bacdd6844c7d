"""Encoder-decoders from a recipe to an artifact that writes: pruned, sliced, exported, scored, timed, served."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from compressor.cli import main
from compressor.models import checkpoint
from compressor.stages.base import open_tokenizer
from compressor.tasks.summarization import Summarization, text_of
from tests.pipeline.served import serve

RECIPE = """
name: tiny
model:
  config: CONFIG
  tokenizer: {train: wordpiece, vocab_size: 200}
task:
  type: summarization
  dataset: {train: DATA/train.jsonl, validation: DATA/validation.jsonl}
  max_length: 24
  max_target_length: 8
  generation: {max_tokens: 8}
stages:
  - finetune: {id: teacher, epochs: 12, learning_rate: 5.0e-3, batch_size: 16}
  - prune: PRUNE
  - slice: {}
  - finetune: {epochs: 4, learning_rate: 2.0e-3, batch_size: 16, fill: 0.01, distill: {teacher: teacher}}
  - export: {}
  - quantize: {}
benchmark: {threads: [1], sequence_lengths: [16], seconds: 0.02, processes: 3}
gates: {min_agreement: 0.0, max_latency_ms: {value: 1.0e+4, part: next_token}}
"""
BART = {
    "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 8,
    "d_ff": 48, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
MOVEMENT = """{method: movement, from: teacher, attention_block: [8, 8], regularization: 5, score_learning_rate: 0.2,
            epochs: 4, learning_rate: 1.0e-3, batch_size: 16, warmup: 0.1, cooldown: 0.3,
            distill: {teacher: teacher}}"""
COLOURS = ["red", "green", "blue", "white", "black"]
THINGS = ["car", "house", "tree", "boat"]
FILLER = ["and", "the", "of", "one", "two", "three", "many"]


def write_data(folder: Path, rows: int = 240) -> None:
    """Among other words a colour and a thing; the summary names them, in two ways."""
    dice = random.Random(0)
    for name, count in (("train", rows), ("validation", 50)):
        lines = []
        for _ in range(count):
            colour, thing = dice.choice(COLOURS), dice.choice(THINGS)
            words = [*dice.choices(FILLER, k=dice.randint(4, 9)), colour, thing]
            dice.shuffle(words)
            summaries = [f"{colour} {thing}", f"a {thing} in {colour}"]
            lines.append(json.dumps({"source": [" ".join(words) + "."], "target": summaries}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(folder: Path, config: dict[str, Any], prune: str) -> dict[str, Any]:
    write_data(folder)
    text = RECIPE.replace("CONFIG", json.dumps(config)).replace("PRUNE", prune).replace("DATA", str(folder))
    (folder / "tiny.yaml").write_text(text, encoding="utf-8")
    assert main(["--debug", "run", str(folder / "tiny.yaml"), "--output", str(folder / "run")]) == 0
    found: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    for variant in found["variants"]:
        assert main(["verify", str(folder / "run" / "artifacts" / variant)]) == 0
    return found


@pytest.mark.parametrize(
    ("config", "prune"),
    [
        (BART, MOVEMENT),
        (T5, MOVEMENT),
        (BART, "{method: layer-drop, drop: {encoder: 1, decoder: 1}}"),
        (T5, "{method: heads, keep: 0.5}"),
    ],
    ids=["bart-movement", "t5-movement", "bart-layers", "t5-heads"],
)
def test_from_a_recipe_to_an_artifact_that_writes(config: dict[str, Any], prune: str, tmp_path: Path) -> None:
    found = run(tmp_path, config, prune)
    variants = found["variants"]
    dense, pruned = variants["dense_fp32"], variants["pruned_fp32"]
    assert dense["metric"]["name"] == "rougeL"
    assert dense["metric"]["value"] > 0.6
    assert pruned["parity"]["max_abs_error"] < 1e-4
    assert pruned["sliced_density"] < 1
    parts = ["generation", "encoder", "first_token", "next_token"]
    for variant in variants.values():
        assert [row["part"] for row in variant["latency"]] == [*parts, "generation"]
    rows = {row["part"]: row["p50_ms"] for row in dense["latency"][:4]}
    assert rows["generation"] > rows["next_token"]
    artifact = tmp_path / "run" / "artifacts" / "pruned_fp32"
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    roles = {name: about["role"] for name, about in manifest["files"].items()}
    assert [roles[name] for name in ("encoder.onnx", "decoder.onnx", "parts.json")] == [
        "graph",
        "graph",
        "parts",
    ]
    texts = [{"text": " ".join(row["source"])} for row in _rows(tmp_path / "validation.jsonl")]
    stored = pd.read_parquet(tmp_path / "run" / "measurements" / "pruned_fp32" / "predictions.parquet")
    for batch in ("1", "7"):
        answers = serve(artifact, texts, "--batch", batch)
        assert [row["summary"] for row in answers] == list(stored["prediction"])
    assert list(stored["prediction"]) == by_transformers(tmp_path / "run" / "finetune-2", texts)


def by_transformers(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    """What transformers' own greedy generation writes with the sliced model in PyTorch, without a cache."""
    model, tokenizer = checkpoint.load(folder), open_tokenizer(folder, Summarization)
    found = []
    for row in rows:
        inputs = tokenizer([row["text"]], truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1, use_cache=False)
        found.append(text_of(tokenizer.backend_tokenizer, ids[0].tolist()))
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_method_for_encoders_is_refused_before_the_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, 40)
    prune = "{method: greedy, drop: 1, epochs: 1, learning_rate: 1.0e-3, batch_size: 16}"
    text = RECIPE.replace("CONFIG", json.dumps(BART)).replace("PRUNE", prune).replace("DATA", str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    assert main(["run", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "greedy is for encoders, a bart model has a decoder too; take one of movement, layer-drop, heads"
        in said
    )
    assert np.all([not (tmp_path / "run" / "model").exists()])

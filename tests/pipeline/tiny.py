"""A recipe that runs through every stage in seconds."""

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

RECIPE = """
name: tiny
model:
  config: {model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48,
           max_position_embeddings: 32, hidden_dropout_prob: 0.1}
  tokenizer: {train: wordpiece, vocab_size: 300}
task:
  type: text-classification
  dataset: {train: DATA/train.csv, validation: DATA/validation.csv}
  max_length: 16
seed: 3
stages:
  - finetune: {id: teacher, epochs: 4, learning_rate: 3.0e-3, batch_size: 16}
  - prune: {method: movement, from: teacher, attention_block: [8, 8], regularization: 5, score_learning_rate: 0.2,
            epochs: 4, learning_rate: 1.0e-3, batch_size: 16, warmup: 0.1, cooldown: 0.3, distill: {teacher: teacher}}
  - slice: {}
  - finetune: {epochs: 2, learning_rate: 1.0e-3, batch_size: 16, fill: 0.01, distill: {teacher: teacher}}
  - export: {}
  - quantize: {mode: dynamic}
benchmark: {threads: [1], sequence_lengths: [16], seconds: 0.05, processes: 3}
gates: {max_metric_drop: 0.5}
"""
STAGES = [
    "model", "teacher", "prune", "slice", "finetune-2",
    "export/dense", "export/pruned", "quantize/dense", "quantize/pruned",
]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def write_recipe(folder: Path, rows: int = 320) -> Path:
    """The recipe and its data: which of two sets of words a text is made of."""
    words = (["red", "green", "blue", "colour", "paint"], ["one", "two", "three", "number", "count"])
    dice = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", rows), ("validation", 60)):
        lines = ["text,label"]
        for _ in range(count):
            label = dice.randint(0, 1)
            text = " ".join(
                dice.choice(words[label] + ["and", "the", "of"]) for _ in range(dice.randint(4, 10))
            )
            lines.append(f"{text},{('colours', 'numbers')[label]}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.replace("DATA", str(folder)), encoding="utf-8")
    return recipe


def start(recipe: Path, output: Path, *options: str) -> "subprocess.Popen[str]":
    """A run in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "compressor",
        "--debug",
        "run",
        str(recipe),
        "--output",
        str(output),
        *options,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """What a run printed; it must have succeeded."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def kill(process: "subprocess.Popen[str]") -> None:
    """`kill -9` of the run and everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def outcome(output: Path) -> dict[str, Any]:
    """What must not depend on how often a run was killed: structure, weights and metrics."""
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return {
        name: {
            "structure": variant["structure"],
            "metrics": variant["metrics"],
            "weights": (output / "artifacts" / name / "model.onnx").read_bytes(),
        }
        for name, variant in results["variants"].items()
    }

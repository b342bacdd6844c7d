"""A whole run of every kind of task but plain classification, which `test_run` has."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from compressor.cli import main
from tests.pipeline.served import serve

RECIPE = """
name: tiny
model:
  config: {config}
  tokenizer: {{train: wordpiece, vocab_size: 300}}
task:
  type: {type}
  dataset: {{train: {folder}/train.jsonl, validation: {folder}/validation.jsonl}}
  max_length: 32
stages:
  - finetune: {{id: teacher, epochs: {epochs}, learning_rate: 3.0e-3, batch_size: 16}}
  - prune: {{method: movement, attention_block: [8, 8], regularization: 5, score_learning_rate: 0.2, epochs: 2,
            learning_rate: 1.0e-3, distill: {{teacher: teacher}}}}
  - slice: {{}}
  - export: {{}}
  - quantize: {{}}
benchmark: {{threads: [1], sequence_lengths: [16], seconds: 0.02, processes: 3}}
gates: {{min_agreement: 0.0}}
"""
BERT = """{model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
           max_position_embeddings: 40}"""
XLNET = "{model_type: xlnet, d_model: 32, n_layer: 1, n_head: 2, d_inner: 32}"  # padded on the left
NAMES, OTHERS = ["ada", "bo", "cy"], ["runs", "and", "sees", "the", "red", "dog"]
Row = dict[str, Any]


def words(dice: random.Random) -> list[str]:
    return dice.choices(NAMES + OTHERS, k=dice.randint(4, 9))


def tagged(dice: random.Random) -> Row:
    tokens = words(dice)
    return {"tokens": tokens, "tags": ["B-PER" if token in NAMES else "O" for token in tokens]}


def scored(dice: random.Random) -> Row:
    tokens = words(dice)
    return {
        "text": " ".join(tokens),
        "label": 5 * sum(token in NAMES for token in tokens) / len(tokens) + 0.01,
    }


def asked(dice: random.Random) -> Row:
    before, name = dice.choices(OTHERS, k=dice.randint(4, 40)), dice.choice(NAMES)  # up to two windows
    after = dice.choices(OTHERS, k=2)
    at = len(" ".join(before)) + 1
    answers = {"text": [name], "answer_start": [at]}
    return {"question": "who runs", "context": " ".join([*before, name, *after]), "answers": answers}


def run(
    folder: Path, config: str, kind: str, row: Callable[[random.Random], Row], epochs: int
) -> dict[str, Any]:
    """The results of a run on rows made by `row`; every artifact of it must verify."""
    dice = random.Random(1)
    for split, count in (("train", 240), ("validation", 40)):
        lines = [json.dumps(row(dice)) + "\n" for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(config=config, type=kind, folder=folder, epochs=epochs), encoding="utf-8")
    assert main(["run", str(recipe), "--output", str(folder / "run")]) == 0
    results: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    for variant in results["variants"]:
        assert main(["verify", str(folder / "run" / "artifacts" / variant)]) == 0
    return results


TASKS = {
    "token-classification": (BERT, "token-classification", tagged, 2, "f1"),
    "regression": (BERT, "text-classification", scored, 12, "pearson"),
    "question-answering": (BERT, "question-answering", asked, 4, "f1"),
    "token-classification-xlnet": (XLNET, "token-classification", tagged, 2, "f1"),
    "question-answering-xlnet": (XLNET, "question-answering", asked, 4, "f1"),
}


@pytest.mark.parametrize(("config", "kind", "row", "epochs", "metric"), TASKS.values(), ids=list(TASKS))
def test_a_whole_run(
    tmp_path: Path, config: str, kind: str, row: Callable[[random.Random], Row], epochs: int, metric: str
) -> None:
    results = run(tmp_path, config, kind, row, epochs)
    dense = results["variants"]["dense_fp32"]["metric"]
    assert dense["name"] == metric
    assert dense["value"] > 0.8
    assert results["variants"]["pruned_fp32"]["sliced_density"] < 1
    assert results["variants"]["dense_int8"]["parity"]["agreement"] > 0.8
    assert 0 < results["variants"]["pruned_int8"]["parity"]["agreement"] <= 1
    for variant in results["variants"]:
        assert_client_agrees(tmp_path, variant)
    assert_the_card_s_example_runs(tmp_path / "run" / "artifact")


def assert_the_card_s_example_runs(artifact: Path) -> None:
    card = (artifact / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import sys.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(len(answers))"],
        cwd=artifact,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1\n", done.stderr


ANSWERS = {"token-classification": "labels", "text-classification": "score", "question-answering": "answer"}


def assert_client_agrees(folder: Path, variant: str) -> None:
    """The client answers what the run's own evaluation stored, a text at a time and, in fp32, in batches."""
    rows = [
        json.loads(line) for line in (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    stored = pd.read_parquet(folder / "run" / "measurements" / variant / "predictions.parquet")["prediction"]
    artifact = folder / "run" / "artifacts" / variant
    key = ANSWERS[json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["task"]]
    for options in ([], ["--batch", "7"]) if variant.endswith("fp32") else ([],):
        served = [row[key] for row in serve(artifact, rows, *options)]
        if key == "score":
            np.testing.assert_allclose(served, stored, atol=1e-5)
        else:
            assert served == [list(one) if isinstance(one, np.ndarray) else one for one in stored]

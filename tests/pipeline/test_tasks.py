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
from transformers import AutoTokenizer, BertTokenizerFast

from compressor.cli import main
from tests.pipeline.served import serve
from tests.zoo import plain_encoder

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
        write_lines(folder / f"{split}.jsonl", [row(dice) for _ in range(count)])
    return run_recipe(folder, RECIPE.format(config=config, type=kind, folder=folder, epochs=epochs))


def write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_recipe(folder: Path, text: str) -> dict[str, Any]:
    """The results; every artifact must verify."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
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
    assert (
        results["variants"]["pruned_fp32"]["sliced_density"] < 1 or config == XLNET
    )  # which holds on longer
    assert results["variants"]["dense_int8"]["parity"]["agreement"] > 0.8
    assert 0 < results["variants"]["pruned_int8"]["parity"]["agreement"] <= 1
    for variant in results["variants"]:
        assert_client_agrees(tmp_path, variant)
    assert_the_card_s_example_runs(tmp_path / "run" / "artifact")


EMBEDDING = """
name: tiny-embedding
model: {folder}/dense
task:
  type: feature-extraction
  dataset: {{train: {folder}/train.jsonl, validation: {folder}/validation.jsonl}}
  max_length: 24
stages:
  - prune: {{{prune}}}
  - slice: {{}}
  - finetune: {{epochs: 2, learning_rate: 1.0e-3, batch_size: 16, distill: {{teacher: model}}}}
  - export: {{}}
  - quantize: {{{quantize}}}
benchmark: {{threads: [1], sequence_lengths: [16], seconds: 0.02, processes: 3}}
gates: {{min_agreement: 0.9}}
"""
DISTILLED = "learning_rate: 1.0e-3, distill: {teacher: model}"
MOVEMENT = f"method: movement, attention_block: [12, 12], score_learning_rate: 0.2, epochs: 2, {DISTILLED}"
PRUNE = {
    "movement": (MOVEMENT, "mode: dynamic"),
    "layer-drop": ("method: layer-drop, strategy: metric, drop: 1", "mode: static"),
    "heads": ("method: heads, keep: 0.5", "mode: auto"),
    "greedy": (f"method: greedy, drop: 1, epochs: 1, {DISTILLED}", "mode: fp16"),
}


def compared(dice: random.Random) -> Row:
    one, other = words(dice), words(dice)
    same = len(set(one) & set(other)) / len(set(one) | set(other))
    return {"sentence1": " ".join(one), "sentence2": " ".join(other), "score": 5 * same + 0.01}


def encoder(folder: Path) -> None:
    """A random encoder: its vectors are near those of a bag of words, so they have something to keep."""
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NAMES, *OTHERS]
    (folder / "vocab.txt").write_text("\n".join(known), encoding="utf-8")
    plain_encoder("bert").save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)


@pytest.mark.parametrize("method", PRUNE)
def test_embeddings(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs with scores train and validate in the first two, texts alone train in the others."""
    (tmp_path / "dense").mkdir()
    encoder(tmp_path / "dense")
    dice = random.Random(1)
    train = [compared(dice) for _ in range(120)]
    if method in ("heads", "greedy"):
        train = [{"text": row["sentence1"]} for row in train]
    write_lines(tmp_path / "train.jsonl", train)
    write_lines(tmp_path / "validation.jsonl", [compared(dice) for _ in range(40)])
    prune, quantize = PRUNE[method]
    text = EMBEDDING.format(folder=tmp_path, prune=prune, quantize=quantize)
    results = run_recipe(tmp_path, text)
    dense, final = (results["variants"][results[name]] for name in ("baseline", "final"))
    assert dense["metric"]["name"] == "spearman"
    assert dense["metric"]["value"] > 0.3
    assert dense["metrics"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert 0.5 < final["metrics"]["cosine"] < 1
    low, high = final["metric_drop"]["ci95"]
    assert low <= final["metric_drop"]["value"] <= high
    assert low < high
    for variant in results["variants"]:
        assert_client_agrees(tmp_path, variant)
    assert_the_card_s_example_runs(tmp_path / "run" / "artifact")
    if method == "movement":
        artifact = tmp_path / "run" / "artifact"
        assert_optimum_agrees(artifact)
        for model, shown in ((artifact, final["metrics"]), (tmp_path / "dense", dense["metrics"])):
            assert main(["evaluate", str(model), "--recipe", str(tmp_path / "recipe.yaml")]) == 0
            said = capsys.readouterr().out
            assert all(f"{100 * value:.2f} %" in said for value in shown.values())


def assert_optimum_agrees(artifact: Path) -> None:
    from optimum.onnxruntime import ORTModelForCustomTasks

    model = ORTModelForCustomTasks.from_pretrained(artifact)
    inputs = AutoTokenizer.from_pretrained(artifact)("ada runs", return_tensors="pt")
    (answer,) = serve(artifact, [{"text": "ada runs"}])
    np.testing.assert_allclose(model(**inputs).sentence_embedding[0].numpy(), answer["embedding"], atol=1e-6)


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


ANSWERS = {
    "token-classification": {"labels": "prediction"},
    "text-classification": {"score": "prediction"},
    "question-answering": {"answer": "prediction"},
    "feature-extraction": {
        "embedding": "embedding",
        "pair_embedding": "pair_embedding",
        "similarity": "prediction",
    },
}
"""Of a task's answers, the column of the predictions that each is equal to."""


def assert_client_agrees(folder: Path, variant: str) -> None:
    """The client answers what the run's own evaluation stored, a text at a time and, in fp32, in batches."""
    rows = [
        json.loads(line) for line in (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    table = pd.read_parquet(folder / "run" / "measurements" / variant / "predictions.parquet")
    artifact = folder / "run" / "artifacts" / variant
    task = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["task"]
    if task == "feature-extraction":
        rows = [{"text": row["sentence1"], "pair": row["sentence2"]} for row in rows]
    for options in ([], ["--batch", "7"]) if variant.endswith("fp32") else ([],):
        answers = serve(artifact, rows, *options)
        for key, column in ANSWERS[task].items():
            served, stored = [row[key] for row in answers], table[column]
            if isinstance(stored[0], float | np.ndarray) and task != "token-classification":
                np.testing.assert_allclose(served, stored.tolist(), atol=1e-5)
                continue
            assert served == [list(one) if isinstance(one, np.ndarray) else one for one in stored]

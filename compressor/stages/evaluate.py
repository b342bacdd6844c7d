"""Accuracy of exported files: always by running the ONNX file on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.files import appearing, stored_under, write_json
from compressor.schema import Progress
from compressor.stages.base import Data, open_tokenizer

if TYPE_CHECKING:
    import pandas as pd

    from compressor.models.outputs import Outputs
    from compressor.tasks.base import Task

BATCH = 1
"""As an artifact is asked: dynamic int8 takes its scales from the whole batch, padding included."""
VERSION = 2


def evaluate_onnx(
    data: Data, artifact: Path, progress: Progress, title: str = "evaluate"
) -> tuple[Outputs, pd.DataFrame]:
    """Logits of every feature and predictions of every example of the validation split."""
    tokenizer = open_tokenizer(artifact, data.kind)
    validation = data.frame("validation", progress)
    return predict(data.task, tokenizer, artifact, validation, progress, title)


def predict(
    task: Task, tokenizer: Any, model: Path, frame: pd.DataFrame, progress: Progress, title: str
) -> tuple[Outputs, pd.DataFrame]:
    """Logits of every feature and predictions of every example of `frame`, by an ONNX file or a folder of several."""
    from compressor.models.checkpoint import read_config
    from compressor.onnx.runtime import open_runner

    features = task.features(frame, tokenizer)
    run = open_runner(model, task.settings(read_config(model)) if task.writes else None)
    outputs = task.outputs(run, features, tokenizer, progress, BATCH, title)
    return outputs, task.predictions(outputs, features, frame)


def measure_accuracy(
    data: Data, artifact: Path, folder: Path, key: str, progress: Progress
) -> dict[str, Any]:
    """Score one variant, once: `folder` keeps `metrics.json`, `predictions.parquet` and `outputs.npz`.

    `metrics.json` goes first and comes last, so it never stands beside another file's predictions.
    """
    from compressor.models.outputs import save_outputs

    stored = folder / "metrics.json"
    if done := stored_under(stored, key):
        return done
    stored.unlink(missing_ok=True)
    outputs, rows = evaluate_onnx(data, artifact, progress, f"evaluate {folder.name}")
    save_outputs(folder / "outputs.npz", outputs)
    with appearing(folder / "predictions.parquet") as temporary:
        rows.to_parquet(temporary)
    metrics = {"key": key, "metrics": data.task.score(rows), "examples": len(rows)}
    write_json(stored, metrics)
    return metrics


def metric_of(data: Data, measured: dict[str, Any]) -> dict[str, Any]:
    """The primary metric in the form of results.json."""
    name = data.task.primary
    return {
        "name": name,
        "value": measured["metrics"][name],
        "higher_is_better": data.task.higher_is_better(name),
        "examples": measured["examples"],
    }


def metric_drop(data: Data, dense: Path, variant: Path) -> dict[str, Any]:
    """Harm in the primary metric (positive is worse), with a 95 % interval over the same examples."""
    import pandas as pd

    from compressor.benchmark.statistics import paired_interval

    task = data.task
    frames = [pd.read_parquet(folder / "predictions.parquet") for folder in (dense, variant)]
    scores = [task.scorer(frame, task.primary) for frame in frames]
    if not task.higher_is_better(task.primary):
        scores.reverse()
    rows = np.arange(len(frames[0]))
    low, high = paired_interval(scores[0], scores[1], len(rows))
    return {"value": scores[0](rows) - scores[1](rows), "ci95": [low, high]}


def agreement(data: Data, one: Path, other: Path) -> dict[str, Any]:
    """How alike two variants answer: share of equal predictions, largest difference of a logit."""
    import pandas as pd

    from compressor.models.outputs import load_outputs

    frames = [pd.read_parquet(folder / "predictions.parquet") for folder in (one, other)]
    same = data.task.agreement(frames[0], frames[1])
    theirs = load_outputs(other / "outputs.npz")
    if data.task.writes:  # texts have no distance
        return {"max_abs_error": None, "agreement": same, "inputs": len(frames[0])}
    worst = max(
        float(np.abs(a - b).max())
        for name, rows in load_outputs(one / "outputs.npz").items()
        for a, b in zip(rows, theirs[name], strict=True)
    )
    return {"max_abs_error": worst, "agreement": same, "inputs": len(frames[0])}

"""`evaluate`: the task's metrics of one model, checkpoint or artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.models.heads import head_fits
from compressor.report.fields import metric_label, metric_text
from compressor.stages.base import Data
from compressor.stages.evaluate import evaluate_onnx
from compressor.tables import table
from compressor.views.folders import has_config, has_graph, not_a_model, tokenizer_beside

if TYPE_CHECKING:
    import pandas as pd

    from compressor.project import Project
    from compressor.schema import Progress


def evaluate_model(project: Project, model: Path) -> Group:
    """Score the model in folder `model` on the validation split of the recipe's task.

    Raises:
        UserError: no model there, or one without a head for this task and these labels.
    """
    if not has_graph(model) and not has_config(model):
        raise not_a_model(model, "a checkpoint folder (config.json) or an artifact (model.onnx)")
    data = project.data
    check_head(data, model)
    tokenizer_beside(model, data.kind)
    with project.display.stage("evaluate") as progress:
        if has_graph(model):
            runtime, rows = f"onnxruntime {onnxruntime.__version__}", evaluate_onnx(data, model, progress)[1]
        else:
            runtime, rows = f"PyTorch {torch.__version__}", evaluate_torch(data, model, progress)
    title = Text(f"{model} by {runtime} on {len(rows):,} validation examples")
    return Group(title, Text(), _metrics(data, data.task.score(rows)))


def evaluate_torch(data: Data, folder: Path, progress: Progress) -> pd.DataFrame:
    """Predictions of a checkpoint for every example of the validation split, pruned ones held to their gates."""
    from compressor.models.outputs import BATCH, torch_runner

    task = data.task
    model, trained = checkpoint.open_source(str(folder.absolute()), data.kind.auto_class, task.model_config())
    if not trained:
        raise UserError(f"{folder} has no trained head for {data.keys.type}; fine-tune it first")
    tokenizer = tokenizer_beside(folder, data.kind)
    frame = data.frame("validation", progress)
    features = task.features(frame, tokenizer)
    run = torch_runner(model, task.settings(model.config))
    outputs = task.outputs(run, features, tokenizer, progress, BATCH, "evaluate")
    return task.predictions(outputs, features, frame)


def check_head(data: Data, folder: Path) -> None:
    """Raise UserError unless the model's config shows a head for the task, with the task's labels in order."""
    config = checkpoint.read_config(folder)
    if not head_fits(config, data.kind.auto_class, data.task.model_config()):
        made = ", ".join(config.architectures or ["a model of no named class"])
        labels = list((config.id2label or {}).values())
        raise UserError(
            f"{folder} holds {made} with the labels {labels}, which has no head for {data.keys.type} with the "
            f"labels {data.task.labels}; name the recipe it was made with, or give task.labels in its order"
        )


def _metrics(data: Data, scores: dict[str, float]) -> Table:
    primary = data.task.primary
    made = table("metric", "value", "", numbers=True)
    for name in sorted(scores, key=lambda metric: metric != primary):
        role, style = ("primary: what gates judge", "bold") if name == primary else ("", "")
        cells = (metric_label(name), metric_text(name, scores[name]), role)
        made.add_row(*map(Text, cells), style=style)
    return made

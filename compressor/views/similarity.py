"""`inspect --similarity`: how alike the states after every two layers are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from compressor.errors import UserError
from compressor.tables import table
from compressor.views.folders import has_config

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.project import Project

EXAMPLES, BATCH = 200, 20
COLD, WARM = (33, 102, 172), (178, 24, 43)
"""Colours of the least and the greatest similarity; those between are mixed of them and white."""


def similarity_view(model: Path, project: Project | None) -> Group:
    """Mean cosine of `[CLS]`'s states, every layer with every other.

    The texts are 200 of the recipe's selection split, or docstrings where there is no recipe.

    Raises:
        UserError: `model` is no checkpoint folder (a graph shows no states).
    """
    if not has_config(model) or not any(model.glob("*.safetensors")):
        raise UserError(f"--similarity needs a checkpoint folder with weights; {model} is none")
    from compressor.models import checkpoint
    from compressor.models.architecture import architecture_of
    from compressor.pruning.layer_measures import similarity

    if len(architecture_of(checkpoint.read_config(model)).stacks) > 1:
        raise UserError(f"--similarity compares the layers of one stack; {model} is an encoder-decoder")
    found = similarity(checkpoint.load(model), _batches(model, project))
    texts = "docstrings" if project is None else f"the selection split of {project.recipe.name}"
    note = (
        f"mean cosine of the state of [CLS] after each layer (0: embeddings), on {EXAMPLES} texts of {texts}"
    )
    return Group(_matrix(found), "", Text(note, style="dim"))


def _batches(model: Path, project: Project | None) -> Iterator[dict[str, Tensor]]:
    if project is not None:
        yield from _of_the_task(model, project)
        return
    from compressor.tasks.docstrings import build
    from compressor.tasks.text_classification import TextClassification
    from compressor.views.folders import tokenizer_beside

    tokenizer: Any = tokenizer_beside(model, TextClassification)
    texts = build()["validation"]["text"].tolist()[:EXAMPLES]
    for start in range(0, len(texts), BATCH):
        yield tokenizer(
            texts[start : start + BATCH], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )


def _of_the_task(model: Path, project: Project) -> Iterator[dict[str, Tensor]]:
    from compressor.models.outputs import MODEL_INPUTS, columns
    from compressor.views.folders import tokenizer_beside

    task = project.data.task
    tokenizer = tokenizer_beside(model, project.data.kind)
    rows = columns(task.features(task.examples.selection.head(EXAMPLES), tokenizer), MODEL_INPUTS)
    collate = task.collate(tokenizer)
    for start in range(0, len(rows), BATCH):
        yield collate([dict(row) for row in rows[start : start + BATCH]])


def _matrix(found: Any) -> Table:
    rows = found.tolist()
    shown = table("layer", *map(str, range(len(rows))), numbers=True)
    for number, row in enumerate(rows):
        shown.add_row(str(number), *(Text(f"{value:.2f}", style=_style(value)) for value in row))
    return shown


def _style(value: float) -> str:
    """Blue below zero, red above, the stronger the further away."""
    share, end = min(1.0, abs(value)), WARM if value > 0 else COLD
    red, green, blue = (round(255 + share * (one - 255)) for one in end)
    return f"{'white' if share > 0.6 else 'black'} on rgb({red},{green},{blue})"

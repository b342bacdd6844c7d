"""Batches of the task's examples for methods that look at how a model behaves on them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from compressor.stages.base import Work

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32
"""Examples that are looked at together."""


def selection_batches(work: Work, labels: bool) -> Iterator[dict[str, Tensor]]:
    """Model inputs of the selection split, in batches of similar length; with `labels` also these."""
    from compressor.models.outputs import MODEL_INPUTS, columns

    if not labels:
        return _batches(work, columns(work.features("selection"), MODEL_INPUTS))
    wanted = (*MODEL_INPUTS, *work.data.task.label_columns)
    return _labelled(work, _batches(work, columns(work.features("selection"), wanted)))


def sampled(work: Work, split: str, examples: int, tokens: int) -> list[dict[str, Tensor]]:
    """Labelled batches of a random part of a split, by the recipe's seed: so many examples and tokens at most."""
    from compressor.models.outputs import MODEL_INPUTS, columns

    task, frame = work.data.task, getattr(work.data.task.examples, split)
    chosen = frame.sample(min(examples, len(frame)), random_state=work.seed)
    rows = columns(task.features(chosen, work.tokenizer()), (*MODEL_INPUTS, *task.label_columns))
    ends = list(accumulate(len(row["input_ids"]) for row in rows))
    return list(_labelled(work, _batches(work, rows[: max(1, bisect_right(ends, tokens))])))


def _batches(work: Work, rows: list[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
    rows.sort(key=lambda row: len(row["input_ids"]))
    collate = work.data.task.collate(work.tokenizer())
    for start in range(0, len(rows), BATCH):
        work.progress("measure layers", start / len(rows))
        yield collate([dict(row) for row in rows[start : start + BATCH]])


def _labelled(work: Work, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Batches with their labels; of a task without any, random ones, so that the loss has a slope everywhere.

    A model is at the very bottom of its distance to its own embeddings: no gradient there says what matters. That of
    the distance to a random vector says how far the embedding moves, just as the Fisher information takes labels
    drawn at random and not the true ones (Kunstner, Balles, Hennig: "Limitations of the Empirical Fisher
    Approximation for Natural Gradient Descent", 2019).
    """
    from torch import Generator, randn

    from compressor.models.checkpoint import read_config

    if work.data.task.label_columns:
        yield from batches
        return
    width: int = read_config(work.source).hidden_size
    random = Generator().manual_seed(work.seed)
    for batch in batches:
        yield batch | {"labels": randn(len(batch["input_ids"]), width, generator=random)}

"""How many layers go for a goal: the search is nested, so any number of them is its beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from compressor.errors import UserError
from compressor.models.architecture import structure_of
from compressor.pruning.context import Context
from compressor.pruning.layer_drop import without

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Scored(Protocol):
    """A search that is played as far as it is asked."""

    def score(self, count: int) -> float:
        """The score without the first `count` layers."""


def most_within_drop(sizes: Sequence[int], whole: float, rounds: Scored, allowed: float) -> int:
    """The largest of `sizes` that loses no more than `allowed` of `whole`, as must every smaller number of layers.

    Scores do not fall steadily, and a smaller model that happens to be better is luck on this split. Rounds after
    the first that loses more are not played.

    Raises:
        UserError: even the smallest loses more.
    """
    accepted = 0
    for count in range(1, max(sizes) + 1):
        loss = round(whole - rounds.score(count), 3)
        if loss > allowed + 1e-9:
            break
        accepted = count
    fitting = [size for size in sizes if size <= accepted]
    if not fitting:
        raise UserError(
            f"greedy: without {count_text(accepted + 1)} the metric on the selection split is {loss:.3f} worse than "
            f"with all; target.max_metric_drop allows {allowed:g}: allow more"
        )
    return max(fitting)


def fewest_for_time(
    sizes: Sequence[int], times: Mapping[int, float], dense_ms: float, goal: str, value: float
) -> int:
    """The smallest of `sizes` that is fast enough; `times` (ms, by layers dropped) has nobody's in between.

    Layers are alike, so between the sizes that were timed time falls in a straight line. Speedups are over
    `dense_ms`.

    Raises:
        UserError: none is, or the model is with all its layers.
    """
    known = sorted(times)
    expected = {s: float(np.interp(s, known, [times[count] for count in known])) for s in sorted(sizes)}
    limit = dense_ms / value if goal == "speedup" else value
    if times[0] <= limit:
        raise UserError(
            f"greedy: target.{goal} {value:g} is reached with all layers ({times[0]:.3g} ms); ask for more"
        )
    for size, time in expected.items():
        if time <= limit:
            return size
    fastest = expected[max(sizes)]
    raise UserError(
        f"greedy: without {count_text(max(sizes))} the model takes {fastest:.3g} ms of {dense_ms:.3g}, "
        f"{dense_ms / fastest:.2f}x faster; target.{goal} asks for {value:g}: ask for less, or let more layers `drop`"
    )


def latency_by_size(model: PreTrainedModel, context: Context) -> dict[int, float]:
    """Milliseconds on onnxruntime of the whole model, of one without half its layers, and of one with a single one.

    Whichever layers are left: they cost the same.
    """
    from compressor.models.slicing import slice_model

    structure = structure_of(model)
    layers = len(structure.layers)
    counts = sorted({0, (layers - 1) // 2, layers - 1})
    made = {
        str(count): partial(slice_model, model, without(structure, range(layers - count, layers)))
        for count in counts
    }
    return {int(name): time for name, time in context.latency(made).items()}


def count_text(count: int) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} layer{'s' * (count != 1)}"

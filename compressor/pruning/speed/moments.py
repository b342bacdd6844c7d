"""Mean and covariance of what enters output projections, streamed over calibration batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of
from compressor.pruning.speed.places import Key, Place

Batch = dict[str, Tensor]


class Moments:
    """Mean (d,) and covariance (d, d) of rows that come batch by batch, in float64.

    Rows are taken relative to the first batch's mean, so that products in their own precision lose nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sum = self._products = torch.zeros(0)

    def add(self, rows: Tensor) -> None:
        """Rows (n, d)."""
        if self._shift is None:
            self._shift = rows.mean(dim=0)
            self._sum = torch.zeros(rows.shape[1], dtype=torch.float64)
            self._products = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        around = rows - self._shift
        self.count += len(rows)
        self._sum += around.sum(dim=0).double().cpu()
        self._products += (around.T @ around).cpu()

    @property
    def mean(self) -> Tensor:
        """Mean of all rows."""
        assert self._shift is not None
        return self._sum / self.count + self._shift.double().cpu()

    @property
    def covariance(self) -> Tensor:
        """Their covariance, divided by their number."""
        around = self._sum / self.count
        return self._products / self.count - torch.outer(around, around)


def inputs_of(model: PreTrainedModel, batch: Batch) -> Batch:
    """What of a batch `model` reads, on its device."""
    names = architecture_of(model.config).inputs
    return {name: values.to(model.device) for name, values in batch.items() if name in names}


@torch.no_grad()
def input_moments(
    model: PreTrainedModel, places: Sequence[Place], batches: Iterable[Batch]
) -> dict[Key, Moments]:
    """Moments of the inputs of every place's output projection, over all tokens but padding."""
    found = {place.key: Moments() for place in places}
    real = torch.zeros(0)

    def collect(moments: Moments) -> Any:
        return lambda _module, args: moments.add(args[0][real])

    with ExitStack() as hooks:
        for place in places:
            handle = place.projection.register_forward_pre_hook(collect(found[place.key]))
            hooks.callback(handle.remove)
        model.eval()
        for batch in batches:
            inputs = inputs_of(model, batch)
            real = inputs["attention_mask"].bool()
            model(**inputs)
    return found

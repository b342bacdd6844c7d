"""A second least-squares pass, bottom-up: every sub-layer also makes up for what the ones below it do otherwise now.

The output projection is solved for again on the inputs that it gets in the pruned model, towards the dense model's
residual stream after the sub-layer. Source: Park, Choi, Kang, "K-prune" (ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.models.structure import Structure
from compressor.pruning.speed.moments import Batch, Moments, inputs_of
from compressor.pruning.speed.obs import DAMPING, TINY
from compressor.pruning.speed.places import Place, places_of
from compressor.pruning.speed.window import recorded, window


class Passes:
    """One model run layer by layer over the same batches: what every layer gives is kept until the next has run."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model = model.eval()
        self.inputs = [inputs_of(model, batch) for batch in batches]
        self._below: list[Any] = [None] * len(batches)

    @torch.no_grad()
    def run(self, layer: int) -> Iterator[tuple[int, Tensor]]:
        """Run one layer; after each batch its number and the mask of its real tokens."""
        for number, inputs in enumerate(self.inputs):
            with window(self.model, layer, layer + 1, self._below[number]):
                self.model(**inputs)
            yield number, inputs["attention_mask"].bool()

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Go up: the next layer runs on what this one gives now."""
        for number, inputs in enumerate(self.inputs):
            with window(self.model, layer, layer + 1, self._below[number]), recorded(self.model) as outputs:
                self.model(**inputs)
            self._below[number] = outputs[-1]


def second_pass(
    model: PreTrainedModel, dense: PreTrainedModel, structure: Structure, batches: Sequence[Batch]
) -> None:
    """Solve for the output projections of `model` again, in place; it is held to `structure` by gates.

    `dense` is the model that it was, untouched. Absent sub-layers stay as they are.
    """
    kept = {(la.stack, la.index, name): sub for la, name, sub in structure.each()}
    ours, theirs = Passes(model, batches), Passes(dense, batches)
    originals = {place.key: place for place in places_of(dense)}
    places = places_of(model)
    for layer in range(1 + max(place.at for place in places)):  # also those that only hand on a constant
        here = [place for place in places if place.at == layer and not kept[place.key].absent]
        with watched([originals[place.key] for place in here]) as seen:
            streams = [
                [seen[place.key]["stream"][real] for place in here] for _number, real in theirs.run(layer)
            ]
        for at, place in enumerate(here):
            units = [place.units.index(unit) for unit in kept[place.key].kept]
            _solve_again(place, units, ours, [stream[at] for stream in streams])
        ours.advance(layer)
        theirs.advance(layer)


def _solve_again(place: Place, units: list[int], ours: Passes, streams: Sequence[Tensor]) -> None:
    """Solve for one projection: the least change of its weights towards the dense stream."""
    columns = torch.tensor(
        [unit * place.size + i for unit in units for i in range(place.size)], dtype=torch.long
    )
    moments, width = Moments(), len(columns)
    with watched([place]) as seen:
        for number, real in ours.run(place.at):
            inside = {name: values[real] for name, values in seen[place.key].items()}
            wanted = streams[number] - (inside["stream"] - inside["output"])
            moments.add(torch.cat([inside["input"][:, columns], wanted], dim=1))
    joint, mean = moments.covariance, moments.mean
    weight = place.projection.weight.detach().double().cpu()[:, columns]
    solved = torch.zeros_like(weight)
    if width:
        inner, across = joint[:width, :width], joint[width:, :width]
        ridge = DAMPING * inner.diagonal().mean().clamp(min=TINY)
        factor = torch.linalg.cholesky(inner + ridge * torch.eye(width, dtype=inner.dtype))
        solved = torch.cholesky_solve((across + ridge * weight).T, factor).T
    with torch.no_grad():
        whole = torch.zeros_like(place.projection.weight)
        whole[:, columns] = solved.to(whole)
        place.projection.weight.copy_(whole)
        place.projection.bias.copy_(mean[width:] - solved @ mean[:width])


@contextmanager
def watched(places: Sequence[Place]) -> Iterator[dict[Any, dict[str, Tensor]]]:
    """What the last forward pass put through each place: `input` and `output` of its projection, and the `stream`
    after the residual add.
    """
    seen: dict[Any, dict[str, Tensor]] = {place.key: {} for place in places}

    def keep(key: Any, name: str) -> Any:
        return lambda _module, args, *out: seen[key].__setitem__(name, out[0] if out else args[0])

    with ExitStack() as hooks:
        for place in places:
            handles = [
                place.projection.register_forward_pre_hook(keep(place.key, "input")),
                place.projection.register_forward_hook(keep(place.key, "output")),
                place.norm.register_forward_pre_hook(keep(place.key, "stream")),
            ]
            for handle in handles:
                hooks.callback(handle.remove)
        yield seen

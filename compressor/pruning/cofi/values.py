"""A value for every gate of a model, and the share of its parameters or of its time that such values remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from compressor.models.structure import Sizes, Structure, SubLayer
from compressor.pruning.context import LatencyTable

Place = tuple[str, str]
"""A stack and the name of one of its sub-layers: what is in every layer once."""


@dataclass(frozen=True)
class Slot:
    """Gates of one kind: `rows` x `size` of them, a row for every layer (for `hidden` a single one)."""

    kind: str
    rows: int
    size: int
    place: Place | None = None

    @property
    def name(self) -> str:
        """Its name among all of a model's."""
        return f"{self.place[0]}_{self.kind}" if self.place else self.kind


def slots_of(structure: Structure) -> Iterator[Slot]:
    """Every kind of gate that a model with whole layers can have, the coarse ones of a place before the fine."""
    yield Slot("hidden", 1, structure.hidden_width)
    for stack, counts in structure.sizes.stacks.items():
        rows = sum(layer.stack == stack for layer in structure.layers)
        for name, units in counts.items():
            if name != "layers":
                whole, unit = ("ffn", "neuron") if name == "ffn" else ("layer", "head")
                yield Slot(whole, rows, 1, (stack, name))
                yield Slot(unit, rows, units, (stack, name))


@dataclass(frozen=True)
class Values:
    """`hidden` (hidden,); of every place the `units` (layers, units) and whole sub-layers, `wholes` (layers,)."""

    hidden: Tensor
    units: Mapping[Place, Tensor]
    wholes: Mapping[Place, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> Values:
        """`change` applied to every tensor."""
        return Values(
            change(self.hidden),
            {place: change(value) for place, value in self.units.items()},
            {place: change(value) for place, value in self.wholes.items()},
        )

    def open(self) -> Values:
        """1 for every gate that is not zero, else 0."""
        return self.map(lambda value: value.ne(0).to(value.dtype))

    def canonical(self) -> Values:
        """The same with sub-layers closed whose units are, all of them: no bias is left behind."""
        alive = {place: units.ne(0).any(dim=-1) for place, units in self.units.items()}
        return replace(self, wholes={place: whole * alive[place] for place, whole in self.wholes.items()})

    def structure(self, current: Structure) -> Structure:
        """What of `current` (a model with whole layers) these canonical values keep."""
        kept: dict[tuple[str, int, str], SubLayer] = {}
        at: dict[str, int] = {}
        for layer in current.layers:
            row = at[layer.stack] = at.get(layer.stack, -1) + 1
            for name, sub in layer.sublayers.items():
                place = (layer.stack, name)
                alive = self.units[place][row].ne(0).tolist() if self.wholes[place][row] != 0 else []
                units = tuple(unit for unit, live in zip(sub.kept, alive, strict=False) if live)
                kept[layer.stack, layer.index, name] = SubLayer(units, absent=not units)
        width = [
            d for d, gate in zip(sorted(current.hidden_kept()), self.hidden.tolist(), strict=True) if gate
        ]
        whole = len(width) == current.hidden_width
        return replace(current.keeping(kept), hidden=current.hidden if whole else tuple(width))


class Constraint(Protocol):
    """What the Lagrangian drives to a target: a share of the dense model that goes."""

    @property
    def what(self) -> str:
        """What it is a share of, for the training log."""

    def __call__(self, values: Values) -> Tensor:
        """A scalar for probabilities or open gates: 0 with every gate at 1, at most 1, and differentiable."""


class ParameterShare:
    """The share of the layers' parameters, biases included, that probabilities or open gates remove (section 3.1).

    Norms, embeddings and heads don't count, a head or neuron has its part of the output's bias.
    """

    what = "sparsity"

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def parameters(self, values: Values) -> Tensor:
        """How many are left: expected ones if `values` are probabilities."""
        width, total = values.hidden.sum(), values.hidden.new_zeros(())
        for place, units in values.units.items():
            size, maps = self.sizes.unit_size(place[1]), self.sizes.projections[place[1]]
            each = maps * size * width + (maps - 1) * size + width / units.shape[-1]
            total = total + each * (values.wholes[place].unsqueeze(-1) * units).sum()
        return total

    def __call__(self, values: Values) -> Tensor:
        """A scalar between 0 and 1."""
        return 1 - self.parameters(values) / self.parameters(values.map(torch.ones_like))


class TimeShare:
    """The share of the dense model's time that probabilities or open gates remove, by a latency table.

    A sub-layer takes the time of the units expected in it where it is there (methods: latency-aware, section 7):
    exact once the gates have decided. Closed hidden dimensions save nothing here, a table is of one hidden width.
    """

    what = "time"

    def __init__(self, table: LatencyTable) -> None:
        self.table = table

    def ms(self, values: Values) -> Tensor:
        """Milliseconds: expected ones if `values` are probabilities."""
        (attention, heads), (ffn, neurons) = (
            (values.wholes[place], units.sum(-1))
            for place, units in sorted(values.units.items(), key=lambda item: item[0][1] == "ffn")
        )
        return self.table.expected(attention, heads, ffn, neurons)

    def __call__(self, values: Values) -> Tensor:
        """A scalar between 0 and 1."""
        return 1 - self.ms(values) / self.ms(values.map(torch.ones_like))

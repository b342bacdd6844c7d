"""What every width of a sub-layer costs in one place: milliseconds, to be added up, searched over, differentiated.

Times are of sub-layers inside a stack of layers, where they add up (to 4 % on BERT-base; those of isolated
sub-layers miss by 30 %). `latency_measuring` makes the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from compressor.benchmark.encoder_graph import EncoderShape, Widths
from compressor.benchmark.latency_setting import widths_of
from compressor.models.structure import Structure

Numbers = TypeVar("Numbers", bound=Any)
"""A numpy array or a torch tensor."""


@dataclass(frozen=True)
class Curve:
    """Milliseconds of one kind of sub-layer by the units (heads or neurons) it keeps.

    `widths` ascend from the least measured to all units and `ms` never falls along them; between them time is
    linear, below the first it is the first's (a sub-layer has a floor, however small). `constant`: nothing kept
    but bias, residual and norm. `slow` are widths that cost clearly more than those around them, kept off the
    line. `noisy` are widths whose measurement stayed uncertain by more than 5 %.
    """

    widths: tuple[int, ...]
    ms: tuple[float, ...]
    constant: float
    slow: Mapping[int, float] = field(default_factory=dict)
    noisy: tuple[int, ...] = ()

    def at(self, units: int | None) -> float:
        """Milliseconds of so many units; `None` is an absent sub-layer, which costs nothing."""
        if units is None:
            return 0.0
        if units == 0:
            return self.constant
        return self.slow.get(units) or float(np.interp(units, self.widths, self.ms))

    @cached_property
    def array(self) -> NDArray[np.float64]:
        """`array[n]`: milliseconds of `n` units, for every `n` up to all; `array[0]` is an absent sub-layer: 0."""
        return np.array([0.0, *(self.at(units) for units in range(1, self.widths[-1] + 1))])

    def levels(self) -> list[tuple[int, float]]:
        """What to choose from: (units, milliseconds) of the widths on the line, and (0, 0) for an absent one."""
        return [(0, 0.0), *zip(self.widths, self.ms, strict=True)]

    def line(self, units: Numbers) -> Numbers:
        """Milliseconds of fractional `units` (any shape), differentiable where it is a tensor; slow widths aside.

        A sum of hinges, one where each piece begins, so that at a width the piece above it has the gradient.
        """
        total = 0.0 * units + self.ms[0]
        before = 0.0
        for start, slope in zip(self.widths, np.diff(self.ms) / np.diff(self.widths), strict=False):
            total = total + float(slope - before) * (units - start).clip(min=0)
            before = slope
        return total

    def scaled(self, factor: float) -> Curve:
        """The same curve in other units of time."""
        return Curve(
            self.widths,
            tuple(factor * ms for ms in self.ms),
            factor * self.constant,
            {units: factor * ms for units, ms in self.slow.items()},
            self.noisy,
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curve:
        """Inverse of `dataclasses.asdict` through JSON."""
        slow = {int(units): ms for units, ms in value["slow"].items()}
        return cls(tuple(value["widths"]), tuple(value["ms"]), value["constant"], slow, tuple(value["noisy"]))


@dataclass(frozen=True)
class LatencyTable:
    """The time of any structure of one encoder, in one setting (cell, precision, machine).

    `base_ms` is what is left of a model without layers: embeddings, classifier, the call itself. `setting` and
    `check` (what whole models were predicted to take, and took) are plain data.
    """

    shape: EncoderShape
    base_ms: float
    attention: Curve
    ffn: Curve
    setting: Mapping[str, Any]
    check: Mapping[str, Any]

    @property
    def dense_ms(self) -> float:
        """Predicted milliseconds of the model from which nothing was removed."""
        return self.of_widths([self.shape.dense] * self.shape.layers)

    def time(self, structure: Structure) -> float:
        """Predicted milliseconds of `structure`.

        Raises:
            ValueError: the table is of another hidden width or head size.
        """
        have = (structure.hidden_width, structure.sizes.head_size)
        if have != (self.shape.hidden, self.shape.head_size):
            raise ValueError(
                f"the latency table is of hidden width {self.shape.hidden} with heads of {self.shape.head_size}, "
                f"the structure has {have[0]} and {have[1]}: make a table for it"
            )
        return self.of_widths(widths_of(structure))

    def of_widths(self, layers: list[Widths]) -> float:
        """Predicted milliseconds of layers of these widths."""
        return self.base_ms + sum(self.attention.at(heads) + self.ffn.at(ffn) for heads, ffn in layers)

    def speedup(self, structure: Structure) -> float:
        """How many times faster than dense `structure` is predicted to be."""
        return self.dense_ms / self.time(structure)

    def expected(self, attention: Numbers, heads: Numbers, ffn: Numbers, neurons: Numbers) -> Numbers:
        """Expected milliseconds under gate probabilities, a scalar; differentiable where they are tensors.

        `attention` and `ffn` are the probabilities that a layer's sub-layer is there, `heads` and `neurons` the
        units expected in it where it is, all (layers,). Time is taken at the expected number of units (methods,
        latency_aware, section 7), which is exact once the gates have made up their minds.
        """
        body = attention * self.attention.line(heads) + ffn * self.ffn.line(neurons)
        return self.base_ms + body.sum()

    def to_json(self) -> dict[str, Any]:
        """Plain data for files."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LatencyTable:
        """Inverse of `to_json`."""
        curves = {name: Curve.from_json(value[name]) for name in ("attention", "ffn")}
        shape = EncoderShape(**value["shape"])
        return cls(shape, value["base_ms"], **curves, setting=value["setting"], check=value["check"])

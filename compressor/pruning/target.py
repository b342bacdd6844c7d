"""What a recipe asks of a pruning method: its target, and the cell of the benchmark that it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.cell import Cell
from compressor.schema import Keys

Positive = Annotated[float, Field(gt=0)]
Precision = Literal["fp32", "int8"]


class At(Keys):
    """The benchmark cell a target is meant for, the first one by default, and in which precision it counts.

    int8 is what `quantize: {mode: dynamic}` makes; auto takes fp32 or int8, as loses less. Speedups are over the
    dense model in fp32, or in the `same-precision`.
    """

    provider: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    sequence_length: int | None = None
    precision: Literal["fp32", "int8", "auto"] = "fp32"
    relative_to: Literal["dense-fp32", "same-precision"] = "dense-fp32"

    @model_validator(mode="after")
    def _one_dense_model(self) -> At:
        if self.precision == "auto" and self.relative_to == "same-precision":
            raise ValueError("precision auto compares precisions: its speedups are over dense-fp32")
        return self

    def cell(self, cells: Sequence[Cell]) -> Cell | None:
        """The first of `cells` that it speaks of, if any."""
        asked = self.model_dump(exclude={"precision", "relative_to"}, exclude_none=True)
        return next((c for c in cells if all(getattr(c, key) == value for key, value in asked.items())), None)


class Target(Keys):
    """What a method should reach: exactly one of the four; a list makes a family."""

    speedup: Positive | list[Positive] | None = None
    latency_ms: Positive | list[Positive] | None = None
    sparsity: Positive | list[Positive] | None = None
    max_metric_drop: Positive | list[Positive] | None = None
    at: At = At()

    def given(self) -> list[str]:
        """The goals that are set."""
        return [
            k
            for k in ("speedup", "latency_ms", "sparsity", "max_metric_drop")
            if getattr(self, k) is not None
        ]

    @property
    def timed(self) -> bool:
        """Whether it is reached or not depends on a machine."""
        return self.speedup is not None or self.latency_ms is not None

    @property
    def values(self) -> list[float]:
        """What is asked for of the goal that is set, one a member."""
        value = getattr(self, self.given()[0])
        return list(value) if isinstance(value, list) else [value]

    @model_validator(mode="after")
    def _one_goal(self) -> Target:
        if len(self.given()) != 1:
            raise ValueError("give exactly one of speedup, latency_ms, sparsity, max_metric_drop")
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError("a list of targets names each value once, and at least one")
        if self.speedup is not None and min(self.values) <= 1:
            raise ValueError("a speedup is above 1: 2 asks for half the time")
        if self.sparsity is not None and max(self.values) >= 1:
            raise ValueError("sparsity is the share of the layers' weights to remove: below 1")
        return self


MEMBERS: dict[str, Callable[[float], str]] = {
    "speedup": lambda value: f"{value:g}x",
    "latency_ms": lambda value: f"{value:g}ms",
    "sparsity": lambda value: f"s{100 * value:g}",
    "max_metric_drop": lambda value: f"d{100 * value:g}",
}
"""How the members of a family are named after what they aim at."""


def members_of(target: Target | None) -> dict[str, float | None]:
    """The models a target stands for: name and goal of each; one is simply `pruned`."""
    values = target.values if target else [None]
    if target is None or len(values) == 1:
        return {"pruned": values[0]}
    name = MEMBERS[target.given()[0]]
    return {name(value): value for value in target.values}

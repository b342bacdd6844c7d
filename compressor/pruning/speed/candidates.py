"""Candidates within a time, in one precision: chosen, and measured where a time is aimed at."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from compressor.files import digest
from compressor.pruning.aim import FIRST, Attempt, aim
from compressor.pruning.context import LatencyTable, Timing
from compressor.pruning.goal import Goal
from compressor.pruning.speed.origin import Origin
from compressor.pruning.speed.places import Choice
from compressor.pruning.speed.search import Array, Menu, choose, refine
from compressor.pruning.speed.sizes import sizes_of, without
from compressor.pruning.target import Precision

SHARES = (0.5, 0.25, 0.1)
"""What is left of the models that are named where a target is out of reach."""
CURVE = (1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8, 10, 15)
"""Speedups at which the report shows what the search expects to lose."""


class Candidates:
    """What can be cut from an origin, by the latency table of one precision."""

    def __init__(self, origin: Origin, table: LatencyTable, precision: Precision, dense_ms: float) -> None:
        """`dense_ms`: of the dense model that speedups are over, by the table's measure."""
        self.origin, self.table, self.precision, self.dense_ms = origin, table, precision, dense_ms
        self._sizes = sizes_of(origin.places, table)
        self.rest_ms = without(origin.model, origin.places, table)
        """What the model takes without any of its places."""
        self.least_ms = self.rest_ms + min(
            ms for menu in self._sizes.values() for n, ms in zip(menu.units, menu.ms, strict=True) if n
        )
        """What it takes with the cheapest of them alone: less is not aimed at."""

    def at(self, origin: Origin) -> Candidates:
        """The same, cut from another origin."""
        return Candidates(origin, self.table, self.precision, self.dense_ms)

    @cached_property
    def menus(self) -> list[Menu]:
        """Sizes with times and costs."""
        return self.origin.priced(self._sizes)

    @property
    def even(self) -> Array:
        """Coefficients that take costs as they are."""
        return np.ones(len(self.menus))

    def within(self, ms: float, coefficients: Array) -> Choice | None:
        """The cheapest candidate that takes so long by the table, if there is one."""
        return choose(self.menus, ms - self.rest_ms, coefficients)

    def grown(self, choice: Choice, ms: float, coefficients: Array) -> Choice | None:
        """The cheapest candidate that takes so long by the table and keeps all that a smaller one does, and no more
        sub-layers.
        """
        menus = [menu.at_least(choice[menu.key]) for menu in self.menus]
        return choose(menus, ms - self.rest_ms, coefficients)

    def refined(self, ms: float) -> Array:
        """Coefficients whose cheapest candidate in this time loses least in truth."""
        keys, context = self.origin.keys, self.origin.context
        context.tell("search", 0.0)
        self.origin.renew()
        return refine(self.menus, ms - self.rest_ms, self.origin.loss, keys.search, context.seed)[0]

    def attempts(self, goal: Goal) -> list[Attempt[Choice]]:
        """Candidates that were exported and measured, the best last."""
        coefficients = self.refined(goal.asked_ms)
        return aim(
            goal.asked_ms,
            lambda ms: self.within(max(ms, self.least_ms), coefficients),
            self.predicted,
            self.measure,
            goal.reach,
            grow=lambda choice, ms: self.grown(choice, ms, coefficients),
        )

    def predicted(self, choice: Choice) -> float:
        """Milliseconds by the table."""
        return self.table.time(self.origin.database.structure_of(choice))

    def measure(self, choice: Choice, turn: int = FIRST) -> Timing:
        """Export it and measure it beside the dense model; speed does not depend on weights."""
        name = f"{digest(self.origin.database.structure_of(choice).to_json())}-{turn}"
        return self.origin.context.timing(name, lambda: self.origin.sliced(choice), self.precision)

    def smaller(self) -> dict[str, float]:
        """What models take by the table of which the same share of every sub-layer is left."""
        table = self.table
        curves = [
            (table.attention if p.table.is_attention else table.ffn, len(p.units)) for p in self.origin.places
        ]
        return {
            f"{share:.0%} of every sub-layer": self.rest_ms + sum(c.at(round(share * n)) for c, n in curves)
            for share in SHARES
        }

    def curve(self) -> Iterator[dict[str, float]]:
        """What the search expects to lose (the sum of costs) at speeds from low to high, as far as it can go."""
        for speedup in CURVE:
            choice = self.within(self.dense_ms / speedup, self.even)
            if choice is None:
                return
            cost = sum(float(menu.cost[menu.units.index(choice[menu.key])]) for menu in self.menus)
            yield {"speedup": speedup, "cost": cost}

"""Which size every sub-layer gets: dynamic programming under a time budget, and a local search on the true loss.

The costs of sub-layers are added up, each times a coefficient. The search changes a few coefficients at a time and
keeps what lowers the loss of the whole model. Source: Frantar and Alistarh, "SPDY" (ICML 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.pruning.speed.places import Choice, Key, Units

BUCKETS = 10_000
"""Steps into which the time that can be spent is divided."""
TINY = 1e-12
"""Milliseconds that are as good as none."""
SHARE = 0.1
"""Of the coefficients, how many at most change in one step of the search."""
SPREAD = 1.0
"""Standard deviation of the logarithm by which a coefficient changes."""

Array = NDArray[np.float64]
Loss = Callable[[Choice, float], float]
"""Of a candidate, infinite as soon as it is certainly above the second argument."""


@dataclass(frozen=True)
class Menu:
    """The sizes that a sub-layer can have, what each takes (milliseconds) and what each costs in accuracy."""

    key: Key
    units: tuple[Units, ...]
    ms: Array
    cost: Array

    def at_least(self, units: Units) -> Menu:
        """Those sizes that are not smaller; of an absent sub-layer none but its absence."""
        first = self.units.index(units)
        kept = slice(first, None) if units is not None else slice(first, first + 1)
        return Menu(self.key, self.units[kept], self.ms[kept], self.cost[kept])


def cheapest(times: Sequence[Array], costs: Sequence[Array], budget: float) -> list[int] | None:
    """Of each row of `times` one entry, so that they sum to `budget` at most and their `costs` to the least.

    Exact but for rounding times up to a ten-thousandth of the budget. `None` where the least times exceed the budget.
    """
    best = [int(cost.argmin()) for cost in costs]
    if sum(time[at] for time, at in zip(times, best, strict=True)) <= budget:
        return best
    least = [float(time.min()) for time in times]
    room = budget - sum(least)
    if room < 0:
        return None
    bucket = max(room, TINY) / BUCKETS
    steps = [
        np.ceil(np.minimum((time - low) / bucket, BUCKETS + 1) - 1e-9).astype(int)
        for time, low in zip(times, least, strict=True)
    ]
    spent = np.zeros(BUCKETS + 1)
    taken = []
    for step, cost in zip(steps, costs, strict=True):
        totals = np.full((len(step), BUCKETS + 1), np.inf)
        for row, (width, price) in enumerate(zip(step, cost, strict=True)):
            if width <= BUCKETS:
                totals[row, width:] = spent[: BUCKETS + 1 - width] + price
        choice = totals.argmin(axis=0)
        taken.append(choice)
        spent = totals[choice, np.arange(BUCKETS + 1)]
    return list(_back(taken, steps))[::-1]


def _back(taken: Sequence[NDArray[np.int64]], steps: Sequence[NDArray[np.int64]]) -> Iterator[int]:
    """The entries chosen, last row first, from all of the budget back to its beginning."""
    at = BUCKETS
    for choice, step in zip(reversed(taken), reversed(steps), strict=True):
        entry = int(choice[at])
        yield entry
        at -= int(step[entry])


def choose(menus: Sequence[Menu], budget: float, coefficients: Array) -> dict[Key, Units] | None:
    """The cheapest candidate within `budget` milliseconds, or `None`."""
    costs = [menu.cost * scale for menu, scale in zip(menus, coefficients, strict=True)]
    entries = cheapest([menu.ms for menu in menus], costs, budget)
    if entries is None:
        return None
    return {menu.key: menu.units[at] for menu, at in zip(menus, entries, strict=True)}


def refine(
    menus: Sequence[Menu], budget: float, loss: Loss, steps: int, seed: int
) -> tuple[Array, list[float]]:
    """Coefficients whose cheapest candidate within `budget` has the least loss, and that loss as it fell.

    Begins with all at 1. Every step changes a few, in the logarithm; candidates seen before cost nothing.
    """
    random = np.random.default_rng(seed)
    best = np.ones(len(menus))
    first = choose(menus, budget, best)
    assert first is not None
    fallen = [loss(first, float("inf"))]
    seen = {tuple(first.values())}
    most = max(1, round(SHARE * len(menus)))
    for _ in range(steps):
        changed = random.choice(len(menus), size=int(random.integers(1, most + 1)), replace=False)
        tried = best.copy()
        tried[changed] *= np.exp(random.normal(0, SPREAD, len(changed)))
        candidate = choose(menus, budget, tried)
        assert candidate is not None
        if (kept := tuple(candidate.values())) not in seen:
            seen.add(kept)
            found = loss(candidate, fallen[-1])
            if found < fallen[-1]:
                best, fallen = tried, [*fallen, found]
    return best, fallen

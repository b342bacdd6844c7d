"""Hitting a speed: measure the exported model, correct the budget by what the prediction missed, and choose again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Generic, TypeVar

from compressor.pruning.context import Timing

Choice = TypeVar("Choice")
"""What is chosen: equal choices are the same model."""

TOLERANCE = 0.02
"""A model may be so much faster than asked; slower it may not be."""
ROUNDS = 6
"""Models that are exported and measured at most, for one target."""
SEARCHED = 3
"""Of these, so many at least are searched for; then they grow from one that is too fast, where they can."""
STEP, STEPS = TOLERANCE / 4, 12
"""Where a budget leads to a model that was measured already: how far the next budget is, and how many are tried."""
FIRST, AGAIN = 0, 1
"""Measurements of one model that differ by chance alone."""


@dataclass(frozen=True)
class Attempt(Generic[Choice]):
    """A candidate, what the table says of it, what it was measured at, and how far that is of what was asked.

    `reach` is 1 where it is exactly as fast as asked, above where it is faster. `readings`: how often it was timed.
    """

    choice: Choice
    predicted_ms: float
    timing: Timing
    reach: float
    readings: int = 1

    def hits(self, tolerance: float) -> bool:
        """Whether it is as fast as asked, and hardly faster."""
        return 1 <= self.reach <= 1 + tolerance


def aim(
    asked_ms: float,
    search: Callable[[float], Choice | None],
    predict: Callable[[Choice], float],
    measure: Callable[[Choice, int], Timing],
    reach: Callable[[Timing], float],
    tolerance: float = TOLERANCE,
    grow: Callable[[Choice, float], Choice | None] | None = None,
) -> list[Attempt[Choice]]:
    """Candidates until one is as fast as asked and at most `tolerance` faster; that is the last one, the best.

    `asked_ms` is the time to reach by the table's measure. The budget is corrected by the median of what was missed
    so far, so that a noisy measurement does not lead astray; where that leads to a model that was measured before, it
    moves on from there by small steps. What would be taken is measured `AGAIN` and must still seem right by both
    together: of several models whose readings scatter, one that was lucky is otherwise taken too often. Where
    `search` finds nothing new, the best so far is taken: the slowest that is fast enough, else the fastest.

    A little more budget may lead to quite another model. So the last of the tries `grow` from the slowest that is too
    fast: what they give in that budget keeps all that it has.
    """

    def read_again(attempt: Attempt[Choice]) -> Attempt[Choice]:
        timing = attempt.timing.pooled(measure(attempt.choice, AGAIN))
        return replace(attempt, timing=timing, reach=reach(timing), readings=2)

    attempts: list[Attempt[Choice]] = []
    factor = 1.0
    for number in range(ROUNDS):
        choice = _grown(grow, attempts, tolerance) if grow and number >= SEARCHED else None
        if choice is None:
            choice = _unmeasured(search, asked_ms * factor / (1 + tolerance / 2), attempts, tolerance)
        if choice is None and grow:
            choice = _grown(grow, attempts, tolerance)
        if choice is None:
            break
        timing = measure(choice, FIRST)
        attempt = Attempt(choice, predict(choice), timing, reach(timing))
        would_be_taken = attempt.reach >= 1 and _goodness(attempt) >= max(
            map(_goodness, attempts), default=(False, 0)
        )
        attempts.append(read_again(attempt) if would_be_taken else attempt)
        if attempts[-1].hits(tolerance):
            break
        factor = median(one.reach * one.predicted_ms / asked_ms for one in attempts)
    attempts.sort(key=_goodness)
    while attempts and attempts[-1].readings == 1:
        attempts[-1] = read_again(attempts[-1])
        attempts.sort(key=_goodness)
    return attempts


def _unmeasured(
    search: Callable[[float], Choice | None],
    budget: float,
    attempts: Sequence[Attempt[Choice]],
    tolerance: float,
) -> Choice | None:
    """The choice nearest to a budget that was not measured: more time after what was too fast, else less."""
    for _ in range(STEPS):
        choice = search(budget)
        known = next((one for one in attempts if one.choice == choice), None)
        if known is None:
            return choice
        budget *= 1 + STEP if known.reach > 1 + tolerance else 1 / (1 + STEP)
    return None


def _grown(
    grow: Callable[[Choice, float], Choice | None], attempts: Sequence[Attempt[Choice]], tolerance: float
) -> Choice | None:
    """A choice that was not measured, larger than the slowest that is too fast, smaller than what grew too slow."""
    fast = [one for one in attempts if one.reach > 1 + tolerance]
    if not fast:
        return None
    base = min(fast, key=lambda one: one.reach)
    room = base.predicted_ms * (base.reach / (1 + tolerance / 2) - 1)
    for _ in range(STEPS):
        choice = grow(base.choice, base.predicted_ms + room)
        if choice is None or all(one.choice != choice for one in attempts):
            return choice
        room /= 2
    return None


def _goodness(attempt: Attempt[Any]) -> tuple[bool, float]:
    """Greater is better: fast enough before too slow; then the slower of those, the faster of these."""
    enough = attempt.reach >= 1
    return enough, -attempt.reach if enough else attempt.reach

"""Hitting a speed: measure the exported model, correct the budget by what the prediction missed, and choose again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, TypeVar

from compressor.pruning.context import Timing

Choice = TypeVar("Choice")
"""What is chosen: equal choices are the same model."""

TOLERANCE = 0.02
"""A model may be so much faster than asked; slower it may not be."""
ROUNDS = 6
"""Models that are exported and measured at most, for one target."""
FIRST, AGAIN = 0, 1
"""Measurements of one model that differ by chance alone."""


@dataclass(frozen=True)
class Attempt(Generic[Choice]):
    """A candidate, what the table says of it, what it was measured at, and how far that is of what was asked.

    `reach` is 1 where it is exactly as fast as asked, above where it is faster.
    """

    choice: Choice
    predicted_ms: float
    timing: Timing
    reach: float


def aim(
    asked_ms: float,
    search: Callable[[float], Choice | None],
    predict: Callable[[Choice], float],
    measure: Callable[[Choice, int], Timing],
    reach: Callable[[Timing], float],
    tolerance: float = TOLERANCE,
) -> list[Attempt[Choice]]:
    """Candidates until one is as fast as asked and at most `tolerance` faster; that is the last one, the best.

    `asked_ms` is the time to reach by the table's measure. The budget is corrected by the median of what was missed
    so far, so that a noisy measurement does not lead astray. What seems right is measured `AGAIN` and must still seem
    so by both together: of several models whose readings scatter, one that was lucky is otherwise taken too often.
    Where `search` finds nothing within a budget, or nothing new, the best so far is taken: the slowest that is fast
    enough, else the fastest.
    """
    attempts: list[Attempt[Choice]] = []
    factor = 1.0
    for _ in range(ROUNDS):
        choice = search(asked_ms * factor / (1 + tolerance / 2))
        if choice is None or any(choice == attempt.choice for attempt in attempts):
            break
        timing = measure(choice, FIRST)
        if seems_right := 1 <= reach(timing) <= 1 + tolerance:
            timing = timing.pooled(measure(choice, AGAIN))
        attempts.append(Attempt(choice, predict(choice), timing, reach(timing)))
        if seems_right and 1 <= attempts[-1].reach <= 1 + tolerance:
            break
        factor = median(attempt.reach * attempt.predicted_ms / asked_ms for attempt in attempts)
    return sorted(attempts, key=_goodness)


def _goodness(attempt: Attempt[Any]) -> tuple[bool, float]:
    """Greater is better: fast enough before too slow; then the slower of those, the faster of these."""
    enough = attempt.reach >= 1
    return enough, -attempt.reach if enough else attempt.reach

"""The most speed within a loss: candidates of more and more speed are scored on the selection split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt

from compressor.errors import GateError
from compressor.pruning.speed.places import Choice
from compressor.pruning.speed.search import Array

NEAR = 1.06
"""The last speed that held and the first that did not lie no further apart than this."""
FURTHER = 1.04, 3
"""From one speed to the next when the search has refined what it goes by; how many are tried."""
ROUNDING = 1e-9


@dataclass
class Bounded:
    """Looks for the highest speed at which `drop` is at most `allowed`.

    `choose` gives the cheapest candidate at a speed under coefficients, `refine` the coefficients that a search finds
    there, `drop` the harm in the metric of a candidate. `tried` are speeds and what they lost, in order.
    """

    allowed: float
    choose: Callable[[float, Array], Choice | None]
    refine: Callable[[float], Array]
    drop: Callable[[Choice], float]
    tried: list[dict[str, float]] = field(default_factory=list)

    def furthest(self, even: Array, most: float) -> Choice:
        """Halve the way from 1 to `most` with `even` coefficients; then a search may go a little further.

        Losses do not rise steadily with speed: a higher speed that happens to be within is not looked for.

        Raises:
            GateError: even a model that is hardly faster loses more.
        """
        best, low, high = None, 1.0, most
        while high / low > NEAR:
            speed = sqrt(low * high)
            if choice := self._held(speed, even):
                best, low = choice, speed
            else:
                high = speed
        if best is None:
            raise GateError(
                f"target.max_metric_drop {self.allowed:g} cannot be met without training: on the selection split "
                f"{self.curve()} are lost; allow more, or ask for a speed and fine-tune"
            )
        coefficients, speed = self.refine(low), low
        for _ in range(FURTHER[1]):
            if not (choice := self._held(speed, coefficients)):
                break
            best, speed = choice, FURTHER[0] * speed
        return best

    def curve(self) -> str:
        """`0.1 points at 1.2x, 0.9 at 2x`: what was found, by speed."""
        rows = sorted(self.tried, key=lambda row: row["speedup"])
        return ", ".join(f"{100 * row['drop']:.2f} points at {row['speedup']:.3g}x" for row in rows)

    def _held(self, speed: float, coefficients: Array) -> Choice | None:
        """The candidate at this speed, if there is one that loses little enough."""
        choice = self.choose(speed, coefficients)
        if choice is None:
            return None
        drop = self.drop(choice)
        self.tried.append({"speedup": speed, "drop": drop})
        return choice if drop <= self.allowed + ROUNDING else None

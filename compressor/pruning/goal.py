"""What is asked for, whether it can be had, and whether it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compressor.errors import GateError, UserError
from compressor.pruning.aim import Attempt
from compressor.pruning.context import Timing


@dataclass(frozen=True)
class Goal:
    """One time asked for: `speedup` times faster than dense, or `latency_ms`.

    `dense_ms` is what the dense model takes that speedups are over, by the measure of the table that is used.
    """

    kind: str
    value: float
    dense_ms: float

    @property
    def asked_ms(self) -> float:
        """The time to reach, by the table."""
        return self.dense_ms / self.value if self.kind == "speedup" else self.value

    def reach(self, timing: Timing) -> float:
        """How much of it was reached: 1 is exactly as fast as asked."""
        return timing.speedup / self.value if self.kind == "speedup" else self.value / timing.ms

    def check(self, least_ms: float) -> None:
        """Raise UserError where even a model of hardly anything takes longer."""
        if self.asked_ms >= least_ms:
            return
        most = f"{self.dense_ms / least_ms:.3g}x" if self.kind == "speedup" else f"{least_ms:.3g} ms"
        raise UserError(
            f"target.{self.kind} {self.value:g} cannot be reached here: the dense model takes {self.dense_ms:.3g} "
            f"ms, and {least_ms:.3g} ms are left when all sub-layers but one have gone. The furthest is {most}"
        )

    def report(self, attempts: Sequence[Attempt[Any]]) -> dict[str, Any]:
        """What was asked, what was measured, and how it was come by; the best of `attempts` is the last.

        Raises:
            GateError: the exported model is certainly slower than asked.
        """
        best = attempts[-1]
        timing = best.timing
        value = timing.speedup if self.kind == "speedup" else timing.ms
        if best.reach < 1 and timing.ci95[1] / timing.speedup * best.reach < 1:
            raise GateError(
                f"target.{self.kind} {self.value:g} was not reached: the fastest of {len(attempts)} exported models "
                f"was measured at {value:.3g}; ask for that, or for less"
            )
        return {
            "asked": {self.kind: self.value},
            "measured": {**timing._asdict(), "reach": best.reach},
            "predicted_ms": best.predicted_ms,
            "attempts": [[attempt.predicted_ms, attempt.timing.ms, attempt.reach] for attempt in attempts],
        }

"""What is asked for, whether it can be had, and whether it was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.errors import GateError, UserError
from compressor.pruning.aim import Attempt
from compressor.pruning.context import Timing


@dataclass(frozen=True)
class Goal:
    """One time asked for: `speedup` times faster than dense, or `latency_ms`.

    `dense_ms` is what the dense model takes that speedups are over, by the measure of the table that is used, which
    is one of `precision`.
    """

    kind: str
    value: float
    dense_ms: float
    precision: str = "fp32"

    @property
    def asked_ms(self) -> float:
        """The time to reach, by the table."""
        return self.dense_ms / self.value if self.kind == "speedup" else self.value

    def reach(self, timing: Timing) -> float:
        """How much of it was reached: 1 is exactly as fast as asked."""
        return timing.speedup / self.value if self.kind == "speedup" else self.value / timing.ms

    def check_needed(self) -> None:
        """Raise UserError where the dense model takes no longer than asked."""
        if self.asked_ms >= self.dense_ms:
            raise UserError(
                f"target.{self.kind} {self.value:g} is reached without pruning: the dense model takes "
                f"{self.dense_ms:.3g} ms; ask for more"
            )

    def check(self, least_ms: float, curve: Mapping[str, float]) -> None:
        """Raise UserError where even a model of hardly anything takes longer, or the dense one no longer.

        `curve`: what smaller models take by the table, by what is left of them.
        """
        self.check_needed()
        asked = f"target.{self.kind} {self.value:g}"
        if self.asked_ms < least_ms:
            sizes = ", ".join(f"{self._text(ms)} with {left}" for left, ms in curve.items())
            raise UserError(
                f"{asked} cannot be reached here in {self.precision}: the dense model takes {self.dense_ms:.3g} ms, "
                f"and {least_ms:.3g} ms are left when all sub-layers but one have gone. The furthest is "
                f"{self._text(least_ms)}; {sizes}"
            )

    def report(self, attempts: Sequence[Attempt[Any]]) -> dict[str, Any]:
        """What was asked, what was measured, and how it was come by; the best of `attempts` is the last.

        Raises:
            GateError: the exported model is certainly slower than asked.
        """
        best = attempts[-1]
        timing = best.timing
        if self.reach(self._fastest(timing)) < 1:
            tried = ", ".join(
                f"{self._read(one.timing)} instead of {self._text(one.predicted_ms)}" for one in attempts
            )
            noise = ", on a machine that was busy with something else" if timing.noisy else ""
            raise GateError(
                f"target.{self.kind} {self.value:g} was not reached: {len(attempts)} {self.precision} models "
                f"were measured at {tried}{noise}. Ask for {self._read(timing)} or for less; `--from` this stage "
                "measures again"
            )
        return {
            "asked": {self.kind: self.value},
            "measured": {**timing._asdict(), "reach": best.reach},
            "predicted_ms": best.predicted_ms,
            "attempts": [[attempt.predicted_ms, attempt.timing.ms, attempt.reach] for attempt in attempts],
        }

    def _fastest(self, timing: Timing) -> Timing:
        """The fast end of what was measured."""
        return timing._replace(ms=timing.ms_ci95[0], speedup=timing.ci95[1])

    def _read(self, timing: Timing) -> str:
        """What was measured, as it was asked for."""
        return f"{timing.speedup:.3g}x" if self.kind == "speedup" else f"{timing.ms:.3g} ms"

    def _text(self, ms: float) -> str:
        """A time by the table, as it was asked for."""
        return f"{self.dense_ms / ms:.3g}x" if self.kind == "speedup" else f"{ms:.3g} ms"

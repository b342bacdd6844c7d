"""The penalty's schedule, and the gates' part in a training run (Shim et al. 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compressor.errors import UserError
from compressor.pruning.head_gates import HeadGates
from compressor.pruning.head_gates.gates import BinaryGates
from compressor.schema import steps_of


def penalty_share(step: int, start: int, warmup: int) -> float:
    """The share of the penalty at optimiser step `step` (from 0): none before `start`, whole `warmup` steps on."""
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / warmup) if warmup else 1.0


class HeadGatesPart:
    """Draws gates before every step and adds the penalty for those expected to be open."""

    def __init__(self, gates: BinaryGates, keys: HeadGates, seed: int) -> None:
        self.gates, self.keys, self.seed = gates, keys, seed
        self.strength = 0.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: all logits, with their own learning rate and no decay."""
        return [{"params": list(self.gates.logits), "lr": self.keys.gate_rate, "weight_decay": 0.0}]

    def before_step(self, step: int, total: int) -> None:
        """Set the penalty and draw the gates of this step.

        Raises:
            UserError: the penalty never comes to its strength.
        """
        start, warmup = (steps_of(s, total) for s in (self.keys.penalty_start, self.keys.penalty_warmup))
        if start + warmup > total:
            raise UserError(
                f"head-gates: {total} optimiser steps end before the penalty is whole (penalty_start {start} and "
                f"penalty_warmup {warmup} steps); train longer or shorten them"
            )
        self.strength = self.keys.penalty * penalty_share(step, start, warmup)
        self.gates.draw(self.seed, step)

    def loss(self) -> Tensor | None:
        """lambda(t) times the sum over all heads of the probability to be open."""
        return self.strength * self.gates.expected() if self.strength else None

    def log(self) -> dict[str, float]:
        """The penalty's strength, heads expected to be open, and heads that would be kept now."""
        return {
            "lambda": self.strength,
            "expected_heads": self.gates.expected().item(),
            "heads": float(sum(sum(row) for row in self.gates.open())),
        }

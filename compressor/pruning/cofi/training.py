"""Learning the gates: the target's schedule, the Lagrangian, and what counts as having come there.

Source: Xia et al. 2022, sections 3.1 and 4, and their published settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from compressor.errors import RunError
from compressor.pruning.cofi.gates import LearnedGates
from compressor.pruning.cofi.values import Constraint, Values
from compressor.pruning.lagrangian import ramp

LOST = 0.1
"""So far from the target, closing or opening the gates that matter least would make another network."""
AWAY = 0.25
"""So far from it when half of the time is over, training will not bring the gates back."""


class CofiPart:
    """Draws gates before every step and adds the Lagrangian of what they are expected to remove.

    `aim` sets where the target begins and ends; its steps count from the beginning of each training run.
    """

    def __init__(
        self,
        gates: LearnedGates,
        constraint: Constraint,
        learning_rate: float,
        warmup: Callable[[int], int],
        tolerance: float,
        seed: int,
    ) -> None:
        """`warmup`: the steps in which the target rises, of a run of so many."""
        self.gates = gates
        self.constraint = constraint
        self.learning_rate = learning_rate
        self.warmup = warmup
        self.tolerance = tolerance
        self.seed = seed
        self.start = self.goal = self.target = 0.0
        self.risen = False

    def aim(self, start: float, goal: float) -> None:
        """From now on the target rises from one share removed to another."""
        self.start, self.goal, self.risen = start, goal, False

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The logits go down, the multipliers up, both at a rate that never changes."""
        logits = list(self.gates.logits.values())
        rates = {"lr": self.learning_rate, "weight_decay": 0.0, "steady": True}
        return [{"params": logits, **rates}, self.gates.lagrangian.group(self.learning_rate)]

    def before_step(self, step: int, total: int) -> None:
        """Set the target and draw the gates of this step.

        Raises:
            RunError: half of the time at the target has gone, and the gates are nowhere near it.
        """
        steps = self.warmup(total)
        self.gates.clamp()
        self.gates.draw(self.seed + step)
        self.target = ramp(step, steps, self.start, self.goal)
        self.risen = step >= steps
        if self.risen and step == (steps + total) // 2:
            self.check(AWAY)

    def gap(self) -> Tensor:
        """What the gates are expected to remove, less the target."""
        return self.constraint(self.gates.probabilities()) - self.target

    def loss(self) -> Tensor:
        """The Lagrangian."""
        return self.gates.lagrangian(self.gap())

    def log(self) -> dict[str, float]:
        """Target, what is expected to go and what would go now, and the multipliers."""
        lagrangian, what = self.gates.lagrangian, self.constraint.what
        return {
            f"target_{what}": self.target,
            f"expected_{what}": self.target + self.gap().item(),
            what: self.removed(self.gates.decided()),
            "lambda_1": lagrangian.linear.item(),
            "lambda_2": lagrangian.quadratic.item(),
        }

    def removed(self, values: Values) -> float:
        """The share that decided values remove."""
        return self.constraint(values.open()).item()

    def rated(self, score: Callable[[], float]) -> float | None:
        """The score of the decided gates, brought to the target; `None` while that still rises or is far away."""
        self.gates.clamp()
        if not self.risen or abs(self.removed(self.gates.decided()) - self.goal) > LOST:
            return None
        self.gates.settled = self.gates.nearest(self.goal, self.constraint, self.tolerance)
        try:
            return score()
        finally:
            self.gates.settled = None

    def check(self, allowed: float = LOST) -> None:
        """Raise RunError where what the gates are expected to remove is further from the target."""
        expected = self.target + self.gap().item()
        if math.isfinite(expected) and abs(expected - self.goal) <= allowed:
            return
        raise RunError(
            f"cofi: the gates do not come to the target, {self.goal:.3g} ({self.constraint.what}), they are expected "
            f"to remove {expected:.3f} "
            f"(multipliers {self.gates.lagrangian.linear.item():.3g}, {self.gates.lagrangian.quadratic.item():.3g}); "
            f"train longer, raise gate_learning_rate (now {self.learning_rate:g}) where they are slow, lower it "
            "where they swing; the last checkpoints are kept"
        )

"""A constraint that training is held to by two multipliers which are raised while it is missed.

Source: the augmented Lagrangian of Wang, Wohlwend, Lei 2020 ("Structured Pruning of Large Language Models",
section 3.2), as used by Xia et al. 2022 (CoFi, section 3.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Lagrangian(nn.Module):
    """lambda1 gap + lambda2 gap^2: minimised by what is constrained, maximised by the multipliers.

    The gap is what is reached less what is wanted, so lambda1 falls while too little is reached. Neither multiplier
    is held to a sign, and the term may be negative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.zeros(()))

    def forward(self, gap: Tensor) -> Tensor:
        """The term for a scalar `gap`."""
        return self.linear * gap + self.quadratic * gap.square()

    def group(self, learning_rate: float) -> dict[str, Any]:
        """The multipliers' optimiser group: ascent, at a rate that never changes."""
        return {
            "params": list(self.parameters()),
            "lr": learning_rate,
            "weight_decay": 0.0,
            "maximize": True,
            "steady": True,
        }


def ramp(step: int, steps: int, start: float, end: float) -> float:
    """What is wanted before optimiser step `step` (from 0): a line from `start` to `end` at `steps`, then `end`."""
    return end if step >= steps else start + (end - start) * step / steps

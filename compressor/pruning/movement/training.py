"""The schedule of fine-pruning and its part in a training run (Lagunas et al. 2021, section 3 and appendix)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from compressor.errors import UserError
from compressor.pruning.movement.masks import Masks
from compressor.schema import steps_of

if TYPE_CHECKING:
    from compressor.pruning.movement import Movement


def threshold_at(step: int, total: int, warmup: int, cooldown: int, final: float) -> float:
    """Threshold before optimiser step `step`: 0 in the warm-up, cubic to `final`, constant in the cool-down.

    Raises:
        UserError: warm-up and cool-down leave no step in between.
    """
    if total <= warmup + cooldown:
        raise UserError(
            f"movement: {total} optimiser steps leave none between warmup ({warmup}) and cooldown ({cooldown}); "
            "train longer or shorten them"
        )
    if step <= warmup:
        return 0.0
    if step > total - cooldown:
        return final
    remaining = 1 - (step - warmup) / (total - warmup - cooldown)
    return final - final * remaining**3


class MovementPart:
    """Sets the threshold before every step and adds the regulariser, whose strength follows the threshold."""

    def __init__(self, masks: Masks, keys: Movement) -> None:
        self.masks = masks
        self.keys = keys
        self.strength = 0.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: all scores, with their own learning rate and no decay."""
        scores = [*self.masks.attention, *self.masks.ffn]
        return [{"params": scores, "lr": self.keys.score_learning_rate, "weight_decay": 0.0}]

    def before_step(self, step: int, total: int) -> None:
        """Move the threshold and the regulariser along their schedule."""
        keys = self.keys
        warmup, cooldown = steps_of(keys.warmup, total), steps_of(keys.cooldown, total)
        self.masks.threshold_now = threshold_at(step, total, warmup, cooldown, keys.threshold)
        self.strength = keys.regularization * self.masks.threshold_now / keys.threshold

    def loss(self) -> Tensor | None:
        """lambda(t) R(S)."""
        if self.strength == 0.0:
            return None
        keys = self.keys
        return self.strength * self.masks.regularization(
            keys.attention_regularization, keys.ffn_regularization
        )

    def log(self) -> dict[str, float]:
        """Threshold, regulariser strength and non-zero densities by part (if it were cut now)."""
        densities = {f"density_{part}": value for part, value in self.masks.densities().items()}
        return {"threshold": self.masks.threshold_now, "lambda": self.strength} | densities

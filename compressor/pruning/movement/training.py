"""The schedule of fine-pruning and its part in a training run (Lagunas et al. 2021, section 3 and appendix)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compressor.errors import UserError
from compressor.pruning.movement import OPEN, Movement
from compressor.pruning.movement.masks import Masks
from compressor.pruning.movement.patches import Patches
from compressor.schema import steps_of


def progress_at(step: int, total: int, warmup: int, cooldown: int) -> float:
    """How far the threshold has come before optimiser step `step`: 0 in the warm-up, cubic, 1 in the cool-down.

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
        return 1.0
    return 1.0 - (1 - (step - warmup) / (total - warmup - cooldown)) ** 3


class MovementPart:
    """Sets the threshold before every step and adds the regulariser, whose strength follows the threshold.

    With a `sparsity` to aim at, the threshold is at every step the one that removes its share of the way there.
    """

    def __init__(
        self, masks: Masks, patches: Patches, keys: Movement, seed: int = 0, sparsity: float | None = None
    ) -> None:
        self.masks = masks
        self.patches = patches
        self.keys = keys
        self.seed = seed
        self.sparsity = sparsity
        self.strength = 0.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: all scores, with their own learning rate and no decay."""
        scores = self.masks.parameters()
        return (
            [{"params": scores, "lr": self.keys.score_learning_rate, "weight_decay": 0.0}] if scores else []
        )

    def before_step(self, step: int, total: int) -> None:
        """Move threshold, regulariser and patches along their schedules."""
        keys, cut = self.keys, self.masks.cut
        progress = progress_at(step, total, steps_of(keys.warmup, total), steps_of(keys.cooldown, total))
        if self.sparsity is None:
            start = OPEN[keys.mask]
            cut.now = start + (cut.final - start) * progress
        else:
            cut.now = cut.final = self.masks.threshold_for(self.sparsity * progress)
        self.strength = keys.strength * progress
        self.masks.draw(self.seed + step)
        self.patches.move(step, total)

    def loss(self) -> Tensor | None:
        """lambda(t) R(S)."""
        return self.strength * self.masks.regularization() if self.strength else None

    def log(self) -> dict[str, float]:
        """Threshold, regulariser strength and non-zero densities by part (if it were cut now)."""
        densities = {f"density_{part}": value for part, value in self.masks.densities().items()}
        return {"threshold": self.masks.cut.now, "lambda": self.strength} | densities

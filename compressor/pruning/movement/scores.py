"""Scores of blocks, and the rules that turn them into masks.

Source: Lagunas et al. 2021, section 3; straight-through scores and topK from Sanh et al. 2020 (movement
pruning); hard-concrete masks from Louizos et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.pruning.hard_concrete import noise_like, open_probability, sample, stretched

NOISE_MARGIN = 1e-4
"""How near the published uniform noise comes to 0 and 1."""


def keep_largest(scores: Tensor, share: float) -> Tensor:
    """1 for exactly int(share x n) of the largest scores, ties broken by position; same shape."""
    count = int(share * scores.numel() + 1e-9)
    mask = torch.zeros_like(scores).flatten()
    mask[scores.flatten().topk(count).indices] = 1.0
    return mask.view_as(scores)


RULES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": lambda scores, threshold: (torch.sigmoid(scores) > threshold).to(scores.dtype),
    "raw": lambda scores, threshold: (scores > threshold).to(scores.dtype),
    "topk": keep_largest,
    "magnitude": keep_largest,
}
"""Which blocks stay: cut-offs are strict; `topk` and `magnitude` read the threshold as the share that is kept."""


@dataclass
class Cut:
    """Where all scores of a model are cut: `now` while it trains, `final` when it is evaluated."""

    rule: str
    final: float
    now: float
    min_keep: float = 0.0


class Scores(nn.Module):
    """One score for every block of a matrix, (block rows, block columns), or for every unit of a sub-layer, (units,).

    `protected` blocks stay whatever their score.
    """

    def __init__(self, initial: Tensor, cut: Cut) -> None:
        super().__init__()
        self.values = nn.Parameter(initial)
        self.cut = cut
        self.least = math.floor(cut.min_keep * initial.numel()) + 1 if cut.min_keep else 0
        self.protected: Tensor | None = None

    def ranking(self) -> Tensor:
        """What decides the order in which blocks go; no gradient."""
        return self.values.detach()

    def straight(self) -> Tensor:
        """What the gradient of the mask goes to, straight through."""
        return self.values

    def mask(self) -> Tensor:
        """1 where a block stays, in the shape of the scores; no gradient."""
        threshold = self.cut.now if self.training else self.cut.final
        return self.at_least(RULES[self.cut.rule](self.ranking(), threshold))

    def at_least(self, mask: Tensor) -> Tensor:
        """The mask with the `least` best blocks in it, and the protected ones."""
        if self.least and mask.count_nonzero() < self.least:
            mask = keep_largest(self.ranking(), self.least / mask.numel())
        return mask if self.protected is None else mask.maximum(self.protected)

    def penalty(self) -> Tensor:
        """Mean of the soft masks: sigmoid(S)."""
        return torch.sigmoid(self.values).mean()


class HardConcrete(Scores):
    """Soft masks of the L0 penalty: random while training, min(1, max(0, 1.2 sigmoid(S) - 0.1)) otherwise."""

    noise: Tensor | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Fresh noise, used until the next draw: all matrices that share scores must see the same."""
        self.noise = noise_like(self.values, generator, NOISE_MARGIN)

    def straight(self) -> Tensor:
        """The soft mask: its gradient goes on to the scores."""
        if self.training and self.noise is not None:
            return sample(self.values, self.noise)
        return stretched(torch.sigmoid(self.values))

    def mask(self) -> Tensor:
        """The soft mask, without gradient."""
        return self.at_least(self.straight().detach())

    def penalty(self) -> Tensor:
        """Mean probability that a mask is not zero."""
        return open_probability(self.values).mean()


class Magnitudes(Scores):
    """Nothing learned: a block's rank is the mean of its |weights|, over all matrices that share the scores."""

    def __init__(self, initial: Tensor, cut: Cut) -> None:
        super().__init__(initial, cut)
        self.values.requires_grad_(False)
        self.sources: list[tuple[Callable[[], Tensor], int | None]] = []

    def ranking(self) -> Tensor:
        """Sum over the matrices of the mean |weight| by block."""
        shape = self.values.shape
        return torch.stack([_block_means(weight(), shape, axis) for weight, axis in self.sources]).sum(dim=0)


def _block_means(weight: Tensor, shape: torch.Size, axis: int | None) -> Tensor:
    """Mean |weight| by block: a grid of them, or slices along one axis; of that shape."""
    rows, columns = shape if axis is None else (shape[0], 1) if axis == 0 else (1, shape[0])
    blocks = weight.detach().abs().view(rows, weight.shape[0] // rows, columns, weight.shape[1] // columns)
    return blocks.mean(dim=(1, 3)).view(shape)


KINDS: dict[str, type[Scores]] = {"l0": HardConcrete, "magnitude": Magnitudes}
"""Rules whose scores are more than a threshold on what was learned."""

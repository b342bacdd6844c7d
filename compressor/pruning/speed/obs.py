"""Structured optimal brain surgeon: which units of a linear map go first, and the best weights without them.

The map's inputs come in units of `size` columns: a neuron has one, a head as many as it is wide. Inputs are taken
around their mean, so that the map's bias makes up for whatever a removed unit outputs on average; that is the same as
a constant input that may never go. Sources: Kurtic, Frantar, Alistarh, "ZipLM" (NeurIPS 2023); Hassibi and Stork,
"Optimal Brain Surgeon" (1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

DAMPING = 1e-2
"""Added to the diagonal of every covariance, as a share of its mean: the published value."""
TINY = 1e-12
"""The mean variance of inputs that never change, so that their covariance can be inverted too."""
CANDIDATES = 4
"""Blocks of lowest scores inside which the units of one block are chosen one by one."""
COMPACT = 0.75
"""Removed units are dropped from the matrices when fewer than this share is left."""


def damped(covariance: Tensor) -> Tensor:
    """A covariance (d, d) that can be inverted, in float64."""
    matrix = covariance.double()
    extra = DAMPING * matrix.diagonal().mean().clamp(min=TINY)
    return matrix + extra * torch.eye(len(matrix), dtype=matrix.dtype)


def removal_order(
    covariance: Tensor, weight: Tensor, size: int, block: int = 1
) -> tuple[list[int], list[float]]:
    """The order in which the units of `weight` (out, units * size) go, and by how much the error grows each time.

    The error is tr(dW C dW') for the damped covariance C: the squared change of the outputs, summed over rows, a
    sample. After every removal the rest makes up for it. `block` units are taken out together; inside a block they
    are still chosen one by one, among those of lowest score.
    """
    inverse = torch.linalg.inv(damped(covariance))
    left = weight.double().clone()
    alive = torch.arange(weight.shape[1] // size)
    gone = torch.zeros(len(alive), dtype=torch.bool)
    order: list[int] = []
    growth: list[float] = []
    while not gone.all():
        scores = _scores(inverse, left, size).masked_fill(gone, float("inf"))
        count = min(block, int((~gone).sum()))
        near = scores.argsort(stable=True)[: CANDIDATES * block if block > 1 else 1]
        near = near[~gone[near]]
        chosen, errors = _one_by_one(inverse, left, near, size, count)
        _remove(inverse, left, _columns(chosen, size))
        order += alive[chosen].tolist()
        growth += errors
        gone[chosen] = True
        if (~gone).sum() < COMPACT * len(alive):
            keep = (~gone).nonzero().flatten()
            at = _columns(keep, size)
            inverse, left = inverse[at][:, at].contiguous(), left[:, at].contiguous()
            alive, gone = alive[keep], gone[keep]
    return order, growth


def _one_by_one(
    inverse: Tensor, weight: Tensor, near: Tensor, size: int, count: int
) -> tuple[Tensor, list[float]]:
    """Remove `count` of the units `near`, looking at nothing else: which, and by how much the error grows."""
    at = _columns(near, size)
    inner, part = inverse[at][:, at], weight[:, at]
    gone = torch.zeros(len(near), dtype=torch.bool)
    errors = []
    chosen = []
    for _ in range(count):
        scores = _scores(inner, part, size).masked_fill(gone, float("inf"))
        best = int(scores.argmin())
        errors.append(float(scores[best]))
        chosen.append(best)
        if len(chosen) < count:
            _remove(inner, part, _columns(torch.tensor([best]), size))
            gone[best] = True
    return near[chosen], errors


def _scores(inverse: Tensor, weight: Tensor, size: int) -> Tensor:
    """By how much the error would grow without each unit, (units,): tr(W_s inv(inv(C)_ss) W_s')."""
    if size == 1:
        return weight.square().sum(dim=0) / inverse.diagonal()
    units = weight.shape[1] // size
    at = torch.arange(units)
    blocks = inverse.reshape(units, size, units, size)[at, :, at]
    parts = weight.reshape(-1, units, size).permute(1, 2, 0)
    factors = torch.linalg.cholesky(blocks)
    return torch.linalg.solve_triangular(factors, parts, upper=False).square().sum(dim=(1, 2))


def _remove(inverse: Tensor, weight: Tensor, columns: Tensor) -> None:
    """Take `columns` out in place: the others make up for them, and the inverse is that of what is left."""
    factor = torch.linalg.cholesky(inverse[columns][:, columns])
    half = torch.linalg.solve_triangular(factor, inverse[columns], upper=False)
    share = torch.linalg.solve_triangular(factor, weight[:, columns].T, upper=False)
    weight.addmm_(share.T, half, alpha=-1)
    inverse.addmm_(half.T, half, alpha=-1)
    weight[:, columns] = 0
    inverse[columns] = 0
    inverse[:, columns] = 0
    inverse[columns, columns] = 1


def _columns(units: Tensor, size: int) -> Tensor:
    """The columns of units, in order."""
    return (units[:, None] * size + torch.arange(size)).flatten()


@dataclass(frozen=True)
class LeastSquares:
    """The best weights of a linear map for any number of kept units, when units go in a given `order`.

    `weight` (out, units * size), `bias` (out,), `mean` and `covariance` of its inputs. One factorisation serves every
    number, as what is kept is always the beginning of the order turned round.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    covariance: Tensor
    order: Sequence[int]
    size: int

    def kept(self, count: int) -> list[int]:
        """The last `count` units to go, ascending."""
        return sorted(self.order[len(self.order) - count :])

    def solve(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight (out, units * size) with zeros at what is removed, and bias, in the dtype of the map."""
        width = count * self.size
        solved = torch.zeros_like(self.weight, dtype=torch.float64)
        if width:
            factor = self._factor[:width, :width]
            solved[:, self._columns[:width]] = torch.cholesky_solve(self._targets[:, :width].T, factor).T
        bias = self.bias.double() + (self.weight.double() - solved) @ self.mean.double()
        return solved.to(self.weight.dtype), bias.to(self.bias.dtype)

    @cached_property
    def _columns(self) -> Tensor:
        return _columns(torch.tensor(self.order).flip(0), self.size)

    @cached_property
    def _damped(self) -> Tensor:
        return damped(self.covariance)

    @cached_property
    def _factor(self) -> Tensor:
        return torch.linalg.cholesky(self._damped[self._columns][:, self._columns])

    @cached_property
    def _targets(self) -> Tensor:
        return (self.weight.double() @ self._damped)[:, self._columns]

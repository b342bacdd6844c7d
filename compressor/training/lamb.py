"""LAMB: Adam's step, made as long as the weights it changes (You et al. 2020), for large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

LONGEST = 10.0
"""Norm of weights beyond which the step grows no more (You et al. 2020, section 3)."""


class Lamb(torch.optim.Optimizer):
    """w - lr r u with u = m / (sqrt(v) + eps) + decay w and the trust ratio r = |w| / |u|, tensor by tensor.

    The moments m and v are not corrected for their start. r is 1 where either norm is 0; a group that is to
    `maximize` climbs. Every tensor of a group is of one kind (a matrix, a vector of gates).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every tensor that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    grad = -parameter.grad if group["maximize"] else parameter.grad
                    self._move(parameter, grad, group)
        return loss

    def _move(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["first"], state["second"] = torch.zeros_like(weight), torch.zeros_like(weight)
        slow, slower = group["betas"]
        state["first"].lerp_(grad, 1 - slow)
        state["second"].mul_(slower).addcmul_(grad, grad, value=1 - slower)
        update = state["first"] / (state["second"].sqrt() + group["eps"]) + group["weight_decay"] * weight
        length, step = weight.norm().clamp(max=LONGEST), update.norm()
        ratio = torch.where((length > 0) & (step > 0), length / (step + group["eps"]), torch.ones_like(step))
        weight.sub_(group["lr"] * ratio * update)

"""AdamW or LAMB in groups: decayed weights, biases and norms, and a method's own parameters.

A method's group may be `steady`: its rate is constant and its gradients are not clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from compressor.schema import TrainingKeys
from compressor.training.lamb import Lamb

Groups = Sequence[dict[str, Any]]


def make_optimizer(model: nn.Module, keys: TrainingKeys, groups: Groups) -> torch.optim.Optimizer:
    """An optimiser of everything in `model` that is trained; `groups` are the method's."""
    special = {id(p) for group in groups for p in group["params"]}
    ordinary = [p for p in model.parameters() if p.requires_grad and id(p) not in special]
    decayed = [p for p in ordinary if p.dim() > 1]
    rest = [p for p in ordinary if p.dim() <= 1]
    every = [
        {"params": decayed, "weight_decay": keys.weight_decay},
        {"params": rest, "weight_decay": 0.0},
        *groups,
    ]
    if keys.optimizer == "lamb":
        return Lamb(every, lr=keys.learning_rate)
    return torch.optim.AdamW(every, lr=keys.learning_rate, fused=True)


def keep_steady(scheduler: Any) -> None:
    """Take the steady groups out of a schedule that was just made."""
    for i, group in enumerate(scheduler.optimizer.param_groups):
        if group.get("steady"):
            scheduler.lr_lambdas[i] = lambda _: 1.0
            group["lr"] = group["initial_lr"]


def clipping_the_rest(clip: Callable[..., Any], groups: Groups) -> Callable[..., Any]:
    """`clip(parameters, ...)` that leaves out the steady groups."""
    steady = {id(p) for group in groups if group.get("steady") for p in group["params"]}

    def clip_rest(parameters: Any, *limits: Any) -> Any:
        return clip([p for p in parameters if id(p) not in steady], *limits)

    return clip_rest

"""The hard-concrete distribution: gates between 0 and 1 that reach both ends, and whose logits can be learned.

Source: Louizos, Welling, Kingma 2018 ("Learning Sparse Neural Networks through L0 Regularization"), section 2.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Temperature, and the limits to which (0, 1) is stretched before it is clipped back."""
EPSILON = 1e-6
"""Noise and probabilities keep this distance from 0 and 1."""
SHIFT = BETA * math.log(-LOW / HIGH)
"""The logit at which a gate is as likely closed as not: -1.5986."""


def noise_like(logits: Tensor, generator: torch.Generator, margin: float = EPSILON) -> Tensor:
    """Logistic noise for `logits`, drawn on the CPU: the same on every device."""
    uniform = torch.rand(logits.shape, generator=generator).clamp(margin, 1 - margin)
    return torch.logit(uniform).to(logits)


def stretched(share: Tensor) -> Tensor:
    """Values of (0, 1) stretched to (LOW, HIGH) and clipped to [0, 1]."""
    return (share * (HIGH - LOW) + LOW).clamp(0, 1)


def sample(logits: Tensor, noise: Tensor, temperature: float = BETA) -> Tensor:
    """Gates in [0, 1] for `logits` and logistic `noise` of the same shape; the gradient goes to the logits."""
    return stretched(torch.sigmoid((logits + noise) / temperature))


def open_probability(logits: Tensor, temperature: float = BETA) -> Tensor:
    """The probability that a gate is not zero, same shape."""
    return torch.sigmoid(logits - SHIFT * (temperature / BETA)).clamp(EPSILON, 1 - EPSILON)


def decide(
    logits: Tensor, sharpness: float = 1 / BETA, shift: float = 0.0, least: int = 0, multiple: int = 1
) -> Tensor:
    """What the gates of every row of `logits` (rows, gates) are once chance is over; same shape.

    A row keeps as many gates as it is expected to have open, the largest ones (of equal ones the last), at
    sigmoid(sharpness x logit); the others are zero. Xia et al. 2022 (CoFi) use the sharpness 0.8 / BETA. `shift`
    counts the gates as if every logit were so much larger; at least `least` are kept, and a `multiple` of them.
    """
    size = logits.shape[-1]
    expected = open_probability(logits.double() + shift).sum(dim=-1)
    kept = (size - (size - expected).round()).clamp(min=least)
    kept = ((kept / multiple).ceil() * multiple).clamp(max=size)
    order = logits.argsort(dim=-1, stable=True).argsort(dim=-1)
    return torch.sigmoid(sharpness * logits) * (order >= (size - kept).unsqueeze(-1))

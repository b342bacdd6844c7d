"""What a language model gives, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

IGNORED_LABEL = -100
"""In place of a next token that is not asked for."""


@dataclass
class LanguageOutput(ModelOutput):
    """`loss`, the mean of `losses` (batch, length) in nats, where there were labels, else `logits`.

    `logits` (batch, length, vocabulary) score the next token; `memory` is what the next segment is read with.
    """

    loss: Tensor | None = None
    losses: Tensor | None = None
    logits: Tensor | None = None
    memory: Tensor | Sequence[Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of every label, (batch, length) in nats; 0 where it is `IGNORED_LABEL`."""
    asked = labels != IGNORED_LABEL
    chosen = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (logits.logsumexp(dim=-1) - chosen) * asked


def mean_loss(losses: Tensor, labels: Tensor) -> Tensor:
    """The mean of the losses that are asked for."""
    return losses.sum() / (labels != IGNORED_LABEL).sum().clamp(min=1)

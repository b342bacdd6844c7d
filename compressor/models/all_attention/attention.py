"""Attention to the tokens of a band and to persistent vectors, in one softmax.

Source: Dai et al. 2019 (Transformer-XL), section 3.3, with learned positions; Sukhbaatar et al. 2019 ("Augmenting
Self-attention with Persistent Memory"), section 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compressor.models.all_attention.config import DecoderConfig


class Band:
    """Which tokens see which, and how far they are apart: the same in every layer."""

    def __init__(self, length: int, before: int, reach: int, device: torch.device) -> None:
        """`length` tokens after `before` remembered ones; each sees itself and the `reach` before it."""
        queries = torch.arange(length, device=device).unsqueeze(1) + before
        distance = queries - torch.arange(length + before, device=device)
        self.hidden = (distance < 0) | (distance > reach)
        """(length, before + length): where a token may not look."""
        self.distance = distance.clamp(0, reach)
        """Same shape: how many tokens back."""


class AllAttention(nn.Module):
    """What the heads read from tokens and persistent vectors, side by side.

    The last axis of every parameter but the projections' is as wide as all heads, so that each owns a part of it.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.width = config.num_attention_heads, config.hidden_size
        self.head_size = config.hidden_size // config.num_attention_heads
        self.persistent = config.persistent_vectors
        self.q, self.k, self.r, self.v = (
            nn.Linear(config.hidden_size, self.width, bias=False) for _ in range(4)
        )
        self.content_bias = nn.Parameter(torch.zeros(self.width))
        self.position_bias = nn.Parameter(torch.zeros(self.width))
        if self.persistent:
            self.persistent_keys = nn.Parameter(torch.zeros(self.persistent, self.width))
            self.persistent_values = nn.Parameter(torch.zeros(self.persistent, self.width))
        self.dropout = nn.Dropout(config.attention_dropout)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen of `x` (batch, length, hidden): twice (batch, length, heads x head size)."""
        return self.k(x), self.v(x)

    def forward(self, x: Tensor, seen: tuple[Tensor, Tensor], positions: Tensor, band: Band) -> tuple[Tensor]:
        """What the heads read.

        Args:
            x: (batch, length, hidden).
            seen: keys and values of the tokens before and of `x`, each (batch, before + length, width).
            positions: of the distances from 0, (reach + 1, hidden).
            band: which of them each token sees.

        Returns:
            (batch, length, heads x head size).
        """
        keys, values = (self._by_head(part) for part in seen)
        q = self.q(x)
        scores = self._by_head(q + self.content_bias) @ keys.transpose(2, 3)
        far = self._by_head(q + self.position_bias) @ self._of_heads(self.r(positions))
        scores = scores + far.gather(3, band.distance.expand_as(scores))
        scores = (scores / math.sqrt(self.head_size)).masked_fill(band.hidden, -math.inf)
        if self.persistent:
            learned = self._by_head(q) @ self._of_heads(self.persistent_keys)
            weights = self._weights(torch.cat([learned, scores], dim=3)).to(values.dtype)
            constants = self._of_heads(self.persistent_values * math.sqrt(self.persistent)).transpose(1, 2)
            read = weights[..., : self.persistent] @ constants + weights[..., self.persistent :] @ values
        else:
            read = self._weights(scores).to(values.dtype) @ values
        return (read.transpose(1, 2).flatten(2),)

    def _weights(self, scores: Tensor) -> Tensor:
        """What is attended to, same shape: in fp32, as a CPU's autocast would not have it."""
        return self.dropout(scores.float().softmax(dim=3))

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, length, width) as (batch, heads, length, head size)."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_size).transpose(1, 2)

    def _of_heads(self, x: Tensor) -> Tensor:
        """(count, width) as (heads, head size, count)."""
        return x.view(-1, self.heads, self.head_size).permute(1, 2, 0)

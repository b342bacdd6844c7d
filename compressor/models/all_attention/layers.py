"""A layer of the decoders with memory: attention and, in Transformer-XL, an FFN; norms stand first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.models.all_attention.attention import AllAttention, Band
from compressor.models.all_attention.config import DecoderConfig, TransformerXLConfig


class FeedForward(nn.Module):
    """The FFN sub-layer, norm first."""

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = nn.ReLU()
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, h: Tensor) -> Tensor:
        """`h` (batch, length, hidden), same shape out."""
        return h + self.dropout(self.output(self.activation(self.dense(self.norm(h)))))


class DecoderLayer(nn.Module):
    """Attention to memory, segment and persistent vectors, norm first; then the FFN, where the family has one."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.core = AllAttention(config)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.ffn = FeedForward(config) if isinstance(config, TransformerXLConfig) else None

    @property
    def remembers(self) -> bool:
        """Whether it has heads, so that it needs a memory."""
        return isinstance(self.core, AllAttention)

    def forward(
        self, h: Tensor, memory: Tensor | None, positions: Tensor, band: Band
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output, and all that it could remember.

        Args:
            h: (batch, length, hidden).
            memory: what came before, if it remembers: its own inputs (batch, before, hidden), normed here with `h`,
                or what it made of them (2, batch, before, width): keys and values.
            positions: of the distances from 0, (reach + 1, hidden).
            band: which tokens see which.

        Returns:
            Shaped like `h`, and like `memory` but longer.
        """
        x = self.norm(h)
        if not self.remembers:
            (read,), made = self.core(x), None
        elif memory is not None and memory.dim() == 4:
            keys, values = self.core.keys_values(x)
            keys, values = torch.cat([memory[0], keys], dim=1), torch.cat([memory[1], values], dim=1)
            (read,), made = self.core(x, (keys, values), positions, band), torch.stack([keys, values])
        else:
            assert memory is not None
            seen = self.core.keys_values(torch.cat([self.norm(memory), x], dim=1))
            (read,), made = self.core(x, seen, positions, band), torch.cat([memory, h], dim=1)
        h = h + self.dropout(self.output(read))
        return (h if self.ffn is None else self.ffn(h)), made

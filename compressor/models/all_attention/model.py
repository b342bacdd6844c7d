"""Decoders with memory: the All-attention Transformer, and Transformer-XL as its baseline.

Each layer remembers its own inputs, so that a stream can be read in segments of any length. Source: Shim, Choi, Sung,
Choi 2021 ("Layer-wise Pruning of Transformer Attention Heads for Efficient Language Modeling"); Dai et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from compressor.models.all_attention.attention import AllAttention, Band
from compressor.models.all_attention.config import AllAttentionConfig, DecoderConfig, TransformerXLConfig
from compressor.models.all_attention.layers import DecoderLayer, FeedForward
from compressor.models.all_attention.vocabulary import Embeddings, TiedSoftmax
from compressor.models.language_output import LanguageOutput, mean_loss

Memory = Tensor | Sequence[Tensor]
"""What the remembering layers (those with heads) know of the tokens before a segment: their inputs, one tensor
(layers, batch, before, hidden), or keys and values, one tensor a layer (2, batch, before, heads x head size). These
need less room where few heads are left, and no projection at every segment."""


@dataclass
class DecoderOutput(ModelOutput):
    """`last_hidden_state` (batch, length, hidden), and the memory for the segment that follows.

    `hidden_states`, where asked for: before the first layer and after each.
    """

    last_hidden_state: Tensor | None = None
    memory: Memory | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class DecoderPreTrained(PreTrainedModel):
    """What transformers needs to know: names, and how weights begin."""

    config_class: type[DecoderConfig] = DecoderConfig
    base_model_prefix = "transformer"

    def _init_weights(self, module: nn.Module) -> None:
        """Uniform weights as released; transformers calls this for children before their parents.

        Released weights let every query read all persistent vectors alike, so that these have one gradient and hardly
        learn in a short training. With `spread` they are told apart from the start.
        """
        wide = 1 / math.sqrt(self.config.hidden_size)
        spread = self.config.initial_weights == "spread"
        narrow = wide if spread else wide / math.sqrt(self.config.num_hidden_layers)
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.uniform_(module.weight, -wide, wide)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, AllAttention):
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                elif spread and name == "persistent_keys":
                    nn.init.normal_(parameter)
                elif spread and name == "persistent_values":
                    nn.init.normal_(parameter, std=1 / math.sqrt(module.persistent))
                else:
                    nn.init.uniform_(parameter, -narrow, narrow)
        elif isinstance(module, FeedForward):
            bound = 1 / math.sqrt(module.output.in_features)
            nn.init.uniform_(module.output.weight, -bound, bound)
        elif isinstance(module, DecoderModel):
            nn.init.uniform_(module.positions, -wide, wide)


class DecoderModel(DecoderPreTrained):
    """Embeddings and layers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.positions = nn.Parameter(torch.zeros(config.distances, config.hidden_size))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.output_dropout = nn.Dropout(config.output_dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Tables and projections together."""
        return self.embeddings

    def initial_memory(self, batch: int) -> Tensor:
        """What stands before a stream, (remembering layers, batch, 0 or `memory_length`, hidden)."""
        config = self.config
        length = config.memory_length if config.initial_memory == "zeros" else 0
        layers = sum(layer.remembers for layer in self._layers())
        return self.positions.new_zeros(layers, batch, length, config.hidden_size)

    def initial_cache(self, batch: int) -> tuple[Tensor, ...]:
        """The same as keys and values: for every remembering layer (2, batch, length, width)."""
        layers = [layer for layer in self._layers() if layer.remembers]
        return tuple(
            torch.stack(layer.core.keys_values(layer.norm(memory)))
            for layer, memory in zip(layers, self.initial_memory(batch), strict=True)
        )

    def forward(
        self, input_ids: Tensor, memory: Memory | None = None, output_hidden_states: bool = False
    ) -> DecoderOutput:
        """Read a segment `input_ids` (batch, length) after a `memory`; without one, after the initial one."""
        if memory is None:
            memory = self.initial_memory(input_ids.shape[0])
        reach = self.config.memory_length
        band = Band(input_ids.shape[1], _length(memory), reach, input_ids.device)
        positions = self.embedding_dropout(self.positions[: reach + 1])
        h = self.embedding_dropout(self.embeddings(input_ids)) * math.sqrt(self.config.hidden_size)
        kept: list[Tensor] = []
        states = [h]
        for layer in self._layers():
            h, made = layer(h, memory[len(kept)] if layer.remembers else None, positions, band)
            if made is not None:
                kept.append(made[..., -reach:, :].detach())
            states.append(h)
        as_given = torch.stack(kept) if isinstance(memory, Tensor) and kept else tuple(kept)
        return DecoderOutput(
            self.output_dropout(h),
            as_given if kept else memory,
            tuple(states) if output_hidden_states else None,
        )

    def _layers(self) -> list[Any]:
        return list(self.layers)


def _length(memory: Memory) -> int:
    """How many tokens a memory of either kind holds."""
    if isinstance(memory, Tensor):
        return memory.shape[2]
    return memory[0].shape[2] if memory else 0


class DecoderForCausalLM(DecoderPreTrained):
    """A decoder with its softmax."""

    decoder_class: type[DecoderModel] = DecoderModel

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.transformer = self.decoder_class(config)
        self.softmax = TiedSoftmax(config)
        self.post_init()

    def get_output_embeddings(self) -> None:
        """None apart: the softmax reads the embeddings' tables."""

    def initial_memory(self, batch: int) -> Tensor:
        """What stands before a stream, (remembering layers, batch, 0 or `memory_length`, hidden)."""
        return self.transformer.initial_memory(batch)

    def initial_cache(self, batch: int) -> tuple[Tensor, ...]:
        """The same as keys and values: for every remembering layer (2, batch, length, width)."""
        return self.transformer.initial_cache(batch)

    def forward(
        self,
        input_ids: Tensor,
        memory: Memory | None = None,
        labels: Tensor | None = None,
        last: bool = False,
    ) -> LanguageOutput:
        """Read a segment `input_ids` (batch, length) after a `memory`; without one, after the initial one.

        `labels` are the tokens that follow each, -100 where none is asked for. The memory that comes back is of the
        kind that was given, at most `memory_length` tokens long, and detached. Logits of an adaptive softmax are
        logarithms of probabilities; with `last` they are those of the last token alone.
        """
        body = self.transformer(input_ids, memory)
        wanted = body.last_hidden_state[:, -1:] if last else body.last_hidden_state
        states = wanted.flatten(0, 1)
        if labels is None:
            logits = self.softmax(states, self.transformer.embeddings)
            return LanguageOutput(logits=logits.view(*wanted.shape[:2], -1), memory=body.memory)
        losses = self.softmax.losses(states, labels.flatten(), self.transformer.embeddings)
        return LanguageOutput(mean_loss(losses, labels.flatten()), losses.view_as(labels), memory=body.memory)


class AllAttentionModel(DecoderModel):
    """The All-attention Transformer without its softmax."""

    config_class = AllAttentionConfig


class AllAttentionForCausalLM(DecoderForCausalLM):
    """The All-attention Transformer."""

    config_class = AllAttentionConfig
    decoder_class = AllAttentionModel


class TransformerXLModel(DecoderModel):
    """Transformer-XL without its softmax."""

    config_class = TransformerXLConfig


class TransformerXLForCausalLM(DecoderForCausalLM):
    """Transformer-XL with learned positions, norm first: the same in all but the FFN."""

    config_class = TransformerXLConfig
    decoder_class = TransformerXLModel

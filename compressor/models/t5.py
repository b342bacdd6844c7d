"""T5's attention with as many heads a layer as are left, and the relative positions that all layers share.

transformers keeps the table of relative positions inside the first layer and hands its rows on, one for every head of
the dense model. Here the stack owns it, every layer takes the rows of its own heads, and the first layer may go. The
names of stored tensors stay as they are there, so that plain transformers opens what is saved. Source: Raffel et al.
2020.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import EncoderDecoderCache
from transformers.models.t5.modeling_t5 import T5Attention

TABLE = "relative_positions"
THEIRS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
OURS = f"{TABLE}.weight"


class RelativePositions(nn.Module):
    """A learned number for every head and bucket of distances."""

    def __init__(self, theirs: T5Attention) -> None:
        super().__init__()
        self.weight = nn.Parameter(theirs.relative_attention_bias.weight.detach().clone())
        self.buckets, self.farthest = (
            theirs.relative_attention_num_buckets,
            theirs.relative_attention_max_distance,
        )
        self.both_ways = not theirs.is_decoder

    def forward(self, queries: Tensor, keys: int) -> Tensor:
        """Places of the queries (length,), number of keys; returns (1, heads, queries, keys)."""
        distances = torch.arange(keys, device=queries.device)[None, :] - queries[:, None]
        found = T5Attention._relative_position_bucket(distances, self.both_ways, self.buckets, self.farthest)
        return nn.functional.embedding(found, self.weight).permute(2, 0, 1).unsqueeze(0)


class SharedPositionAttention(nn.Module):
    """In place of transformers' attention: same arguments, same result.

    `units` are the heads that are left, by their numbers in the dense model.
    """

    def __init__(self, theirs: T5Attention, table: RelativePositions | None) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = theirs.q, theirs.k, theirs.v, theirs.o
        self.n_heads, self.head_size, self.inner_dim = (
            theirs.n_heads,
            theirs.key_value_proj_dim,
            theirs.inner_dim,
        )
        self.units: tuple[int, ...] = tuple(range(theirs.n_heads))
        self.dropout, self.layer_idx = theirs.dropout, theirs.layer_idx
        self._table = (table,)  # in a tuple: it is the stack's module, not this one's

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        cache_position: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden_states` (batch, length, hidden), same shape out.

        `position_bias` is what an earlier layer gave: mask and, in self-attention, positions of all heads that the
        dense model has, (batch or 1, heads or 1, length, keys).
        """
        crossing = key_value_states is not None
        queries = self._by_head(self.q(hidden_states))
        cache, known = _cache_of(past_key_values, crossing, self.layer_idx)
        if crossing and known:
            keys, values = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        else:
            source = hidden_states if key_value_states is None else key_value_states
            keys, values = self._by_head(self.k(source)), self._by_head(self.v(source))
            if cache is not None:
                keys, values = cache.update(keys, values, self.layer_idx, {"cache_position": cache_position})
                if crossing:
                    past_key_values.is_updated[self.layer_idx] = True
        if position_bias is None:
            position_bias = self._bias(queries.shape[2], keys.shape[2], cache_position, mask, queries.device)
        scores = queries @ keys.transpose(2, 3)
        if position_bias is not None:
            scores = scores + self._of_own_heads(position_bias)
        shares = nn.functional.dropout(
            scores.float().softmax(dim=-1).type_as(scores), self.dropout, self.training
        )
        read = (shares @ values).transpose(1, 2).flatten(2)
        return self.o(read), position_bias

    def _bias(
        self, queries: int, keys: int, places: Tensor | None, mask: Tensor | None, device: torch.device
    ) -> Tensor | None:
        table = self._table[0]
        if table is None:
            return mask
        if places is None:
            places = torch.arange(queries, device=device)
        bias: Tensor = table(places, keys)
        return bias if mask is None else bias + mask[..., :keys]

    def _of_own_heads(self, bias: Tensor) -> Tensor:
        if bias.shape[1] == 1 or len(self.units) == bias.shape[1]:
            return bias
        return bias.index_select(1, torch.tensor(self.units, device=bias.device))

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, length, width) as (batch, heads, length, head size)."""
        return x.view(x.shape[0], -1, self.n_heads, self.head_size).transpose(1, 2)


def _cache_of(past: Any, crossing: bool, layer: int) -> tuple[Any, bool]:
    """The cache that keys and values of this attention go to, and whether they are in it already."""
    if not isinstance(past, EncoderDecoderCache):
        return past, False
    cache = past.cross_attention_cache if crossing else past.self_attention_cache
    return cache, bool(past.is_updated.get(layer))


def share_positions(model: PreTrainedModel) -> None:
    """Give a T5 attention that takes the rows of its own heads, in place."""
    for stack in (model.base_model.encoder, model.base_model.decoder):
        first = stack.block[0].layer[0].SelfAttention
        if not isinstance(first, T5Attention):
            continue
        table = RelativePositions(first)
        stack.add_module(TABLE, table)
        for block in stack.block:
            for sub in block.layer:
                for name, shared in (("SelfAttention", table), ("EncDecAttention", None)):
                    if theirs := getattr(sub, name, None):
                        setattr(sub, name, SharedPositionAttention(theirs, shared).train(theirs.training))
        stack.register_state_dict_post_hook(_with_their_name)
        stack.register_load_state_dict_pre_hook(_with_our_name)


def _with_their_name(_stack: nn.Module, state: dict[str, Any], prefix: str, _about: Any) -> None:
    if prefix + OURS in state:
        state[prefix + THEIRS] = state.pop(prefix + OURS)


def _with_our_name(_stack: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if prefix + THEIRS in state:
        state[prefix + OURS] = state.pop(prefix + THEIRS)

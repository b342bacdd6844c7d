"""GPT-2 made of linear maps of its own for queries, keys and values, as every other family has them.

transformers stores one fused matrix, transposed, which neither gates nor slicing know. The function and the stored
weights stay as they are there, so that plain transformers opens what is saved. Source: Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners"; pre-norm blocks with a final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention

from compressor.errors import UserError
from compressor.models.language_output import LanguageOutput, mean_loss, token_losses

INPUTS = ("q", "k", "v")


class CausalHeads(nn.Module):
    """What the heads read, side by side; a query sees its own place and those before it."""

    def __init__(self, theirs: GPT2Attention) -> None:
        super().__init__()
        self.heads, self.head_size, self.width = theirs.num_heads, theirs.head_dim, theirs.embed_dim
        weights = theirs.c_attn.weight.detach().t().chunk(3)
        biases = theirs.c_attn.bias.detach().chunk(3)
        self.q, self.k, self.v = (linear(*pair) for pair in zip(weights, biases, strict=True))
        self.scale = self.head_size**-0.5 if theirs.scale_attn_weights else 1.0
        self.dropout = theirs.attn_dropout

    def forward(self, x: Tensor, hidden: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the heads read, and the keys and values so far.

        Args:
            x: (batch, length, hidden).
            hidden: a number added to every score, very low where a query may not look (1, 1, length, keys).
            past: keys and values of the tokens before, (2, batch, tokens, heads x head size).

        Returns:
            (batch, length, heads x head size); keys and values, shaped like `past` but longer.
        """
        seen = torch.stack([self.k(x), self.v(x)])
        if past is not None:
            seen = torch.cat([past, seen], dim=2)
        k, v = (self._by_head(part) for part in seen.unbind())
        scores = self._by_head(self.q(x)) @ k.transpose(2, 3) * self.scale
        scores = scores + hidden
        read = self.dropout(scores.softmax(dim=3)) @ v
        return read.transpose(1, 2).flatten(2), seen

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, length, width) as (batch, heads, length, head size)."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_size).transpose(1, 2)


class Attention(nn.Module):
    """The whole sub-layer in place of transformers': same names and shapes when stored."""

    def __init__(self, theirs: GPT2Attention) -> None:
        super().__init__()
        self.core = CausalHeads(theirs)
        self.c_proj = linear(theirs.c_proj.weight.detach().t(), theirs.c_proj.bias.detach())
        self.dropout = theirs.resid_dropout

    def forward(self, x: Tensor, hidden: Tensor, past: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """(batch, length, hidden) in and out; also keys and values so far, none where no head is left."""
        read, *kept = self.core(x, hidden, past)
        return self.dropout(self.c_proj(read)), kept

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Names and shapes as transformers stores them; with `keep_vars`, the parameters themselves."""
        found: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        if kwargs.get("keep_vars"):  # tracing asks so, and looks for the tensors that take part
            return found
        if f"{prefix}core.q.weight" in found:
            for kind in ("weight", "bias"):
                parts = [found.pop(f"{prefix}core.{name}.{kind}") for name in INPUTS]
                found[f"{prefix}c_attn.{kind}"] = torch.cat(parts).t().contiguous()
        return _transposed(found, prefix, "c_proj")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for kind in ("weight", "bias"):
            if (fused := state_dict.pop(f"{prefix}c_attn.{kind}", None)) is not None:
                for name, part in zip(INPUTS, fused.t().chunk(3), strict=True):
                    state_dict[f"{prefix}core.{name}.{kind}"] = part
        super()._load_from_state_dict(_transposed(state_dict, prefix, "c_proj"), prefix, *args)


class FeedForward(nn.Module):
    """The FFN in place of transformers': same names and shapes when stored."""

    def __init__(self, theirs: GPT2MLP) -> None:
        super().__init__()
        self.c_fc, self.c_proj = (
            linear(conv.weight.detach().t(), conv.bias.detach()) for conv in (theirs.c_fc, theirs.c_proj)
        )
        self.act, self.dropout = theirs.act, theirs.dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, length, hidden) in and out."""
        found: Tensor = self.dropout(self.c_proj(self.act(self.c_fc(hidden_states))))
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes as transformers stores them; with `keep_vars`, the parameters themselves."""
        found: dict[str, Any] = super().state_dict(*args, **kwargs)
        keep = kwargs.get("keep_vars")
        return found if keep else _transposed(found, kwargs.get("prefix", ""), "c_fc", "c_proj")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(_transposed(state_dict, prefix, "c_fc", "c_proj"), prefix, *args)


class GPT2Model(transformers.GPT2Model):
    """Embeddings, layers and the final norm."""

    def forward(
        self,
        input_ids: Tensor,
        memory: Sequence[Tensor] | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Read `input_ids` (batch, length) after a `memory`: normed states, memory, all layers' states.

        `memory` is keys and values of the text before, of every layer with heads (2, batch, tokens, width); `None`
        where there is none, and then none is given. The states are those before the first layer and after each.
        """
        past, length = list(memory or ()), input_ids.shape[1]
        before = past[0].shape[2] if past else 0
        places = torch.arange(before, before + length, device=input_ids.device)
        h = self.drop(self.wte(input_ids) + self.wpe(places))
        hidden = looking_back(length, before + length, h)
        so_far: list[Tensor] = []
        states = [h]
        for block in self.h:
            own = past[len(so_far)] if past and has_heads(block) else None
            attended, new = block.attn(block.ln_1(h), hidden, own)
            so_far += new
            h = h + attended
            h = h + block.mlp(block.ln_2(h))
            states.append(h)
        kept = None if memory is None else tuple(so_far)
        return BaseModelOutputWithPast(self.ln_f(h), kept, tuple(states) if output_hidden_states else None)


class GPT2LMHeadModel(transformers.GPT2LMHeadModel):
    """GPT-2 as a language model of the project: labels are the next tokens, losses come token by token."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        memory: Sequence[Tensor] | None = None,
        labels: Tensor | None = None,
        last: bool = False,
        **_: Any,
    ) -> LanguageOutput:
        """One pass over a piece of text.

        Args:
            input_ids: (batch, length).
            memory: what is known of the text before (see `GPT2Model`).
            labels: the next tokens (batch, length), -100 where none is asked for.
            last: give the logits of the last token alone.
        """
        body = self.transformer(input_ids, memory)
        states, kept = body.last_hidden_state, body.past_key_values
        logits = self._logits(states[:, -1:] if last else states)
        if labels is None:
            return LanguageOutput(logits=logits, memory=kept)
        losses = token_losses(logits, labels)
        return LanguageOutput(mean_loss(losses, labels), losses, memory=kept)

    def _logits(self, states: Tensor) -> Tensor:
        """(batch, length, hidden) to (batch, length, vocabulary).

        A product with a bias, of zeros, becomes a Gemm that reads the embeddings' own table backwards; one without
        would have a second, turned copy of the table in every exported graph.
        """
        weight = self.lm_head.weight
        flat = functional.linear(states.flatten(0, 1), weight, weight.new_zeros(len(weight)))
        return flat.view(*states.shape[:2], -1)

    def initial_cache(self, batch: int) -> tuple[Tensor, ...]:
        """The memory of nothing: for every layer with heads (2, batch, 0, width)."""
        cores = [block.attn.core for block in self.transformer.h if has_heads(block)]
        return tuple(core.q.weight.new_zeros(2, batch, 0, core.width) for core in cores)


def has_heads(block: Any) -> bool:
    """Whether any head of a block is left, so that it has keys and values."""
    return isinstance(block.attn.core, CausalHeads)


def make_linear(model: PreTrainedModel) -> None:
    """Give a GPT-2 linear maps in place of fused and transposed ones.

    Raises:
        UserError: its attention depends on the number of the layer, which dropping layers would change.
    """
    config = model.config
    if config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or config.add_cross_attention:
        raise UserError(
            "gpt2: only its published form is supported: scale_attn_by_inverse_layer_idx, reorder_and_upcast_attn "
            "and add_cross_attention false"
        )
    for block in model.base_model.h:
        if isinstance(block.attn, GPT2Attention):
            block.attn = Attention(block.attn).train(block.attn.training)
            block.mlp = FeedForward(block.mlp).train(block.mlp.training)


def looking_back(length: int, keys: int, like: Tensor) -> Tensor:
    """What is added to scores (1, 1, length, keys) of the last `length` of `keys` places: 0 up to their own."""
    queries = torch.arange(keys - length, keys, device=like.device)
    ahead = torch.arange(keys, device=like.device)[None, :] > queries[:, None]
    return (ahead.to(like.dtype) * torch.finfo(like.dtype).min)[None, None]


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear map of these, (out, in) and (out,)."""
    made = nn.Linear(1, 1)
    made.out_features, made.in_features = weight.shape
    made.weight = nn.Parameter(weight.contiguous())
    made.bias = nn.Parameter(bias.clone())
    return made


def _transposed(state: dict[str, Any], prefix: str, *names: str) -> dict[str, Any]:
    """`state` with these modules' weights transposed, in place; those that are gone are passed over."""
    for name in names:
        if (key := f"{prefix}{name}.weight") in state:
            state[key] = state[key].t().contiguous()
    return state

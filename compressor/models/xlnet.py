"""XLNet's attention made of linear maps, as every other family has it.

transformers multiplies by bare tensors (hidden, heads, head size), which neither gates nor slicing nor int8 know.
Here they are `nn.Linear`s; the function and the stored weights stay as they are there, so that plain transformers
opens what is saved. Source of the formulas: Dai et al. 2019 (Transformer-XL), section 3.3; Yang et al. 2019 (XLNet).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

BIASES = ("r_w_bias", "r_r_bias", "r_s_bias")
"""Added to the queries where they meet keys, positions and segments."""


class RelativeAttention(nn.Module):
    """Scores of content, relative position and equality of segments; the heads' outputs side by side."""

    def __init__(self, theirs: XLNetRelativeAttention) -> None:
        super().__init__()
        self.heads, self.head_size, self.width = theirs.n_head, theirs.d_head, theirs.n_head * theirs.d_head
        self.q, self.k, self.v, self.r = (
            _linear(tensor.detach().flatten(1).t()) for tensor in (theirs.q, theirs.k, theirs.v, theirs.r)
        )
        for name in BIASES:
            self.register_parameter(name, nn.Parameter(getattr(theirs, name).detach().flatten()))
        self.seg_embed = nn.Parameter(theirs.seg_embed.detach().flatten(1))
        self.dropout = theirs.dropout

    def forward(
        self, h: Tensor, positions: Tensor, hidden: Tensor | None, segments: Tensor | None
    ) -> tuple[Tensor]:
        """What the heads read.

        Args:
            h: (batch, length, hidden).
            positions: embeddings of the distances (2 length, batch or 1, hidden), the farthest ahead first.
            hidden: above zero where a query may not look, (length, length, batch, 1).
            segments: one-hot, whether query and key are of different segments, (length, length, batch, 2).

        Returns:
            (batch, length, heads x head size).
        """
        q = self.q(h)
        k, v = self._by_head(self.k(h)), self._by_head(self.v(h))
        far = self._by_head(self.r(positions.to(h.dtype)).transpose(0, 1))  # they are made in float32
        scores = self._queries(q, "r_w_bias") @ k.transpose(2, 3)
        distances = self._queries(q, "r_r_bias") @ far.transpose(2, 3)
        scores = scores + XLNetRelativeAttention.rel_shift_bnij(distances, klen=scores.shape[3])
        if segments is not None:
            # Sums, not a product of matrices: int8 would take these two vectors a head for a layer's weights.
            queries, kinds = (
                self._queries(q, "r_s_bias"),
                self.seg_embed.view(2, self.heads, 1, self.head_size),
            )
            same, different = ((queries * kind).sum(dim=3, keepdim=True) for kind in kinds)
            scores = scores + torch.where(_first(segments[..., 1]) > 0, different, same)
        scores = scores / self.head_size**0.5
        if hidden is not None:
            scores = scores.masked_fill(_first(hidden[..., 0]) > 0, torch.finfo(scores.dtype).min)
        read = self.dropout(scores.softmax(dim=3)) @ v
        return (read.transpose(1, 2).flatten(2),)

    def _queries(self, q: Tensor, bias: str) -> Tensor:
        return self._by_head(q + getattr(self, bias))

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, length, width) as (batch, heads, length, head size)."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_size).transpose(1, 2)


class XLNetAttention(nn.Module):
    """The whole sub-layer in place of transformers': same arguments, same result, same names and shapes when stored.

    What only pretraining and generation need (the second stream, memories) it does not have.
    """

    def __init__(self, theirs: XLNetRelativeAttention) -> None:
        super().__init__()
        self.head_size = theirs.d_head
        self.core = RelativeAttention(theirs)
        self.o = _linear(theirs.o.detach().flatten(1))
        self.layer_norm = theirs.layer_norm
        self.dropout = theirs.dropout

    def forward(
        self,
        h: Tensor,
        g: None,
        attn_mask_h: Tensor | None,
        attn_mask_g: Any,
        r: Tensor,
        seg_mat: Tensor | None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """`h` (length, batch, hidden), same shape out; `attn_mask_h`, `r` and `seg_mat` as transformers has them."""
        first = h.transpose(0, 1)
        if not self.training:  # dropout makes them differ within a batch, nothing else does
            r = r[:, :1]
        (read,) = self.core(first, r, attn_mask_h, seg_mat)
        out = self.layer_norm(self.dropout(self.o(read)) + first)
        return out.transpose(0, 1), None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Names and shapes as transformers stores them; with `keep_vars`, the parameters themselves."""
        found: dict[str, Any] = super().state_dict(*args, **kwargs)
        if kwargs.get("keep_vars"):  # tracing asks so, and looks for the tensors that take part
            return found
        prefix = kwargs.get("prefix", "")
        for name, path in _places().items():
            if prefix + path in found:
                value = found.pop(prefix + path)
                value = value.t() if path.startswith("core") and path.endswith("weight") else value
                found[prefix + name] = value.unflatten(-1, (-1, self.head_size)).contiguous()
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, path in _places().items():
            if prefix + name in state_dict:
                value = state_dict.pop(prefix + name).flatten(-2)
                value = value.t() if path.startswith("core") and path.endswith("weight") else value
                state_dict[prefix + path] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def _places() -> dict[str, str]:
    """transformers' names of the tensors that are kept in another shape here, and where they are."""
    inputs = {name: f"core.{name}.weight" for name in "qkvr"}
    return inputs | {"o": "o.weight"} | {name: f"core.{name}" for name in (*BIASES, "seg_embed")}


def make_linear(model: PreTrainedModel) -> None:
    """Give an XLNet attention of linear maps, in place, and switch its memories off."""
    for layer in model.base_model.layer:
        if isinstance(layer.rel_attn, XLNetRelativeAttention):
            layer.rel_attn = XLNetAttention(layer.rel_attn).train(layer.rel_attn.training)
    model.config.use_mems_eval = model.config.use_mems_train = False


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(1, 1, bias=False)
    made.out_features, made.in_features = weight.shape
    made.weight = nn.Parameter(weight.contiguous())
    return made


def _first(x: Tensor) -> Tensor:
    """(query, key, batch) as (batch, 1, query, key)."""
    return x.permute(2, 0, 1).unsqueeze(1)

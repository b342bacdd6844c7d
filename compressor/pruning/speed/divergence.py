"""How far a candidate's answers are from the dense model's on probe examples: the loss that a search goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.pruning.speed.moments import Batch, inputs_of
from compressor.pruning.speed.window import recorded, window

FAR = -1e4
"""Logit of a position that is padding."""
SPANS = ("start_logits", "end_logits")
"""Outputs whose classes are the tokens."""


def divergence(outputs: Mapping[str, Tensor], dense: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """KL(dense || candidate), summed over examples and outputs; of answers that are no classes, half their distance.

    `mask` (batch, length) marks real tokens; of an output with classes a token the mean over an example's tokens
    is taken.
    """
    total = torch.zeros(())
    for name, theirs in dense.items():
        ours = outputs[name]
        if name in SPANS:
            ours, theirs = (values.masked_fill(~mask, FAR) for values in (ours, theirs))
        if name not in (*SPANS, "logits") or ours.shape[-1] == 1:
            each = (ours - theirs).square().sum(dim=-1) / 2
        else:
            shares = functional.log_softmax(theirs.double(), dim=-1)
            each = (shares.exp() * (shares - functional.log_softmax(ours.double(), dim=-1))).sum(dim=-1)
        if each.dim() == 2:
            each = (each * mask).sum(dim=1) / mask.sum(dim=1)
        total = total + each.sum().double().cpu()
    return total


def answers(output: Any) -> dict[str, Tensor]:
    """A model's outputs that are answers: no loss, no hidden states."""
    named = {name: value for name, value in output.items() if isinstance(value, Tensor) and name != "loss"}
    return {name: value for name, value in named.items() if name not in ("last_hidden_state",)} or named


class Probe:
    """The dense model's answers to a few batches, and how far `model`, when it is changed, is from them."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        """Run the dense `model` on `batches` and keep what every layer gives."""
        self.model = model.eval()
        self.inputs = [inputs_of(model, batch) for batch in batches]
        self.rows = sum(len(inputs["input_ids"]) for inputs in self.inputs)
        self.dense: list[dict[str, Tensor]] = []
        self._below: list[list[Any]] = []
        for inputs in self.inputs:
            with recorded(model) as outputs:
                self.dense.append(answers(model(**inputs)))
            self._below.append(outputs)

    @torch.no_grad()
    def loss(self, unchanged: int = 0, limit: float = float("inf")) -> float:
        """Mean divergence an example of the model as it is now, infinite as soon as it is certainly above `limit`.

        The first `unchanged` layers are as they were: they are not computed again.
        """
        total = 0.0
        for inputs, below, dense in zip(self.inputs, self._below, self.dense, strict=True):
            with window(self.model, unchanged, below=below[unchanged - 1]):
                found = answers(self.model(**inputs))
            total += float(divergence(found, dense, inputs["attention_mask"].bool()))
            if total > limit * self.rows:
                return float("inf")
        return total / self.rows

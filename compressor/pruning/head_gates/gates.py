"""Binary gates on heads: what they are worth in training and after it, and what they leave behind.

Source: Shim et al. 2021; the gates are those of Louizos et al. 2018, rounded, with the gradient of the soft ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of, structure_of
from compressor.models.gates import gate_input
from compressor.models.structure import Structure, SubLayer
from compressor.pruning.hard_concrete import EPSILON, noise_like, open_probability, sample

TEMPERATURE = 0.333
CONTAINER = "head_gates"
LEAST_OPEN = 1e-3
"""Added to the number of open heads, which may be none."""

Key = tuple[str, int, str]
"""An attention sub-layer: stack, layer, name."""


def binary(logits: Tensor, noise: Tensor) -> Tensor:
    """Gates of 0 or 1 for `logits` and logistic `noise` of the same shape: open with probability sigmoid(logit).

    The gradient is that of the gates before rounding, none where these were clipped.
    """
    soft = sample(logits, noise, TEMPERATURE).clamp(min=EPSILON)
    return soft.ge(0.5).to(soft) + (soft - soft.detach())


def decided(logits: Tensor) -> Tensor:
    """The gates once chance is over, same shape: open where closed is not more likely."""
    return logits.detach().ge(0).to(logits)


def expected_open(logits: Tensor) -> Tensor:
    """The penalty's terms, same shape: the probability that a gate is not zero before rounding."""
    return open_probability(logits, TEMPERATURE)


def output_scale(gates: Tensor) -> Tensor:
    """heads / open heads of a layer's `gates` (heads,), between 1 and the number of heads; it has no gradient."""
    heads = len(gates)
    return (heads / (gates.detach().sum() + LEAST_OPEN)).clamp(1, heads)


class BinaryGates(nn.Module):
    """A logit for every head that the model has.

    In training the gates are as the last `draw` made them, otherwise as decided.
    """

    def __init__(self, model: PreTrainedModel, first: float) -> None:
        super().__init__()
        self.keys = [key for key, _, _ in attentions(model)]
        self.logits = nn.ParameterList(
            nn.Parameter(torch.full((len(kept),), first)) for _, _, kept in attentions(model)
        )
        self.noise: list[Tensor] = []

    def draw(self, seed: int, step: int) -> None:
        """Fresh noise, used until the next draw: each step's of a seed is its own."""
        (own,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(own))
        self.noise = [noise_like(logits.detach(), generator) for logits in self.logits]

    def values(self, at: int) -> Tensor:
        """The gates of one attention, (heads,)."""
        if self.training:
            return binary(self.logits[at], self.noise[at].to(self.logits[at].device))
        return decided(self.logits[at])

    def expected(self) -> Tensor:
        """How many gates are expected to be open before rounding: the sum that the penalty multiplies."""
        return torch.stack([expected_open(logits).sum() for logits in self.logits]).sum()

    def open(self) -> list[list[bool]]:
        """Which heads of every attention would be kept now."""
        return [decided(logits).bool().tolist() for logits in self.logits]


class Gating:
    """Holds a model to its gates by hooks; they are a module of the model, at `head_gates`."""

    def __init__(self, model: PreTrainedModel, gates: BinaryGates, scale_outputs: bool) -> None:
        self.model, self.gates, self.scale_outputs = model, gates, scale_outputs
        model.add_module(CONTAINER, gates.to(model.device).train(model.training))
        size = structure_of(model).sizes.head_size
        self._handles: list[RemovableHandle] = [
            gate_input(projection, partial(self.factors, at), size)
            for at, (_, projection, _) in enumerate(attentions(model))
        ]

    def factors(self, at: int) -> Tensor:
        """What the outputs of one attention's heads are multiplied by, (heads,)."""
        gates = self.gates.values(at)
        return gates * output_scale(gates) if self.scale_outputs else gates

    def remove(self) -> None:
        """Give the model back without gates."""
        for handle in self._handles:
            handle.remove()
        delattr(self.model, CONTAINER)

    @torch.no_grad()
    def fold(self) -> tuple[Structure, dict[str, Any]]:
        """Remove the gates; what open heads are scaled by becomes part of their output projections.

        Returns:
            What must be kept, and plain data about it.
        """
        self.gates.eval()
        size = structure_of(self.model).sizes.head_size
        kept: dict[Key, SubLayer] = {}
        scales = []
        for at, (key, projection, heads) in enumerate(attentions(self.model)):
            factors = self.factors(at)
            kept[key] = SubLayer(
                tuple(head for head, value in zip(heads, factors.tolist(), strict=True) if value)
            )
            projection.weight *= factors.where(factors > 0, 1).repeat_interleave(size).to(projection.weight)
            scales.append(round(float(factors.max()), 6))
        structure = structure_of(self.model).keeping(kept)
        report = {
            "heads": structure.heads(),
            "heads_by_layer": [len(sub.kept) for sub in kept.values()],
            "removed_share": 1 - structure.heads() / max(1, structure_of(self.model).heads()),
            "output_scales": scales if self.scale_outputs else None,
        }
        self.remove()
        return structure, report


def attentions(model: PreTrainedModel) -> Iterator[tuple[Key, nn.Linear, tuple[int, ...]]]:
    """Every attention that has heads: key, output projection, and those heads."""
    architecture = architecture_of(model.config)
    for stack in architecture.stacks:
        have = [layer for layer in structure_of(model).layers if layer.stack == stack.name]
        for module, layer in zip(architecture.layers(model, stack), have, strict=True):
            for table in stack.sublayers:
                heads = layer.sublayers[table.name].kept
                if table.is_attention and heads:
                    projection = module.get_submodule(table.output)
                    assert isinstance(projection, nn.Linear)
                    yield (stack.name, layer.index, table.name), projection, heads

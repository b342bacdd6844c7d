"""Scores of attention heads: what the loss says (Michel et al. 2019), what the weights say, and chance.

All give a score for every head that `structure` keeps; the model is held to `structure` while they are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compressor.models.architecture import architecture_of, structure_of
from compressor.models.structure import Structure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.pruning.context import Context

Key = tuple[str, int, str]
Scores = dict[Key, Tensor]


def sensitivity(model: PreTrainedModel, structure: Structure, context: Context) -> Scores:
    """Mean over examples of |d loss / d gate|, a layer's divided by their norm (Michel et al. 2019, section 4.1).

    Every example has gates of its own, so one backward pass a batch gives the gradients one by one.
    """
    outputs = {key: (layer, kept, at) for key, layer, kept, at in _attentions(model, structure)}
    size = structure.sizes.head_size
    gates: dict[Key, Tensor] = {}
    handles = [_gate(projection, gates, key, size) for key, (projection, _, _) in outputs.items()]
    sums: Scores = {}
    try:
        model.eval()
        for batch in context.labelled_batches():
            gates.clear()
            inputs = {name: values.to(model.device) for name, values in batch.items()}
            loss = model(**inputs).loss * len(inputs["input_ids"])
            grads = torch.autograd.grad(loss, list(gates.values()))
            for key, grad in zip(gates, grads, strict=True):
                total = grad.abs().sum(dim=0).double().cpu()
                sums[key] = sums[key] + total if key in sums else total
    finally:
        for handle in handles:
            handle.remove()
    chosen = {key: sums[key][outputs[key][2]] for key in outputs}
    return {key: values / values.norm().clamp(min=1e-20) for key, values in chosen.items()}


def magnitude(model: PreTrainedModel, structure: Structure, context: Context) -> Scores:
    """Mean absolute weight of a head's columns of the output projection."""
    found = {}
    for key, projection, _, at in _attentions(model, structure):
        weight = projection.weight.detach().abs().double()
        by_head = weight.view(weight.shape[0], -1, structure.sizes.head_size).mean(dim=(0, 2))
        found[key] = by_head.cpu()[at]
    return found


def chance(model: PreTrainedModel, structure: Structure, context: Context) -> Scores:
    """Random scores, by the recipe's seed."""
    generator = torch.Generator().manual_seed(context.seed)
    return {
        key: torch.rand(len(kept), generator=generator) for key, _, kept, _ in _attentions(model, structure)
    }


def _gate(projection: nn.Linear, gates: dict[Key, Tensor], key: Key, size: int) -> Any:
    """Put gates of one before a projection, (rows, heads), fresh at every forward pass."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        gates[key] = x.new_ones(x.shape[0], x.shape[-1] // size, requires_grad=True)
        return (x * gates[key].repeat_interleave(size, dim=1)[:, None, :], *args[1:])

    return projection.register_forward_pre_hook(hook)


def _attentions(
    model: PreTrainedModel, structure: Structure
) -> Iterator[tuple[Key, nn.Linear, tuple[int, ...], list[int]]]:
    """Every attention with heads left: key, output projection, those heads, and their places in the model."""
    architecture = architecture_of(model.config)
    wanted = {(la.stack, la.index, name): sub for la, name, sub in structure.each()}
    for stack in architecture.stacks:
        layers = architecture.layers(model, stack)
        for at, layer in enumerate(la for la in structure_of(model).layers if la.stack == stack.name):
            for table in stack.sublayers:
                key = (stack.name, layer.index, table.name)
                kept = wanted[key].kept if key in wanted else ()
                if table.is_attention and kept:
                    projection = layers[at].get_submodule(table.output)
                    assert isinstance(projection, nn.Linear)
                    have = layer.sublayers[table.name].kept
                    yield key, projection, kept, [have.index(head) for head in kept]

"""From zeros in weights to a `Structure`: which heads and neurons no longer matter, and what they leave behind.

A head whose output columns are zero changes nothing. A head whose value rows are zero outputs its value bias
at every token (attention weights sum to one), a constant that moves into the output bias; unless it has values of
its own beside those of the tokens. A neuron whose
input row is zero outputs act(bias), which moves likewise. Heads with only dead queries or keys still average
their values: they stay. So cutting never changes the function.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.models.architecture import SubLayerTable, architecture_of, module_at, structure_of
from compressor.models.structure import Structure, SubLayer

HeadRule = Literal["exact", "uniform", "reference"]
"""Which heads go: `exact` ones that leave a constant; `uniform` also ones that only average their values (dead
queries or keys); `reference` ones with dead queries, keys or values, but never a layer's last, as the published
networks were cut. The last two change the function: fill and fine-tune after them."""


def fold_dead_units(model: PreTrainedModel, heads: HeadRule = "exact") -> Structure:
    """Fold the constants of dead units into the biases (in place); return what must be kept."""
    structure = alive_units(model, heads)
    fold_constants(model, structure)
    return structure


@torch.no_grad()
def alive_units(model: PreTrainedModel, heads: HeadRule = "exact") -> Structure:
    """What of the model is alive, going by exact zeros in its weights."""
    current = structure_of(model)
    kept: dict[tuple[str, int, str], SubLayer] = {}
    for key, layer, table, sub in _active(model, current):
        reads, *writes = _live(layer, table, len(sub.kept))
        # For heads the values decide (the last of q, k, v).
        alive = reads & writes[-1]
        if table.is_attention and heads != "exact":
            attends = torch.stack(writes).all(dim=0)
            alive = attends if heads == "reference" else alive & attends
            if heads == "reference" and not alive.any():
                alive[0] = True
        units = tuple(unit for unit, live in zip(sub.kept, alive.tolist(), strict=True) if live)
        kept[key] = SubLayer(units)
    return current.keeping(kept)


@torch.no_grad()
def fold_constants(model: PreTrainedModel, structure: Structure) -> None:
    """Add what units outside `structure` output at every token to their output projection's bias (in place).

    Of a head that is the value bias, of a neuron without inputs act(bias).
    """
    wanted = {(la.stack, la.index, name): sub for la, name, sub in structure.each()}
    for key, layer, table, sub in _active(model, structure_of(model)):
        output: Any = layer.get_submodule(table.output)
        source: Any = layer.get_submodule(table.inputs[-1])
        goes = torch.tensor([unit not in wanted[key].kept for unit in sub.kept])
        if not table.is_attention:
            goes &= ~_live(layer, table, len(sub.kept))[-1].cpu()
        columns = goes.repeat_interleave(output.in_features // len(goes)).to(output.weight.device)
        if source.bias is not None:
            constant = _activation(layer, table)(source.bias[columns])
            output.bias += output.weight[:, columns] @ constant


def _active(model: PreTrainedModel, structure: Structure) -> Any:
    """Every sub-layer with units left: its key, the layer's module, its table and its part of `structure`."""
    architecture = architecture_of(model.config)
    for stack in architecture.stacks:
        layers = architecture.layers(model, stack)
        for at, layer in enumerate(la for la in structure.layers if la.stack == stack.name):
            for table in stack.sublayers:
                sub = layer.sublayers[table.name]
                if sub.active:
                    yield (stack.name, layer.index, table.name), layers[at], table, sub


def _live(layer: nn.Module, table: SubLayerTable, units: int) -> list[Tensor]:
    """Which units have a weight that is not zero, (units,) bool: in the output projection, then in each input."""
    output: Any = layer.get_submodule(table.output)
    inputs: list[Any] = [layer.get_submodule(path) for path in table.inputs]
    reads = output.weight.view(output.out_features, units, -1).ne(0).any(dim=2).any(dim=0)
    writes = [p.weight.view(units, -1).ne(0).any(dim=1) for p in inputs]
    if table.learned:  # the last are values, as of the inputs
        writes[-1] |= (
            layer.get_parameter(table.learned[-1])
            .view(-1, units, output.in_features // units)
            .ne(0)
            .any(2)
            .any(0)
        )
    return [reads, *writes]


def _activation(layer: nn.Module, table: SubLayerTable) -> Any:
    if table.activation is None:
        return lambda x: x
    found: Any = module_at(layer, table.activation)
    if found is None:
        parent, _, name = table.activation.rpartition(".")
        found = getattr(layer.get_submodule(parent), name)
    return found

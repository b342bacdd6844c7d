"""From zeros in weights to a `Structure`: exact rules for heads and neurons that no longer matter.

A head whose output columns are zero changes nothing. A head whose value rows are zero outputs its value bias
at every token (attention weights sum to one), a constant that moves into the output bias. A neuron whose
input row is zero outputs act(bias), which moves likewise. Heads with only dead queries or keys still average
their values: they stay. So cutting never changes the function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.models.architecture import SubLayerTable, architecture_of, module_at, structure_of
from compressor.models.structure import Structure, SubLayer


@torch.no_grad()
def fold_dead_units(model: PreTrainedModel) -> Structure:
    """Fold the constants of dead units into the biases (in place); return what must be kept."""
    architecture = architecture_of(model.config)
    current = structure_of(model)
    kept: dict[tuple[str, int, str], SubLayer] = {}
    for stack in architecture.stacks:
        layers = architecture.layers(model, stack)
        for at, layer in enumerate(la for la in current.layers if la.stack == stack.name):
            for table in stack.sublayers:
                sub = layer.sublayers[table.name]
                if sub.active:
                    size = current.sizes.unit_size(table.name)
                    alive = _fold(layers[at], table, len(sub.kept), size)
                    units = tuple(unit for unit, live in zip(sub.kept, alive.tolist(), strict=True) if live)
                    kept[stack.name, layer.index, table.name] = SubLayer(units)
    return current.keeping(kept)


def _fold(layer: nn.Module, table: SubLayerTable, units: int, size: int) -> Tensor:
    """Which units are alive, (units,) bool; constants of the dead ones go into the output bias."""
    output: Any = layer.get_submodule(table.output)
    # For heads only the values decide (the last of q, k, v); a gated FFN dies with any of its inputs.
    inputs: list[Any] = [layer.get_submodule(path) for path in table.inputs]
    source = inputs[-1]
    reads = output.weight.view(output.out_features, units, size).ne(0).any(dim=2).any(dim=0)
    writes = source.weight.view(units, size, source.in_features).ne(0).any(dim=2).any(dim=1)
    constant = _activation(layer, table)(source.bias)
    dead = ~(reads & writes)
    columns = (dead & reads).repeat_interleave(size)
    output.bias += output.weight[:, columns] @ constant[columns]
    return ~dead


def _activation(layer: nn.Module, table: SubLayerTable) -> Any:
    if table.activation is None:
        return lambda x: x
    found: Any = module_at(layer, table.activation)
    if found is None:
        parent, _, name = table.activation.rpartition(".")
        found = getattr(layer.get_submodule(parent), name)
    return found

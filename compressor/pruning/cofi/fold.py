"""The exact fold of soft gates into weights: afterwards every gate is 1 or gone.

All writers of the residual stream take the hidden gates, its readers take none: so every path through the network
carries each gate once, the residual one too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of, structure_of
from compressor.models.gates import hidden_writers
from compressor.models.structure import Structure
from compressor.pruning.cofi.values import Values


@torch.no_grad()
def fold_gates(model: PreTrainedModel, values: Values) -> Structure:
    """Multiply decided, canonical `values` into the weights (in place); return what must be kept."""
    architecture = architecture_of(model.config)
    if not architecture.fixed_width:
        _fold_hidden(model, values.hidden)
    for stack in architecture.stacks:
        for row, layer in enumerate(architecture.layers(model, stack)):
            for table in stack.sublayers:
                place = (stack.name, table.name)
                output: Any = layer.get_submodule(table.output)
                units = values.units[place][row].to(output.weight)
                columns = units.repeat_interleave(output.in_features // len(units))
                output.weight *= columns
                _scale(output, values.wholes[place][row] * values.hidden)
    return values.structure(structure_of(model))


def _fold_hidden(model: PreTrainedModel, gates: torch.Tensor) -> None:
    embeddings, *norms = hidden_writers(model)
    for writer in (embeddings, *norms):
        if not isinstance(writer, nn.Embedding):
            _scale(writer, gates)
    if not isinstance(embeddings, nn.Linear):
        for path in architecture_of(model.config).embeddings:
            table: Any = model.base_model.get_submodule(path)
            table.weight *= gates.to(table.weight)


def _scale(module: Any, features: torch.Tensor) -> None:
    """Multiply each output of a linear map or LayerNorm by a factor."""
    factors = features.to(module.weight)
    module.weight *= factors.unsqueeze(-1) if module.weight.dim() > 1 else factors
    if module.bias is not None:
        module.bias *= factors

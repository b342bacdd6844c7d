"""Cutting a model down to a `Structure`. Only cuts: whatever a method leaves behind was folded before."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.models.architecture import (
    Architecture,
    SubLayerTable,
    architecture_of,
    module_at,
    structure_of,
)
from compressor.models.structure import Layer, Structure, SubLayer


class Constant(nn.Module):
    """In place of a projection that has no input left: its bias for every token (or zero, without bias)."""

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: anything shaped (batch, length, ...). Returns (hidden,), or (batch, length, hidden) in training."""
        if self.bias is None:
            return x.new_zeros(())
        # Dropout must still draw for every token on its own.
        return self.bias.expand(*x.shape[:2], -1) if self.training else self.bias


class Skip(nn.Module):
    """In place of a sub-layer's core that has no unit left: hands on its first input."""

    def __init__(self, returns_tuple: bool, second: str | None = None) -> None:
        """`second`: the argument to hand back as a second result, where there is to be one ("": nothing)."""
        super().__init__()
        self.returns_tuple, self.second = returns_tuple, second
        self.inner: str | None = None

    def hold(self, path: str, module: nn.Module) -> None:
        """Keep `module` at its old relative `path`, and let it compute the result."""
        parent: nn.Module = self
        *parents, name = path.split(".")
        for part in parents:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, module)
        self.inner = path

    def forward(self, *args: Tensor, **kwargs: Any) -> Any:
        """The first input, or what the held module makes of it."""
        x = args[0] if args else next(iter(kwargs.values()))
        if self.inner:
            x = self.get_submodule(self.inner)(x)
        if self.second is not None:
            return x, kwargs.get(self.second)
        return (x,) if self.returns_tuple else x


def slice_model(model: PreTrainedModel, structure: Structure) -> PreTrainedModel:
    """A really smaller copy of `model`: same function as `Gates(model, structure)`.

    Indices are those of the dense original, also for a model that was sliced before.

    Raises:
        ValueError: `structure` keeps something that `model` no longer has, or the family can't have it.
    """
    current = structure_of(model)
    if not structure.within(current):
        raise ValueError("the structure keeps units that the model does not have")
    small = copy.deepcopy(model)
    cut(small, current, structure.simplified())
    small.config.compressor.pop("gates", None)  # it has them in its shapes now
    return small


def cut(model: PreTrainedModel, current: Structure, structure: Structure) -> None:
    """Cut `model`, which has the structure `current`, to `structure` in place, and record it in the config."""
    architecture = architecture_of(model.config)
    architecture.check(structure)
    for stack in architecture.stacks:
        if stack.applied_by:
            setattr(model.config, stack.layers_key, len(_of(structure, stack.name)))
            continue
        layers = architecture.layers(model, stack)
        have = {la.index: (la, layers[i]) for i, la in enumerate(_of(current, stack.name))}
        kept = _of(structure, stack.name)
        for layer in kept:
            before, module = have[layer.index]
            for table in stack.sublayers:
                _cut_sublayer(
                    module, table, before.sublayers[table.name], layer.sublayers[table.name], structure
                )
        path, _, name = stack.path.rpartition(".")
        parent, left = model.base_model.get_submodule(path), nn.ModuleList([have[la.index][1] for la in kept])
        setattr(parent, name, left)
        _renumber(parent, left)
        setattr(model.config, stack.layers_key, len(kept))
    if structure.hidden != current.hidden:
        order = {d: i for i, d in enumerate(sorted(current.hidden_kept()))}
        _cut_hidden(model, architecture, [order[d] for d in sorted(structure.hidden_kept())])
    stored = getattr(model.config, "compressor", None) or {}
    model.config.compressor = stored | {"structure": structure.to_json()}


def _renumber(parent: nn.Module, layers: nn.ModuleList) -> None:
    """Correct what modules of transformers hold of their place among the layers, and of the layers' number."""
    numbered: Any
    for place, layer in enumerate(layers):
        for numbered in layer.modules():
            if getattr(numbered, "layer_idx", None) is not None:
                numbered.layer_idx = place
    for key in ("n_layers", "n_layer"):
        if isinstance(getattr(parent, key, None), int):
            setattr(parent, key, len(layers))


def _of(structure: Structure, stack: str) -> list[Layer]:
    return [layer for layer in structure.layers if layer.stack == stack]


def _cut_sublayer(
    layer: nn.Module, table: SubLayerTable, have: SubLayer, want: SubLayer, structure: Structure
) -> None:
    if have == want:
        return
    if not want.active:
        _empty(layer, table, absent=want.absent)
        return
    size = structure.sizes.unit_size(table.name)
    place = {unit: i for i, unit in enumerate(have.kept)}
    rows = [place[unit] * size + i for unit in want.kept for i in range(size)]
    for path in table.inputs:
        _replace(layer, path, _select(layer.get_submodule(path), rows, 0))
    _replace(layer, table.output, _select(layer.get_submodule(table.output), rows, 1))
    for path in table.vectors:
        owner, _, name = path.rpartition(".")
        module: Any = layer.get_submodule(owner)
        setattr(module, name, nn.Parameter(getattr(module, name).detach()[..., rows].clone()))
    if table.counts:
        core: Any = layer.get_submodule(table.core)
        units, width = table.counts
        setattr(core, units, len(want.kept))
        setattr(core, width, len(rows))
        if table.units:
            setattr(core, table.units, want.kept)


def _empty(layer: nn.Module, table: SubLayerTable, *, absent: bool) -> None:
    output: Any = layer.get_submodule(table.output)
    constant = Constant(None if absent else output.bias)
    skip = Skip(returns_tuple=table.is_attention, second=table.second)
    inside = table.output.startswith(f"{table.core}.")
    if inside:
        skip.hold(table.output.removeprefix(f"{table.core}."), constant)
    _replace(layer, table.core, skip)
    if not inside:
        _replace(layer, table.output, constant)
    if absent:
        _replace(layer, table.norm, nn.Identity())


def _cut_hidden(model: PreTrainedModel, architecture: Architecture, columns: Sequence[int]) -> None:
    base = model.base_model
    projection = architecture.embeddings_projection
    if projection and module_at(base, projection):
        _replace(base, projection, _select(base.get_submodule(projection), columns, 0))
    else:
        for path in architecture.embeddings:
            table: Any = base.get_submodule(path)
            table.weight = nn.Parameter(table.weight.detach()[:, columns].clone())
            table.embedding_dim = len(columns)
        norm = architecture.embeddings_norm
        if norm:
            _replace(base, norm, _select_norm(base, norm, columns))
    for stack in architecture.stacks:
        for layer in architecture.layers(model, stack):
            for sub in stack.sublayers:
                for path in sub.inputs:
                    linear = module_at(layer, path)
                    if isinstance(linear, nn.Linear) and path not in sub.positional:
                        _replace(layer, path, _select(linear, columns, 1))
                _replace(layer, sub.output, _select(layer.get_submodule(sub.output), columns, 0))
                if not isinstance(layer.get_submodule(sub.norm), nn.Identity):
                    _replace(layer, sub.norm, _select_norm(layer, sub.norm, columns))
    reader = architecture.reader(model)
    if reader:
        _replace(model, reader, _select(model.get_submodule(reader), columns, 1))


def _select(module: nn.Module, index: Sequence[int], axis: int) -> nn.Module:
    """A copy of a linear map (or `Constant`) with only these rows (axis 0) or columns (axis 1)."""
    if isinstance(module, Constant):
        bias = module.bias
        return Constant(None if bias is None else nn.Parameter(bias.detach()[list(index)].clone()))
    assert isinstance(module, nn.Linear)
    chosen = torch.tensor(index, device=module.weight.device)
    weight = module.weight.detach().index_select(axis, chosen)
    small = nn.Linear(1, 1, bias=module.bias is not None)
    small.out_features, small.in_features = weight.shape
    small.weight = nn.Parameter(weight.contiguous())
    if module.bias is not None:
        values = module.bias.detach()
        small.bias = nn.Parameter((values[chosen] if axis == 0 else values).clone())
    return small


def _select_norm(parent: nn.Module, path: str, index: Sequence[int]) -> nn.Module:
    """A copy with only these features: a LayerNorm, or whatever else has a weight and a bias a feature."""
    small = copy.deepcopy(parent.get_submodule(path))
    for name, parameter in list(small.named_parameters()):
        setattr(small, name, nn.Parameter(parameter.detach()[list(index)].clone()))
    if isinstance(small, nn.LayerNorm):
        small.normalized_shape = (len(index),)
    return small


def _replace(parent: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    parent_module = parent.get_submodule(owner)
    if name not in dict(parent_module.named_children()):
        raise AttributeError(f"no module at {path}")
    module.train(parent_module.training)
    setattr(parent_module, name, module)

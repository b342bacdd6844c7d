"""Trying a structure without cutting: hooks that multiply units by gates and bypass absent sub-layers.

A head gate multiplies the head's slice of the output projection's input, a neuron gate that neuron's input
to the FFN output projection. With every gate at zero a sub-layer is its bias, exactly what slicing leaves.
A layer that all share is applied fewer times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from compressor.models.architecture import (
    StackTable,
    SubLayerTable,
    architecture_of,
    module_at,
    structure_of,
)
from compressor.models.structure import Structure, SubLayer


def gate_input(projection: nn.Module, values: Callable[[], Tensor], unit_size: int) -> RemovableHandle:
    """Multiply what enters `projection` by `values()` (one value a unit, `unit_size` features each).

    The values may be learned: they are asked for at every forward pass.
    """

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gates = values().repeat_interleave(unit_size) if unit_size > 1 else values()
        return (args[0] * gates.to(args[0].dtype), *args[1:])

    return projection.register_forward_pre_hook(hook)


class Removable(Protocol):
    """What can be taken back."""

    def remove(self) -> None: ...  # noqa: D102


class FewerTimes:
    """Lets a module that applies one shared layer do so `times` times: it asks its own config, which is lent."""

    def __init__(self, applier: Any, key: str, times: int) -> None:
        self.applier, self.before = applier, applier.config
        applier.config = copy.copy(self.before)
        setattr(applier.config, key, times)

    def remove(self) -> None:
        """As often as before."""
        self.applier.config = self.before


class Gates:
    """Holds a model to a `Structure` until removed; also a context manager.

    The model keeps its shapes and computes what the sliced model would compute (to 1e-5 in float32).

    Raises:
        ValueError: a part of a layer that is shared is to go, or hidden dimensions that the family needs.
    """

    def __init__(self, model: PreTrainedModel, structure: Structure) -> None:
        self._architecture = architecture_of(model.config)
        self._architecture.check(structure)
        self.model = model
        self.structure = structure
        self._handles: list[Removable] = []
        self._bypassed: set[nn.Module] = set()
        self._install(structure_of(model))

    def __enter__(self) -> Gates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Give the model back as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _install(self, current: Structure) -> None:
        for stack in self._architecture.stacks:
            if stack.applied_by:
                self._apply_fewer_times(stack, stack.applied_by)
            else:
                self._hold_layers(stack, current)
        if self.structure.hidden != current.hidden:
            self._hold_hidden(current)

    def _apply_fewer_times(self, stack: StackTable, applied_by: str) -> None:
        applier = self.model.base_model.get_submodule(applied_by)
        times = sum(layer.stack == stack.name for layer in self.structure.simplified().layers)
        self._handles.append(FewerTimes(applier, stack.layers_key, times))

    def _hold_layers(self, stack: StackTable, current: Structure) -> None:
        wanted = {layer.index: layer for layer in self.structure.layers if layer.stack == stack.name}
        have = [layer for layer in current.layers if layer.stack == stack.name]
        for module, layer in zip(self._architecture.layers(self.model, stack), have, strict=True):
            target = wanted.get(layer.index)
            for table in stack.sublayers:
                want = target.sublayers[table.name] if target else SubLayer(absent=True)
                self._hold(module, stack, table, layer.sublayers[table.name], want)

    def _hold(
        self, layer: nn.Module, stack: StackTable, table: SubLayerTable, have: SubLayer, want: SubLayer
    ) -> None:
        if have.absent or have == want:
            return
        output, norm = layer.get_submodule(table.output), layer.get_submodule(table.norm)
        if want.absent:
            self._bypassed.add(norm)
            self._handles += [
                output.register_forward_hook(lambda _m, _a, out: torch.zeros_like(out)),
                norm.register_forward_hook(lambda _m, args, _out: args[0]),
            ]
            return
        keep = set(want.kept)
        mask = torch.tensor([float(unit in keep) for unit in have.kept])
        size = self.structure.sizes.unit_size(table.name)
        weight: Any = output.weight
        self._handles.append(gate_input(output, lambda: mask.to(weight.device), size))

    def _hold_hidden(self, current: Structure) -> None:
        """Zero the dead dimensions wherever the residual stream is written through a norm or a projection."""
        columns = [
            i for i, d in enumerate(sorted(current.hidden_kept())) if d in self.structure.hidden_kept()
        ]
        index = torch.tensor(columns)
        for module in hidden_writers(self.model):
            if module in self._bypassed:
                continue
            if isinstance(module, nn.LayerNorm):
                self._handles.append(module.register_forward_hook(_norm_over(index)))
            elif not isinstance(module, nn.Identity):
                self._handles.append(module.register_forward_hook(_only(index)))


def hidden_writers(model: PreTrainedModel) -> list[nn.Module]:
    """Norms and projections after which the residual stream is made, embeddings first."""
    architecture = architecture_of(model.config)
    base = model.base_model
    projection = module_at(base, architecture.embeddings_projection or "")
    if projection:
        writers = [projection]
    else:
        norm = architecture.embeddings_norm
        writers = [base.get_submodule(path) for path in ([norm] if norm else architecture.embeddings)]
    for stack in architecture.stacks:
        for layer in architecture.layers(model, stack):
            writers += [layer.get_submodule(table.norm) for table in stack.sublayers]
    return writers


def _only(index: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        kept = index.to(out.device)
        return torch.zeros_like(out).index_copy(-1, kept, out.index_select(-1, kept))

    return hook


def _norm_over(index: Tensor) -> Callable[[nn.LayerNorm, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(norm: nn.LayerNorm, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        kept = index.to(out.device)
        values = nn.functional.layer_norm(
            args[0].index_select(-1, kept), (len(kept),), norm.weight[kept], norm.bias[kept], norm.eps
        )
        return torch.zeros_like(out).index_copy(-1, kept, values)

    return hook

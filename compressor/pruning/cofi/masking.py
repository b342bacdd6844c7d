"""The forward pass with gates: where each multiplies, and the LayerNorm over the dimensions that are left.

Source: Xia et al. 2022, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from compressor.models.architecture import SubLayerTable, architecture_of
from compressor.models.gates import gate_input, hidden_writers
from compressor.pruning.cofi.gates import LearnedGates
from compressor.pruning.cofi.values import Place, Values

CONTAINER = "cofi_gates"


def masked_norm(x: Tensor, gate: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm` over the dimensions whose `gate` (hidden,) is not zero, times the gate.

    `x` (..., hidden) must be zero in the others, and so is the result.
    """
    kept = gate.ne(0).to(gate.dtype)
    count = kept.sum().clamp(min=1)
    centred = (x - x.sum(dim=-1, keepdim=True) / count) * kept
    variance = centred.square().sum(dim=-1, keepdim=True) / count
    return centred * torch.rsqrt(variance + norm.eps) * (norm.weight * gate) + norm.bias * gate


class Masking:
    """Holds a model to its learned gates by hooks; they are a module of the model, at `cofi_gates`."""

    def __init__(self, model: PreTrainedModel, gates: LearnedGates) -> None:
        self.model = model
        self.gates = gates
        self.now: Values = gates.probabilities()
        self._handles: list[RemovableHandle] = []
        model.add_module(CONTAINER, gates.to(model.device).train(model.training))
        self._install()

    def remove(self) -> None:
        """Give the model back without gates."""
        self._uninstall()
        delattr(self.model, CONTAINER)

    @contextmanager
    def lifted(self) -> Iterator[PreTrainedModel]:
        """The model as it is without gates, while inside."""
        self._uninstall()
        delattr(self.model, CONTAINER)
        try:
            yield self.model
        finally:
            self.model.add_module(CONTAINER, self.gates)
            self._install()

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _install(self) -> None:
        model, architecture = self.model, architecture_of(self.model.config)
        self._on(model.base_model.register_forward_pre_hook(self._refresh))
        if self.gates.learns("hidden"):
            self._hold_embeddings(hidden_writers(model)[0])
        for stack in architecture.stacks:
            for row, layer in enumerate(architecture.layers(model, stack)):
                for table in stack.sublayers:
                    self._hold(layer, table, (stack.name, table.name), row)

    def _refresh(self, *_: Any) -> None:
        self.now = self.gates.values()

    def _hold_embeddings(self, writer: nn.Module) -> None:
        """The embeddings' norm, before and after it; or the projection to the hidden width, where there is one.

        Embeddings without either are gated themselves.
        """
        if not isinstance(writer, nn.Linear | nn.Embedding):
            self._on(writer.register_forward_pre_hook(lambda _, args: (args[0] * self.now.hidden, *args[1:])))
        self._on(writer.register_forward_hook(lambda module, args, out: self._narrow(module, args[0], out)))

    def _hold(self, layer: nn.Module, table: SubLayerTable, place: Place, row: int) -> None:
        output: Any = layer.get_submodule(table.output)
        unit, whole = ("head", "layer") if table.is_attention else ("neuron", "ffn")
        hidden = self.gates.learns("hidden")

        def after_projection(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
            scale = self.now.wholes[place][row]
            return out * (scale * self.now.hidden if hidden else scale).to(out.dtype)

        def after_norm(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            normed = self._narrow(module, args[0], out) if hidden else out
            return torch.where(self.now.wholes[place][row] == 0, args[0], normed)

        if self.gates.learns(unit):
            size = output.in_features // self.now.units[place].shape[-1]
            self._on(gate_input(output, lambda: self.now.units[place][row], size))
        # A sub-layer is also skipped where all its units are gone.
        if hidden or self.gates.learns(whole) or self.gates.learns(unit):
            self._on(output.register_forward_hook(after_projection))
            self._on(layer.get_submodule(table.norm).register_forward_hook(after_norm))

    def _narrow(self, writer: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """What `writer` made of `x`, in the hidden dimensions that are left."""
        gate = self.now.hidden
        return masked_norm(x, gate, writer) if isinstance(writer, nn.LayerNorm) else out * gate.to(out.dtype)

    def _on(self, handle: RemovableHandle) -> None:
        self._handles.append(handle)

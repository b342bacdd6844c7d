"""The sub-layers that a model still computes, and how many units of each a candidate keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compressor.models.architecture import SubLayerTable, architecture_of, structure_of
from compressor.models.structure import SubLayer

Key = tuple[str, int, str]
"""A sub-layer: stack, layer, name."""
Units = int | None
"""How many units a sub-layer keeps; `None`: it is absent, with its residual add and norm."""
Choice = Mapping[Key, Units]
"""What a candidate keeps of every place."""


@dataclass(frozen=True)
class Place:
    """A sub-layer with units left: `units` are their original indices, each owns `size` columns of `projection`.

    `at` is its layer's place in the model's list of layers.
    """

    key: Key
    at: int
    layer: nn.Module
    table: SubLayerTable
    units: tuple[int, ...]
    size: int

    @property
    def projection(self) -> Any:
        """The output projection: where its units come together."""
        return self.layer.get_submodule(self.table.output)

    @property
    def norm(self) -> nn.Module:
        """The norm after its residual add."""
        return self.layer.get_submodule(self.table.norm)

    def keeping(self, kept: list[int] | None) -> SubLayer:
        """This sub-layer with the units at these places; `None`: absent."""
        return SubLayer(absent=True) if kept is None else SubLayer(tuple(self.units[at] for at in kept))


def places_of(model: PreTrainedModel) -> list[Place]:
    """All sub-layers of `model` in which anything is left to remove, in the order in which they are computed."""
    architecture, structure = architecture_of(model.config), structure_of(model)
    found = []
    for stack in architecture.stacks:
        layers = architecture.layers(model, stack)
        for at, layer in enumerate(la for la in structure.layers if la.stack == stack.name):
            for table in stack.sublayers:
                units = layer.sublayers[table.name].kept
                if units:
                    key = (stack.name, layer.index, table.name)
                    size = structure.sizes.unit_size(table.name)
                    found.append(Place(key, at, layers[at], table, units, size))
    return found

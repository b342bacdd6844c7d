"""What a transformer may have in place of LayerNorm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of, module_at

KEY = "norm"
"""Key under the config's `compressor` that tells a model with `AffineNorm` from one with LayerNorm."""


class AffineNorm(nn.Module):
    """g x + b, feature by feature: LayerNorm without statistics ("NoNorm", Sun et al. 2020, MobileBERT)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., hidden), same shape out."""
        return x * self.weight + self.bias


def replace_norms(model: PreTrainedModel, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put `make(norm)` in place of the embeddings' norm and every sub-layer's."""
    architecture = architecture_of(model.config)
    embeddings_norm = architecture.embeddings_norm
    places = [(model.base_model, embeddings_norm)] if embeddings_norm else []
    for stack in architecture.stacks:
        for layer in architecture.layers(model, stack):
            places += [(layer, table.norm) for table in stack.sublayers]
    for owner, path in places:
        norm = module_at(owner, path)
        if norm is not None and not isinstance(norm, nn.Identity):
            owner.set_submodule(path, make(norm))


def without_statistics(norm: nn.Module) -> AffineNorm:
    """An AffineNorm of the same width, to load weights into."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return AffineNorm(torch.empty_like(weight), torch.empty_like(weight))

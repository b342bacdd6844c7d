"""Filling the holes that pruning left inside kept units (Lagunas et al. 2021, "hybrid filled")."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of


@torch.no_grad()
def fill_zeros(model: PreTrainedModel, size: float, seed: int) -> int:
    """Replace exact zeros in the layers' weight matrices by N(mean, (size x std)^2) of the whole tensor.

    Biases stay: a zero there can learn. Returns how many weights were filled.
    """
    generator = torch.Generator().manual_seed(seed)
    architecture = architecture_of(model.config)
    filled = 0
    for stack in architecture.stacks:
        for name, weight in architecture.layers(model, stack).named_parameters():
            zero = weight == 0
            if name.endswith("bias") or weight.dim() < 2 or not zero.any():
                continue
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            values = noise * weight.std() * size + weight.mean()
            weight[zero] = values[zero]
            filled += int(zero.sum())
    return filled

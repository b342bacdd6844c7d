"""Filling the holes that pruning left inside kept units (Lagunas et al. 2021, "hybrid filled")."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of


@torch.no_grad()
def fill_zeros(model: PreTrainedModel, size: float, seed: int) -> int:
    """Replace exact zeros in the layers' weight matrices by N(mean, (size x std)^2) of the whole tensor.

    Biases stay: a zero there can learn. A matrix that is zero throughout (the queries of heads that only
    average) has no scale of its own and takes the mean one: left at zero it would never get a gradient.
    Returns how many weights were filled.
    """
    generator = torch.Generator().manual_seed(seed)
    architecture = architecture_of(model.config)
    filled = 0
    for stack in architecture.stacks:
        parameters = architecture.layers(model, stack).named_parameters()
        matrices = [p for name, p in parameters if p.dim() > 1 and not name.endswith("bias")]
        scales = [matrix.std() for matrix in matrices]
        usual = (
            torch.stack([s for s in scales if s > 0]).mean() if any(s > 0 for s in scales) else torch.ones(())
        )
        for weight, scale in zip(matrices, scales, strict=True):
            zero = weight == 0
            if not zero.any():
                continue
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            values = noise * (scale if scale > 0 else usual) * size + weight.mean()
            weight[zero] = values[zero]
            filled += int(zero.sum())
    return filled

"""Cheaper norms and activations, reached gradually while training: LayerNorm to NoNorm, GELU to ReLU.

Source: Lagunas et al. 2021, appendix; NoNorm is MobileBERT's (Sun et al. 2020). Off by default: on a CPU both
must be measured before they are believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of, module_at
from compressor.models.norms import KEY, AffineNorm, replace_norms
from compressor.schema import steps_of

if TYPE_CHECKING:
    from compressor.pruning.movement import Movement


class FadingNorm(nn.Module):
    """LayerNorm whose statistics fade from each token's own to the running mean over all tokens.

    `share` (1 to 0) is what is left of LayerNorm. In eval mode it always is the affine map it will become.
    """

    statistics: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.share = 1.0
        self.register_buffer("statistics", torch.zeros(3, device=norm.weight.device))  # mean, variance, count

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., hidden), same shape out."""
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        share = self.share if self.training else 0.0
        if self.training:
            with torch.no_grad():
                now = torch.stack([mean.mean(), variance.mean(), mean.new_ones(())]).float()
                self.statistics.lerp_(now, 0.01 * share)
        if self.statistics[2] > 0:
            fixed = self.statistics / self.statistics[2]
            mean = share * mean + (1 - share) * fixed[0]
            variance = share * variance + (1 - share) * fixed[1]
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    def fixed(self) -> AffineNorm:
        """What it is in the end."""
        mean, variance, _ = (self.statistics / self.statistics[2]).tolist()
        weight = self.weight.detach() * (variance + self.eps) ** -0.5
        return AffineNorm(weight, self.bias.detach() - mean * weight)


class FadingActivation(nn.Module):
    """An activation that fades to ReLU as `share` goes from 1 to 0; ReLU in eval mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.share = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        share = self.share if self.training else 0.0
        relu = torch.relu(x)
        return relu if share == 0.0 else share * self.inner(x) + (1 - share) * relu


class Patches:
    """The patches a recipe asks for, on a whole model; nothing where it asks for none."""

    def __init__(self, model: PreTrainedModel, keys: Movement) -> None:
        self.model = model
        self.keys = keys
        self.norms: list[FadingNorm] = []
        self.activations: list[FadingActivation] = []
        if keys.nonorm is not None:
            replace_norms(model, self._norm)
        if keys.relu is not None:
            for owner, path in _activations(model):
                self.activations.append(FadingActivation(owner.get_submodule(path)))
                owner.set_submodule(path, self.activations[-1])

    def _norm(self, norm: nn.Module) -> nn.Module:
        assert isinstance(norm, nn.LayerNorm)
        self.norms.append(FadingNorm(norm).train(norm.training))
        return self.norms[-1]

    def move(self, step: int, total: int) -> None:
        """Set every patch to where it is before optimiser step `step` of `total`."""
        for modules, length in ((self.norms, self.keys.nonorm), (self.activations, self.keys.relu)):
            for module in modules:
                module.share = max(0.0, 1 - step / max(1, steps_of(length or 0, total)))

    @torch.no_grad()
    def fold(self) -> None:
        """Leave plain affine norms and ReLU in the model, and say so in its config."""
        config = self.model.config
        if self.norms:
            replace_norms(self.model, lambda norm: norm.fixed() if isinstance(norm, FadingNorm) else norm)
            config.compressor = (getattr(config, "compressor", None) or {}) | {KEY: "affine"}
        if self.activations:
            setattr(config, architecture_of(config).activation_key, "relu")
            for owner, path in _activations(self.model):
                owner.set_submodule(path, nn.ReLU())


def _activations(model: PreTrainedModel) -> list[tuple[nn.Module, str]]:
    """Where the layers' activations are: the owner and the path inside it."""
    architecture = architecture_of(model.config)
    return [
        (layer, table.activation)
        for stack in architecture.stacks
        for layer in architecture.layers(model, stack)
        for table in stack.sublayers
        if table.activation and module_at(layer, table.activation) is not None
    ]

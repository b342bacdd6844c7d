"""Score tensors and the masked linear maps they make.

Source: Lagunas et al. 2021, section 3; straight-through scores as in Sanh et al. 2020 (movement pruning).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from compressor.errors import UserError
from compressor.models.architecture import architecture_of

CONTAINER = "block_scores"


class _Masked(torch.autograd.Function):
    """`mask(scores) * weight` by blocks; scores get the blockwise sum of gradient x weight, straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return (_blocks(weight, mask) * mask[:, None, :, None]).view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, mask = ctx.saved_tensors
        grad = _blocks(grads[0].contiguous(), mask)
        scores = torch.einsum("abcd,abcd->ac", grad, _blocks(weight, mask))
        return (grad * mask[:, None, :, None]).view_as(weight), scores, None


def _blocks(weight: Tensor, mask: Tensor) -> Tensor:
    """(rows, columns) seen as (block rows, rows in a block, block columns, columns in a block)."""
    rows, columns = mask.shape
    return weight.view(rows, weight.shape[0] // rows, columns, weight.shape[1] // columns)


class MaskedWeight(nn.Module):
    """Parametrization of a linear map's weight. `grid` gives its scores as (block rows, block columns)."""

    def __init__(self, grid: Callable[[], Tensor], threshold: Callable[[], float]) -> None:
        super().__init__()
        self.grid = grid
        self.threshold = threshold

    def mask(self) -> Tensor:
        """0/1 per block: 1 where sigmoid(score) > threshold, strictly."""
        scores = self.grid().detach()
        return (torch.sigmoid(scores) > self.threshold()).to(scores.dtype)

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, same shape."""
        masked: Tensor = _Masked.apply(weight, self.grid(), self.mask())
        return masked


class MaskedBias(nn.Module):
    """Parametrization of a bias: an output whose whole row is masked loses its bias too (no gradient)."""

    def __init__(self, mask: Callable[[], Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, bias: Tensor) -> Tensor:
        """The gated bias, same shape."""
        alive = self.mask().amax(dim=1)
        return bias * alive.repeat_interleave(bias.shape[0] // alive.shape[0])


class Masks:
    """The scores of a whole model, in one container module (`model.block_scores`).

    Attention matrices have a score a block (the output projection's blocks are transposed), the two FFN
    matrices share one score a neuron. While the model trains, masks follow `threshold_now`; in eval mode
    always the final threshold.
    """

    def __init__(self, model: PreTrainedModel, block: tuple[int, ...], threshold: float) -> None:
        """Attach to `model`, all scores 0.

        Raises:
            ValueError: an attention matrix is no whole number of blocks.
        """
        self.model = model
        self.threshold = threshold
        self.threshold_now = 0.0
        self.attention: list[nn.Parameter] = []
        self.ffn: list[nn.Parameter] = []
        self.masked: list[tuple[nn.Linear, MaskedWeight, str]] = []
        model.add_module(CONTAINER, nn.Module())
        architecture = architecture_of(model.config)
        for stack in architecture.stacks:
            for i, layer in enumerate(architecture.layers(model, stack)):
                for table in stack.sublayers:
                    name = f"{stack.name}_{i}_{table.name}"
                    inputs = [_linear(layer, path) for path in table.inputs]
                    output = _linear(layer, table.output)
                    if table.is_attention:
                        self._attention(name, [*inputs, output], block)
                    else:
                        self._ffn(name, inputs, output)

    def current_threshold(self) -> float:
        """The schedule's threshold in training, else the final one."""
        return self.threshold_now if self.model.training else self.threshold

    def _attention(self, name: str, linears: list[nn.Linear], block: tuple[int, ...]) -> None:
        for i, linear in enumerate(linears):
            rows, columns = block if i < len(linears) - 1 else block[::-1]
            if linear.out_features % rows or linear.in_features % columns:
                raise ValueError(f"blocks of {rows} x {columns} do not tile {tuple(linear.weight.shape)}")
            scores = self._scores(
                f"{name}_{i}", torch.zeros(linear.out_features // rows, linear.in_features // columns)
            )
            self.attention.append(scores)
            self._mask(linear, _itself(scores), "attention")

    def _ffn(self, name: str, inputs: list[nn.Linear], output: nn.Linear) -> None:
        scores = self._scores(name, torch.zeros(output.in_features))
        self.ffn.append(scores)
        for linear in inputs:
            self._mask(linear, lambda: scores[:, None], "ffn")
        self._mask(output, lambda: scores[None, :], "ffn")

    def _scores(self, name: str, initial: Tensor) -> nn.Parameter:
        scores = nn.Parameter(initial.to(self.model.device))
        self.model.get_submodule(CONTAINER).register_parameter(name, scores)
        return scores

    def _mask(self, linear: nn.Linear, grid: Callable[[], Tensor], part: str) -> None:
        weight = MaskedWeight(grid, self.current_threshold)
        parametrize.register_parametrization(linear, "weight", weight, unsafe=True)
        if linear.bias is not None:
            parametrize.register_parametrization(linear, "bias", MaskedBias(weight.mask), unsafe=True)
        self.masked.append((linear, weight, part))

    def regularization(self, attention: float, ffn: float) -> Tensor:
        """Mean of sigmoid(scores) per tensor, mean over a part's tensors, weighted mean of the two parts."""
        parts = [(attention, self.attention), (ffn, self.ffn)]
        means = [
            weight * torch.stack([torch.sigmoid(s).mean() for s in part]).mean() for weight, part in parts
        ]
        return torch.stack(means).mean()

    def densities(self) -> dict[str, float]:
        """Non-zero share of the masked weights at the final threshold: attention, ffn and both together."""
        kept = {"attention": 0.0, "ffn": 0.0}
        total = {"attention": 0, "ffn": 0}
        for linear, weight, part in self.masked:
            alive = (torch.sigmoid(weight.grid().detach()) > self.threshold).float()
            size = linear.in_features * linear.out_features
            kept[part] += alive.mean().item() * size
            total[part] += size
        figures = {part: kept[part] / total[part] for part in kept}
        return figures | {"total": sum(kept.values()) / sum(total.values())}

    @torch.no_grad()
    def fold(self) -> None:
        """Write the masked weights and biases at the final threshold into the model and drop the scores."""
        self.model.eval()
        for linear, _, _ in self.masked:
            for name in ("bias", "weight"):
                if parametrize.is_parametrized(linear, name):
                    parametrize.remove_parametrizations(linear, name, leave_parametrized=True)
        delattr(self.model, CONTAINER)


def _itself(scores: Tensor) -> Callable[[], Tensor]:
    return lambda: scores


def _linear(layer: nn.Module, path: str) -> nn.Linear:
    linear = layer.get_submodule(path)
    if not isinstance(linear, nn.Linear):
        raise UserError(
            "movement pruning starts from a model with every sub-layer; this one was sliced before"
        )
    return linear

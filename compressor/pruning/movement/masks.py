"""The masked linear maps that scores make of a model.

Source: Lagunas et al. 2021, section 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from compressor.errors import UserError
from compressor.models.architecture import SubLayerTable, architecture_of, structure_of
from compressor.models.structure import Structure
from compressor.pruning.movement import OPEN, Movement
from compressor.pruning.movement.scores import KINDS, Cut, HardConcrete, Magnitudes, Scores

CONTAINER = "block_scores"
Key = tuple[str, int, str]
"""A sub-layer: stack, layer, name."""


class _Masked(torch.autograd.Function):
    """`mask * weight` by blocks; `straight` gets the blockwise sum of gradient x weight, whatever the mask."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, straight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return (_blocks(weight, mask) * mask[:, None, :, None]).view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weight, mask = ctx.saved_tensors
        grad = _blocks(grads[0].contiguous(), mask)
        straight = None
        if ctx.needs_input_grad[1]:
            straight = torch.einsum("abcd,abcd->ac", grad, _blocks(weight, mask))
        return (grad * mask[:, None, :, None]).view_as(weight), straight, None


def _blocks(weight: Tensor, mask: Tensor) -> Tensor:
    """(rows, columns) seen as (block rows, rows in a block, block columns, columns in a block)."""
    rows, columns = mask.shape
    return weight.view(rows, weight.shape[0] // rows, columns, weight.shape[1] // columns)


@dataclass(frozen=True)
class Grid:
    """Scores laid over a matrix's grid of blocks: as they are, or one for each of its rows or columns of units."""

    scores: Scores
    axis: int | None = None
    repeat: int = 1

    def lay(self, values: Tensor) -> Tensor:
        """Values in the shape of the scores as (block rows, block columns), where 1 stands for all."""
        if self.axis is None:
            return values
        return values.repeat_interleave(self.repeat).unsqueeze(1 - self.axis)


class MaskedWeight(nn.Module):
    """Parametrization of a linear map's weight: a block lives while it does in every one of `grids`."""

    def __init__(self, grids: list[Grid]) -> None:
        super().__init__()
        self.grids = grids

    def mask(self) -> Tensor:
        """(block rows, block columns), no gradient."""
        first, *others = [grid.lay(grid.scores.mask()) for grid in self.grids]
        for other in others:
            first = first * other
        return first

    def margin(self) -> Tensor:
        """The score that decides about each block, (block rows, block columns): the least of its grids'."""
        laid = [grid.lay(_never_lost(grid.scores)) for grid in self.grids]
        first, *others = laid
        for other in others:
            first = first.minimum(other)
        return first

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, same shape."""
        straight = sum(grid.lay(grid.scores.straight()) for grid in self.grids)
        masked: Tensor = _Masked.apply(weight, straight, self.mask())
        return masked


def _never_lost(scores: Scores) -> Tensor:
    ranking = scores.ranking()
    return ranking if scores.protected is None else ranking.masked_fill(scores.protected.bool(), torch.inf)


class MaskedBias(nn.Module):
    """Parametrization of a bias: an output whose whole row is masked loses its bias too (no gradient)."""

    def __init__(self, weight: MaskedWeight) -> None:
        super().__init__()
        self.rows = weight.mask

    def forward(self, bias: Tensor) -> Tensor:
        """The gated bias, same shape."""
        alive = self.rows().amax(dim=1).gt(0).to(bias.dtype)
        return bias * alive.repeat_interleave(bias.shape[0] // alive.shape[0])


@dataclass(frozen=True)
class Masked:
    """One masked matrix: where it is, and whether it is the output projection of its sub-layer."""

    key: Key
    linear: nn.Linear
    weight: MaskedWeight
    is_output: bool

    @property
    def part(self) -> str:
        """What of the report it counts for: attention or ffn."""
        return part_of(self.key)

    def margins(self) -> Tensor:
        """The best score along each of its outputs, or inputs where it is the output projection: (features,)."""
        margin = self.weight.margin()
        best = margin.amax(dim=0 if self.is_output else 1)
        features = self.linear.in_features if self.is_output else self.linear.out_features
        return best.repeat_interleave(features // len(best))


def part_of(key: Key) -> str:
    """What a sub-layer is regularised and reported with: attention or ffn, of a decoder with `decoder_` before it."""
    stack, _, name = key
    return ("decoder_" if stack == "decoder" else "") + ("ffn" if name == "ffn" else "attention")


class Masks:
    """The scores of a whole model, in one container module (`model.block_scores`), and the matrices they mask.

    Attention matrices have a score a block (the output projection's blocks are transposed), the two FFN
    matrices share one score a neuron, or have their own blocks, as the variant says. While the model trains,
    masks follow `cut.now`; in eval mode always the final threshold.
    """

    def __init__(self, model: PreTrainedModel, keys: Movement) -> None:
        """Attach to `model`, all scores at their initial value.

        Raises:
            UserError: a matrix is no whole number of blocks, or a sub-layer is missing.
        """
        self.model = model
        self.keys = keys
        self.sizes = structure_of(model).sizes
        self.cut = Cut(keys.mask, keys.final_threshold, OPEN[keys.mask], keys.min_keep)
        self.scores: dict[str, list[Scores]] = defaultdict(list)
        self.masked: list[Masked] = []
        model.add_module(CONTAINER, nn.Module())
        architecture = architecture_of(model.config)
        for stack in architecture.stacks:
            for i, layer in enumerate(architecture.layers(model, stack)):
                for table in stack.sublayers:
                    self._sublayer((stack.name, i, table.name), layer, table)
        model.get_submodule(CONTAINER).train(model.training)

    def _sublayer(self, key: Key, layer: nn.Module, table: SubLayerTable) -> None:
        """Scores a block of each matrix, or one a unit for all of them, or both (joint heads)."""
        inputs = [_linear(layer, path) for path in table.inputs]
        linears = [*inputs, _linear(layer, table.output)]
        size = self.sizes.unit_size(table.name)
        block = self.keys.block_of(table.name, self.sizes)
        units = linears[-1].in_features // size
        joint = self._scores(key, "units", (units,)) if self.keys.shares_units(table.name) else None
        for i, linear in enumerate(linears):
            output = i == len(inputs)
            grids = []
            if block is not None:
                grids.append(Grid(self._blocks(key, i, linear, block[::-1] if output else block)))
            if joint is not None:
                side = block[0] if block else size
                if size % side:
                    raise UserError(f"movement: joint_heads needs blocks that divide a head's {size} rows")
                grids.append(Grid(joint, int(output), size // side))
            self._mask(Masked(key, linear, MaskedWeight(grids), output))

    def _blocks(self, key: Key, i: int, linear: nn.Linear, block: tuple[int, int]) -> Scores:
        shape = (linear.out_features // block[0], linear.in_features // block[1])
        if (shape[0] * block[0], shape[1] * block[1]) != (linear.out_features, linear.in_features):
            raise UserError(
                f"movement: {block[0]} x {block[1]} blocks do not tile {tuple(linear.weight.shape)}"
            )
        return self._scores(key, str(i), shape)

    def _scores(self, key: Key, name: str, shape: tuple[int, ...]) -> Scores:
        initial = torch.full(shape, self.keys.first_score, device=self.model.device)
        scores = KINDS.get(self.cut.rule, Scores)(initial, self.cut)
        stack, layer, sublayer = key
        self.model.get_submodule(CONTAINER).add_module(f"{stack}_{layer}_{sublayer}_{name}", scores)
        self.scores[part_of(key)].append(scores)
        return scores

    def _mask(self, masked: Masked) -> None:
        linear, weight = masked.linear, masked.weight
        parametrize.register_parametrization(linear, "weight", weight, unsafe=True)
        if linear.bias is not None and self.keys.mask_biases:
            parametrize.register_parametrization(linear, "bias", MaskedBias(weight), unsafe=True)
        parametrized: Any = linear.parametrizations
        original = parametrized.weight
        for grid in weight.grids:
            if isinstance(grid.scores, Magnitudes):
                grid.scores.sources.append((lambda: original.original, grid.axis))
        self.masked.append(masked)

    def parameters(self) -> list[nn.Parameter]:
        """The scores that are learned."""
        return [s.values for part in self.scores.values() for s in part if s.values.requires_grad]

    def regularization(self) -> Tensor:
        """Mean penalty of a part's tensors, then the weighted mean of the parts."""
        means = [
            self.keys.strength_of(part) * torch.stack([s.penalty() for s in scores]).mean()
            for part, scores in self.scores.items()
        ]
        return torch.stack(means).mean()

    def draw(self, seed: int) -> None:
        """Fresh noise for masks that are random while they train."""
        generator = torch.Generator().manual_seed(seed)
        for scores in chain.from_iterable(self.scores.values()):
            if isinstance(scores, HardConcrete):
                scores.draw(generator)

    def protect(self, guide: Structure) -> None:
        """Keep the heads of `guide` whole, whatever their scores ("rewind").

        Raises:
            UserError: the guide was cut out of a model of another shape.
        """
        if guide.sizes != self.sizes or structure_of(self.model) != Structure.dense(self.sizes):
            raise UserError("movement: `rewind` needs a guide and a dense model of the same shape")
        heads = {(la.stack, la.index): la.sublayers for la in guide.layers}
        for masked in self.masked:
            stack, layer, name = masked.key
            if name == "ffn" or (stack, layer) not in heads:
                continue
            kept = torch.zeros(self.sizes.stacks[stack][name], dtype=torch.bool)
            kept[list(heads[stack, layer][name].kept)] = True
            rows = kept.repeat_interleave(self.sizes.unit_size(name))
            for grid in masked.weight.grids:
                _protect(grid, rows, int(masked.is_output))

    def densities(self) -> dict[str, float]:
        """Non-zero share of the masked weights at the final threshold: of every part, and of all together."""
        kept, total = dict.fromkeys(self.scores, 0.0), dict.fromkeys(self.scores, 0)
        with self.evaluating():
            for masked in self.masked:
                linear = masked.linear
                size = linear.in_features * linear.out_features
                kept[masked.part] += masked.weight.mask().gt(0).float().mean().item() * size
                total[masked.part] += size
        figures = {part: kept[part] / total[part] for part in kept}
        return figures | {"total": sum(kept.values()) / sum(total.values())}

    def margins(self) -> dict[Key, Tensor]:
        """For every unit the score that decides whether it lives, (units,): the lower of what writes and reads it."""
        found: dict[Key, Tensor] = {}
        for masked in self.masked:
            size = self.sizes.unit_size(masked.key[2])
            by_unit = masked.margins().view(-1, size).amax(dim=1)
            # The last input is the one that decides: of queries, keys and values, the values.
            found[masked.key] = found[masked.key].minimum(by_unit) if masked.is_output else by_unit
        return found

    def threshold_for(self, sparsity: float) -> float:
        """The final threshold at which slicing removes this share of the layers' linear weights."""
        margins = self.margins()
        each = {
            name: self.sizes.unit_size(name) * self.sizes.projections[name] for name in self.sizes.projections
        }
        weights = torch.cat([torch.full_like(m, each[key[2]]) for key, m in margins.items()])
        scores, order = torch.cat(list(margins.values())).sort()
        removed = weights[order].double().cumsum(0)
        goes = int((removed <= sparsity * removed[-1]).sum())
        if not goes:
            return OPEN[self.cut.rule]
        score = scores[goes - 1]  # cut-offs are strict: this one goes
        return (torch.sigmoid(score) if self.cut.rule == "sigmoid" else score).item()

    def align(self, multiple: int) -> None:
        """Keep so many of the best dead neurons that FFN widths are multiples (an empty one stays empty)."""
        for scores in (
            one for part, several in self.scores.items() if part.endswith("ffn") for one in several
        ):
            with self.evaluating():
                kept = int(scores.mask().count_nonzero())
            scores.least = min(-(-kept // multiple) * multiple, scores.values.numel())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Masks at the final threshold while inside, also of a model that trains."""
        container = self.model.get_submodule(CONTAINER)
        training = container.training
        container.eval()
        try:
            yield
        finally:
            container.train(training)

    @torch.no_grad()
    def fold(self) -> None:
        """Write the masked weights and biases at the final threshold into the model and drop the scores."""
        self.model.eval()
        for masked in self.masked:
            for name in ("bias", "weight"):
                if parametrize.is_parametrized(masked.linear, name):
                    parametrize.remove_parametrizations(masked.linear, name, leave_parametrized=True)
        delattr(self.model, CONTAINER)


def _protect(grid: Grid, features: Tensor, axis: int) -> None:
    """Blocks of `grid` that hold one of these features (bool), along the rows (axis 0) or columns, stay."""
    scores = grid.scores.values
    along = axis if grid.axis is None else 0
    kept = features.to(scores.device).view(scores.shape[along], -1).any(dim=1).to(scores)
    grid.scores.protected = (kept if grid.axis is not None else kept.unsqueeze(1 - axis)).expand_as(scores)


def _linear(layer: nn.Module, path: str) -> nn.Linear:
    linear = layer.get_submodule(path)
    if not isinstance(linear, nn.Linear):
        raise UserError(
            "movement pruning starts from a model with every sub-layer; this one was sliced before"
        )
    return linear

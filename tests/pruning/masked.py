"""Models with random scores, for tests of block movement pruning."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of
from compressor.pruning.movement import Movement
from compressor.pruning.movement.masks import Masks
from compressor.pruning.movement.patches import Patches
from compressor.pruning.movement.training import MovementPart
from tests.zoo import tiny_model


def movement(**keys: Any) -> Movement:
    """The method; blocks of 4 x 4 where the variant has blocks."""
    blocks = keys.get("variant", "hybrid") in ("hybrid", "block")
    return Movement(**({"method": "movement"} | ({"attention_block": [4, 4]} if blocks else {}) | keys))


def masked_model(family: str = "bert", **keys: Any) -> tuple[Any, Masks]:
    """A tiny model, and its masks."""
    model = tiny_model(family)
    return model, Masks(model, movement(**keys))


def part_of(masks: Masks, **extra: Any) -> MovementPart:
    """The training part that goes with the masks."""
    return MovementPart(masks, Patches(masks.model, masks.keys), masks.keys, **extra)


def values(masks: Masks, part: str | None = None) -> list[nn.Parameter]:
    """The score tensors, all or of `attention` or `ffn`."""
    return [s.values for p, scores in masks.scores.items() for s in scores if part in (None, p)]


@torch.no_grad()
def scatter(masks: Masks, seed: int = 0, mean: float = -1.0, spread: float = 3.0) -> None:
    """Random scores."""
    torch.manual_seed(seed)
    for scores in values(masks):
        nn.init.normal_(scores, mean=mean, std=spread)


def mask_of(linear: nn.Module) -> Tensor:
    """The mask on a linear map's weight, (block rows, block columns)."""
    found: Any = linear
    mask: Tensor = found.parametrizations.weight[0].mask()
    return mask


def parts(model: PreTrainedModel, layer: int = 0) -> dict[str, Any]:
    """The linear maps of a layer: q, k, v, o, in, out; with relative positions also r."""
    architecture = architecture_of(model.config)
    stack = architecture.stacks[0]
    module = architecture.layers(model, stack)[layer]
    attention, ffn = stack.sublayers
    names = dict(zip("qkrv" if attention.positional else "qkv", attention.inputs, strict=True)) | {
        "o": attention.output,
        "in": ffn.inputs[0],
        "out": ffn.output,
    }
    return {name: module.get_submodule(path) for name, path in names.items()}

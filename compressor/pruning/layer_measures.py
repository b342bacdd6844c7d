"""What layers do, measured: how far each turns its input, how large its weights are, what its loss costs.

Sources: Sajjad et al. 2020 (contribution); Men et al. 2024, ShortGPT (block influence); Gromov et al. 2024 (angular
distance); Song et al. 2024, SLEB (direct measurement, one removal after the other).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from compressor.errors import UserError
from compressor.models.architecture import architecture_of, structure_of
from compressor.models.gates import Gates
from compressor.pruning.context import Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.pruning.layer_drop import LayerDrop

Batches = Iterable[dict[str, Tensor]]


def choose(keys: LayerDrop, model: PreTrainedModel, context: Context) -> list[list[int]]:
    """For every number of layers asked for (or for the threshold) the places of those to drop, rising."""
    counts = keys.counts()
    if keys.strategy == "metric":
        order = least_missed(model, context, max(counts))
        return [sorted(order[:count]) for count in counts]
    if keys.strategy == "angular":
        return [least_turning_block(model, context.batches(), count) for count in counts]
    if keys.strategy == "weight":
        ranked = _rising(weight_statistics(model, keys.weight_statistic))
    elif keys.strategy == "block-influence":
        ranked = _rising(block_influence(model, context.batches()))
    else:
        similar = contribution(model, context.batches())
        if keys.threshold is not None:
            return [_above(similar, keys.threshold)]
        ranked = _rising([-one for one in similar])
    return [sorted(ranked[:count]) for count in counts]


def contribution(model: PreTrainedModel, batches: Batches) -> list[float]:
    """Mean cosine of every layer's input and output at `[CLS]`; near 1: the layer changes little."""
    return _mean_cosines(model, batches, one_token=True)


def block_influence(model: PreTrainedModel, batches: Batches) -> list[float]:
    """1 - mean cosine of every layer's input and output, over all tokens but padding."""
    return [1 - cosine for cosine in _mean_cosines(model, batches, one_token=False)]


def least_turning_block(model: PreTrainedModel, batches: Batches, length: int) -> list[int]:
    """The `length` layers in a row over which `[CLS]` turns by the least angle."""
    if length == 0:
        return []
    total, count = torch.zeros(0), 0
    for states in _cls_states(model, batches):
        cosines = cosine_similarity(states[:-length], states[length:], dim=-1).clamp(-1, 1)
        angles = torch.arccos(cosines).sum(dim=1) / math.pi
        total = angles if count == 0 else total + angles
        count += states.shape[1]
    start = int(total.argmin())
    return list(range(start, start + length))


def weight_statistics(model: PreTrainedModel, statistic: str) -> list[float]:
    """Mean magnitude or variance of every layer's matrices (an interpretation: the paper gives no formula)."""
    found = []
    for layer in _layers(model):
        weights = torch.cat([p.detach().flatten().double() for p in layer.parameters() if p.dim() > 1])
        found.append((weights.abs().mean() if statistic == "magnitude" else weights.var()).item())
    return found


def least_missed(model: PreTrainedModel, context: Context, count: int) -> list[int]:
    """The order in which layers go if each time the one is taken without which the metric is best.

    The first and the last layer stay.

    Raises:
        UserError: more layers are asked for than lie between those.
    """
    from compressor.pruning.layer_drop import without

    structure = structure_of(model)
    between = range(1, len(structure.layers) - 1)
    gone: list[int] = []
    for _ in range(count):
        scores = {}
        for place in between:
            if place not in gone:
                with Gates(model, without(structure, [*gone, place])):
                    scores[place] = context.score(model)
        gone.append(max(scores, key=lambda place: (scores[place], place)))
    return gone


def similarity(model: PreTrainedModel, batches: Batches) -> Tensor:
    """Mean cosine of `[CLS]`'s state after every layer with that after every other: (layers + 1)^2."""
    total, count = torch.zeros(0), 0
    for states in _cls_states(model, batches):
        unit = torch.nn.functional.normalize(states, dim=-1)
        cosines = torch.einsum("ird,jrd->ij", unit, unit)
        total = cosines if count == 0 else total + cosines
        count += states.shape[1]
    return total / count


def _mean_cosines(model: PreTrainedModel, batches: Batches, one_token: bool) -> list[float]:
    """A layer's mean over rows, or over tokens; in float64, so that the batch size does not matter."""
    cls = architecture_of(model.config).cls
    total, count = torch.zeros(0), 0
    for states, mask in _hidden_states(model, batches):
        where = torch.zeros_like(mask) if one_token else mask
        where[:, cls] = True
        stacked = torch.stack(states).double()  # (layers + 1, rows, tokens, hidden)
        cosines = (cosine_similarity(stacked[:-1], stacked[1:], dim=-1) * where).sum(dim=(1, 2))
        total = cosines if count == 0 else total + cosines
        count += int(where.sum())
    return (total / count).tolist()


def _cls_states(model: PreTrainedModel, batches: Batches) -> Iterable[Tensor]:
    """States of the token that stands for the whole text, (layers + 1, rows, hidden) in float64, batch by batch."""
    cls = architecture_of(model.config).cls
    for states, _ in _hidden_states(model, batches):
        yield torch.stack([state[:, cls] for state in states]).double()


@torch.no_grad()
def _hidden_states(model: PreTrainedModel, batches: Batches) -> Iterable[tuple[tuple[Tensor, ...], Tensor]]:
    """States before the first layer and after every one, with the mask of real tokens, batch by batch."""
    model.eval()
    names = architecture_of(model.config).inputs
    for batch in batches:
        inputs = {name: values.to(model.device) for name, values in batch.items() if name in names}
        outputs: Any = model.base_model(**inputs, output_hidden_states=True)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        yield outputs.hidden_states, mask.bool()


def _layers(model: PreTrainedModel) -> Iterable[Any]:
    architecture = architecture_of(model.config)
    return architecture.layers(model, architecture.stacks[0])


def _rising(scores: Sequence[float]) -> list[int]:
    """Places by rising score; of equal ones the higher first."""
    return sorted(range(len(scores)), key=lambda place: (scores[place], -place))


def _above(similar: Sequence[float], threshold: float) -> list[int]:
    places = [place for place, one in enumerate(similar) if one > threshold]
    if len(places) == len(similar):
        raise UserError(
            f"layer-drop: every layer is above the threshold {threshold:g} (the least has {min(similar):.3f}); "
            "raise it"
        )
    return places

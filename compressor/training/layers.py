"""Distillation of hidden states: some of the teacher's layers, each taught to the student's layer that suits it.

Source: Xia et al. 2022 (CoFi), section 3.2. The teacher runs in the step: hidden states of a whole data set would
fill a disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from compressor.errors import UserError
from compressor.models.architecture import architecture_of, structure_of
from compressor.schema import Distill

CONTAINER = "layer_transform"
FILE = "layer_transform.safetensors"
"""The learned map, beside the pruned model it was learned with."""
TAUGHT = 4
"""Layers of the teacher that are taught: the last of every quarter."""

Weights = Mapping[str, Tensor]


class LayerDistiller:
    """A teacher, and the linear map of the student's hidden states that is compared with its own.

    `match` is one of
    - `same`: every layer of the teacher, to the student's layer of that number if it is there;
    - `nearest`: the last layers of the teacher's quarters, each to the student's layer that is nearest now;
    - `ordered`: the same, from the top down, each to a layer that does something below the one chosen before;
    - `random`, `windows`: `ordered`, of four layers drawn for every step, from all or one from each quarter.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        keys: Distill,
        learned: Weights | None = None,
    ) -> None:
        """`learned`: what the map was before the student was sliced.

        Raises:
            UserError: the teacher reads other inputs than the student.
        """
        check_inputs(teacher.config, student.config)
        self.teacher = teacher.eval().requires_grad_(False)
        self.keys = keys
        self.names = architecture_of(teacher.config).inputs
        self.transform = transform_of(student, teacher, learned)
        self.places = {layer.index: at for at, layer in enumerate(structure_of(student).layers)}
        """Where the student has a layer of the original."""

    @contextmanager
    def beside(self, model: PreTrainedModel) -> Iterator[None]:
        """The linear map is a module of `model` while inside: it trains and is saved with it."""
        model.add_module(CONTAINER, self.transform.to(model.device))
        self.teacher.to(model.device)
        try:
            yield
        finally:
            delattr(model, CONTAINER)

    def weights(self) -> Weights:
        """The map's tensors, by the dimensions of the student as it is."""
        return {name: value.detach().cpu().clone() for name, value in self.transform.state_dict().items()}

    def loss(self, inputs: Mapping[str, Tensor], states: Sequence[Tensor]) -> Tensor:
        """Sum over the taught layers of the mean squared distance at real tokens, a scalar.

        `states`: the student's, embeddings first, each (batch, length, hidden).
        """
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            theirs = self.teacher(
                **{name: inputs[name] for name in self.names if name in inputs}, output_hidden_states=True
            )
        taught = self._taught(len(theirs.hidden_states) - 1)
        targets = [theirs.hidden_states[at + 1][real] for at in taught]
        ours = [self.transform(state[real]) for state in states[1:] or states]
        matched = self._match(taught, targets, ours, states)
        losses = [
            functional.mse_loss(ours[j], target) for j, target in zip(matched, targets, strict=True) if j >= 0
        ]
        return torch.stack(losses).sum() if losses else ours[-1].sum() * 0

    def _taught(self, layers: int) -> list[int]:
        """The teacher's layers (from 0) of this step."""
        match self.keys.match:
            case "same":
                return list(range(layers))
            case "random":
                drawn = torch.randperm(layers)[:TAUGHT]
                return sorted(drawn.tolist())
            case "windows":
                ends = quarters(layers)
                starts = [0, *(end + 1 for end in ends)]
                return [
                    int(torch.randint(start, end + 1, (1,))) for start, end in zip(starts, ends, strict=False)
                ]
        return quarters(layers)

    @torch.no_grad()
    def _match(
        self, taught: list[int], targets: list[Tensor], ours: list[Tensor], states: Sequence[Tensor]
    ) -> list[int]:
        alive = torch.stack([(a != b).any() for a, b in pairwise(states)] or [torch.tensor(True)])
        if self.keys.match == "same":
            return [self.places[at] if at in self.places and alive[self.places[at]] else -1 for at in taught]
        distances = torch.stack([torch.stack([functional.mse_loss(o, t) for o in ours]) for t in targets])
        nearest = self.keys.match == "nearest"
        candidates = [j for j, live in enumerate(alive.tolist()) if live or nearest]
        return match_layers(distances.tolist(), candidates, ordered=not nearest)


def check_inputs(teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    """Raise UserError where the teacher reads inputs that its student lacks: they run on one batch."""
    names, have = architecture_of(teacher).inputs, architecture_of(student).inputs
    if set(names) - set(have):
        raise UserError(
            f"distill.layers: the teacher reads {', '.join(names)}, the student only {', '.join(have)}; name a "
            "teacher of its family, or leave `layers` out"
        )


def quarters(layers: int) -> list[int]:
    """The last layer (from 0) of each quarter of `layers`; fewer where there are fewer layers."""
    return list(dict.fromkeys(math.ceil(layers * k / TAUGHT) - 1 for k in range(1, TAUGHT + 1)))


def match_layers(distances: Sequence[Sequence[float]], candidates: Sequence[int], ordered: bool) -> list[int]:
    """For every row of `distances` (taught layers, student layers) the layer that learns from it.

    The nearest of `candidates`; if `ordered`, from the last row up and each time only below the one chosen before,
    which is used again where none is left. With no candidates it is the last layer.
    """
    last = len(distances[0]) - 1
    if not ordered:
        return [min(candidates or [last], key=row.__getitem__) for row in distances]
    chosen: list[int] = []
    limit = last + 1
    for row in reversed(distances):
        below = [j for j in candidates if j < limit]
        if below:
            limit = min(below, key=row.__getitem__)
        chosen.append(min(limit, last))
    return chosen[::-1]


def transform_of(
    student: PreTrainedModel, teacher: PreTrainedModel, learned: Weights | None = None
) -> nn.Linear:
    """A map from the student's hidden width to the teacher's, by dimensions of the student's dense original.

    At first it changes nothing: every dimension goes to its own.
    """
    structure = structure_of(student)
    width = structure_of(teacher).hidden_width
    weight, bias = torch.eye(width, structure.sizes.hidden), torch.zeros(width)
    if learned is not None and learned["weight"].shape == weight.shape:
        weight, bias = learned["weight"], learned["bias"]
    columns = sorted(structure.hidden_kept())
    transform = nn.Linear(len(columns), width)
    transform.weight = nn.Parameter(weight[:, columns].clone())
    transform.bias = nn.Parameter(bias.clone())
    return transform

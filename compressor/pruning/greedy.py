"""Greedy layer pruning: drop the layer without which the fine-tuned model is best, then the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.errors import UserError
from compressor.files import read_json, write_json
from compressor.models.architecture import architecture_of, structure_of
from compressor.pruning.base import Context, Pruned, Pruner, Target
from compressor.pruning.layer_drop import counts_in, members_by_count, without
from compressor.schema import TrainingKeys, training_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Count = Annotated[int, Field(gt=0)]
Score = Callable[[Sequence[int]], float]
"""Of a list of dropped layers, more is better."""


class Greedy(Pruner, TrainingKeys):
    """Greedy-layer pruning (Peer, Stabinger, Engl, Rodriguez-Sanchez, Pattern Recognition Letters 2022).

    Removes `drop` whole layers, one a round: every layer that is left is tried, and the one goes without which the
    metric on the selection split is best. The search is nested: a list in `drop` makes a family out of one search.
    With `search: full`, as published, every candidate is fine-tuned from the model it starts from (the pretrained
    one: `from: model`) with these training keys; scores are rounded to three decimals and of equal ones the highest
    layer goes. `search: screened` is our own and much cheaper: it fine-tunes the whole model once, in each round
    drops every layer without training, gives only the `screen` best `short` of the epochs, each from where the last
    round ended. Fine-tune the result afterwards. Where all layers are one (ALBERT), a round has one candidate.

    Example:
        - prune: {method: greedy, from: model, drop: [1, 2, 3], epochs: 3, learning_rate: 2.0e-5, batch_size: 32}
    """

    whole_layers: ClassVar[bool] = True

    method: Literal["greedy"]
    drop: Count | Annotated[list[Count], Field(min_length=1)]
    search: Literal["full", "screened"] = "full"
    screen: Count = 2
    short: Annotated[float, Field(gt=0, le=1)] = 0.25

    @model_validator(mode="after")
    def _fits_together(self) -> Greedy:
        if isinstance(self.drop, list) and len(set(self.drop)) < len(self.drop):
            raise ValueError("`drop` lists a number twice")
        for key in ("screen", "short"):
            if self.search == "full" and key in self.model_fields_set:
                raise ValueError(f"`{key}` is for search screened")
        return self

    @property
    def training(self) -> TrainingKeys:
        """How candidates are trained."""
        return training_keys(self)

    def counts(self) -> list[int]:
        """The numbers of layers that are asked for."""
        return counts_in(self.drop)

    def members(self, target: Target | None) -> list[str]:
        """One model a number of layers."""
        return members_by_count(self.counts())

    def check(self, config: PretrainedConfig) -> None:
        """One layer stays."""
        layers = getattr(config, architecture_of(config).stacks[0].layers_key)
        if max(self.counts()) >= layers:
            raise UserError(
                f"greedy: of {layers} layers 1 to {layers - 1} can be dropped, not {max(self.counts())}"
            )

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Search the order once; every member drops its beginning."""
        structure = structure_of(model)
        layers = len(structure.layers)
        count = max(self.counts())
        memo = Memo(context.folder / "candidates.json")
        if self.search == "full":
            order = greedy_order(
                layers,
                count,
                memo.remembering(lambda gone: self._tried(model, gone, context)),
                bool(structure.sizes.shared),
            )
        else:
            order = self._screened(model, layers, count, context, memo)
        report = {"order": order, "candidates": memo.scores}
        for member, dropped in zip(self.members(None), self.counts(), strict=True):
            chosen = sorted(order[:dropped])
            yield Pruned(model, without(structure, chosen), report | {"dropped": chosen}, member)

    def _tried(self, model: PreTrainedModel, gone: Sequence[int], context: Context) -> float:
        """The score of a fresh copy without these layers, fully fine-tuned."""
        from compressor.models.slicing import slice_model

        small = slice_model(model, without(structure_of(model), gone))
        name = f"without-{name_of(gone)}"
        context.train(small, self.training, name=name)
        score = context.score(small)
        context.forget(name)
        return score

    def _screened(
        self, model: PreTrainedModel, layers: int, count: int, context: Context, memo: Memo
    ) -> list[int]:
        """The order by the cheap search; training goes on from round to round on a copy of the model."""
        from compressor.models.gates import Gates

        trained = deepcopy(model)
        context.train(trained, self.training, name="whole")
        dense = structure_of(model)
        budget = self.training.model_copy(update={"epochs": self.training.epochs * self.short})
        order: list[int] = []
        for _ in range(count):
            untrained = {}
            for layer in candidates(layers, order, bool(dense.sizes.shared)):
                with Gates(trained, without(dense, [*order, layer])):
                    untrained[layer] = context.score(trained)
            best: tuple[float, int, PreTrainedModel] | None = None
            for layer in sorted(untrained, key=lambda at: (-untrained[at], -at))[: self.screen]:
                candidate = deepcopy(trained)
                gone = [*order, layer]
                with Gates(candidate, without(dense, gone)):
                    context.train(candidate, budget, name=f"screened-{name_of(gone)}")
                    score = round(context.score(candidate), 3)
                memo.scores[name_of(gone)] = score
                if best is None or (score, layer) > best[:2]:
                    best = (score, layer, candidate)
            assert best is not None
            order.append(best[1])
            trained = best[2]
        return order


def candidates(layers: int, order: Sequence[int], shared: bool = False) -> list[int]:
    """The layers that may go next, in rising order; where all are one, the last stands for the others."""
    left = [at for at in range(layers) if at not in order]
    return left[-1:] if shared else left


def greedy_order(layers: int, count: int, score: Score, shared: bool = False) -> list[int]:
    """The layers (from 0) in the order they go, at most all but one.

    Candidates are visited in rising order, scores rounded to three decimals, and the last of equal ones wins.
    """
    order: list[int] = []
    for _ in range(min(count, layers - 1)):
        scores = {at: round(score([*order, at]), 3) for at in candidates(layers, order, shared)}
        order.append(max(scores, key=lambda at: (scores[at], at)))
    return order


def name_of(gone: Sequence[int]) -> str:
    """A set of layers as text."""
    return "-".join(str(at) for at in sorted(gone))


class Memo:
    """Scores of candidates already tried, on disk: a search that is killed goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scores: dict[str, float] = read_json(path) if path.exists() else {}

    def remembering(self, score: Score) -> Score:
        """`score`, asked once for every set."""

        def remembered(gone: Sequence[int]) -> float:
            name = name_of(gone)
            if name not in self.scores:
                self.scores[name] = score(gone)
                write_json(self.path, self.scores)
            return self.scores[name]

        return remembered

"""Greedy layer pruning: drop the layer without which the fine-tuned model is best, then the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.errors import UserError
from compressor.executors import ExecutorKeys, check_executor
from compressor.models.architecture import architecture_of, structure_of
from compressor.pruning.base import Pruned, Pruner
from compressor.pruning.context import Context
from compressor.pruning.greedy.search import (
    FullSearch,
    ScreenedSearch,
    Search,
    candidates_trained,
    greedy_order,
    name_of,
    places_in,
)
from compressor.pruning.greedy.sizes import fewest_for_time, latency_by_size, most_within_drop
from compressor.pruning.layer_drop import counts_in, members_by_count, without
from compressor.pruning.target import Target, members_of
from compressor.schema import TrainingKeys, json_of, training_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from compressor.models.structure import Structure

Count = Annotated[int, Field(gt=0)]


class Greedy(Pruner, TrainingKeys, ExecutorKeys):
    """Greedy-layer pruning (Peer, Stabinger, Engl, Rodriguez-Sanchez, Pattern Recognition Letters 2022).

    Removes `drop` whole layers, one a round: every layer that is left is tried, and the one goes without which the
    metric on the selection split is best. The search is nested: a list in `drop` makes a family out of one search.
    With a `target` the number of layers is chosen, without another search: `max_metric_drop` takes the most layers
    that lose no more on the selection split, `speedup` and `latency_ms` the fewest that are fast enough on
    onnxruntime; `drop` then says how many at most, or as a list which numbers there are.
    With `search: full`, as published, every candidate is fine-tuned from the model it starts from (the pretrained
    one: `from: model`) with these training keys; scores are rounded to three decimals and of equal ones the highest
    layer goes. `search: screened` is our own and much cheaper: it fine-tunes the whole model once, in each round
    drops every layer without training, gives only the `screen` best `short` of the epochs, each from where the last
    round ended, and stops the half of them that is behind halfway. Fine-tune the result afterwards. Where all layers
    are one (ALBERT), a round has one candidate.

    Example:
        - prune: {method: greedy, from: model, drop: [1, 2, 3], epochs: 3, learning_rate: 2.0e-5, batch_size: 32}
    """

    whole_layers: ClassVar[bool] = True
    version: ClassVar[int] = 2

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
    def targets(self) -> frozenset[str]:
        """A loss, or a time, by the number of layers that meets it."""
        return frozenset({"max_metric_drop", "speedup", "latency_ms"})

    @property
    def uses_metric(self) -> bool:
        """It is what candidates are compared by."""
        return True

    @property
    def training(self) -> TrainingKeys:
        """How candidates are trained."""
        return training_keys(self)

    def counts(self) -> list[int]:
        """The numbers of layers that are asked for."""
        return counts_in(self.drop)

    def members(self, target: Target | None) -> list[str]:
        """One model a goal, or a number of layers."""
        return list(members_of(target)) if target else members_by_count(self.counts())

    def effort(self, config: PretrainedConfig) -> float:
        """Of all candidates, each by the layers it has left; a target may end the search sooner."""
        layers = layers_of(config)
        rounds = range(layers, layers - max(self.counts()), -1)
        most = 1 if architecture_of(config).shares_layers else layers
        if self.search == "full":
            return self.training.epochs * sum(min(most, left) * (left - 1) / layers for left in rounds)
        shares = sum(
            candidates_trained(min(most, self.screen, left)) * (left - 1) / layers for left in rounds
        )
        return self.training.epochs * (1 + self.short * shares)

    def check(self, config: PretrainedConfig) -> None:
        """One layer stays."""
        check_executor(self)
        self._check_counts(layers_of(config))

    def _check_counts(self, layers: int) -> None:
        if max(self.counts()) >= layers:
            raise UserError(
                f"greedy: of {layers} layers 1 to {layers - 1} can be dropped, not {max(self.counts())}"
            )

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Search the order as far as it is needed, once; every member drops its beginning."""
        structure = structure_of(model)
        self._check_counts(len(structure.layers))
        search = self._search(structure, context)
        rounds = Rounds(search, max(self.counts()), structure)
        chosen = list(self._chosen(model, rounds, context))
        rounds.first(max(count for _, count, _ in chosen))
        for member, count, why in chosen:
            gone = rounds.first(count)
            report = rounds.report() | why | {"dropped": sorted(rounds.numbers(gone))}
            yield Pruned(model, without(structure, gone), report, member)

    def _search(self, structure: Structure, context: Context) -> Search:
        """Its folder does not depend on how many layers are asked for: any number of them goes on with the same."""
        training, layers, shared = self.training, len(structure.layers), bool(structure.sizes.shared)
        if self.search == "full":
            folder = context.kept("greedy", json_of(training))
            return FullSearch(training, self, layers, shared, context, folder)
        folder = context.kept("greedy", json_of(training), self.screen, self.short, self.version)
        return ScreenedSearch(
            training, self, layers, shared, context, folder, screen=self.screen, short=self.short
        )

    def _chosen(
        self, model: PreTrainedModel, rounds: Rounds, context: Context
    ) -> Iterator[tuple[str, int, dict[str, object]]]:
        """Every member with its number of layers, and what decided about it."""
        target = context.target
        if target is None:
            yield from ((m, count, {}) for m, count in zip(self.members(None), self.counts(), strict=True))
            return
        sizes = self.counts() if isinstance(self.drop, list) else list(range(1, self.drop + 1))
        goals = zip(self.members(target), target.values, strict=True)
        if target.max_metric_drop is not None:
            whole = rounds.search.whole()
            for member, value in goals:
                yield member, most_within_drop(sizes, whole, rounds, value), {"whole": whole}
            return
        times = latency_by_size(model, context)
        dense_ms = times[0]
        if not structure_of(model).is_dense():
            dense_ms *= context.timing("whole", lambda: model).speedup
        why: dict[str, object] = {"latency_ms": {str(count): time for count, time in times.items()}}
        for member, value in goals:
            yield member, fewest_for_time(sizes, times, dense_ms, target.given()[0], value), why


def layers_of(config: PretrainedConfig) -> int:
    """How many layers a model has."""
    layers: int = getattr(config, architecture_of(config).stacks[0].layers_key)
    return layers


class Rounds:
    """The order of a search, played as far as somebody has asked."""

    def __init__(self, search: Search, most: int, structure: Structure) -> None:
        self.search, self.structure = search, structure
        self._to_come = greedy_order(search.layers, most, search.tried)
        self.order: list[int] = []
        self.scores: list[float] = []

    def first(self, count: int) -> list[int]:
        """The first `count` layers that go."""
        while len(self.order) < count:
            layer, score = next(self._to_come)
            self.order.append(layer)
            self.scores.append(score)
        return self.order[:count]

    def score(self, count: int) -> float:
        """The score without them."""
        self.first(count)
        return self.scores[count - 1]

    def numbers(self, places: Sequence[int]) -> list[int]:
        """Numbers in the original of layers given by their places."""
        return [self.structure.layers[at].index for at in places]

    def report(self) -> dict[str, object]:
        """The order, its scores, all that was tried for it, and the epochs of training that this takes.

        Layers are named by their numbers in the original.
        """
        memo = self.search.memo.scores
        tried = {name_of(self.numbers(places_in(name))): score for name, score in memo.items()}
        return {
            "order": self.numbers(self.order),
            "scores": list(self.scores),
            "candidates": {name: tried[name] for name in sorted(tried, key=lambda n: (n.count("-"), n))},
            "epochs": self.search.epochs,
        }

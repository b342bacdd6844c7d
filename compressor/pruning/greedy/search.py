"""The search for the order in which layers go, a round at a time: as published, and the cheap one."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from compressor.executors import ExecutorKeys
from compressor.files import read_json, write_json
from compressor.pruning.context import Context
from compressor.pruning.layer_drop import without
from compressor.schema import TrainingKeys

DECIMALS = 3
"""Scores are compared rounded, as published."""
Round = tuple[int, float]
"""The layer that goes, and the score without it."""
Candidate = Sequence[int]
"""The layers that are gone, the one of this round last."""


def greedy_order(
    layers: int, count: int, tried: Callable[[list[int]], Mapping[int, float]]
) -> Iterator[Round]:
    """The layers (from 0) in the order they go, at most all but one; a round is only played when it is asked for.

    `tried(gone)` gives the scores without `gone` and one more layer, by that layer. They are rounded to three
    decimals; of equal ones the highest layer goes.
    """
    order: list[int] = []
    while len(order) < min(count, layers - 1):
        scores = {layer: round(score, DECIMALS) for layer, score in tried(list(order)).items()}
        order.append(max(scores, key=lambda layer: (scores[layer], layer)))
        yield order[-1], scores[order[-1]]


@dataclass
class Search:
    """What both searches share: everything tried is remembered in `folder`, and is tried only once.

    `epochs` counts those that the rounds played so far stand for, remembered or not.
    """

    training: TrainingKeys
    where: ExecutorKeys
    layers: int
    shared: bool
    context: Context
    folder: Path
    epochs: float = 0.0

    @cached_property
    def memo(self) -> Memo:
        """Scores of candidates."""
        return Memo(self.folder / "candidates.json", self.context.is_main)

    def candidates(self, gone: Sequence[int]) -> list[int]:
        """The layers that may go next, rising; where all are one, the last stands for the others."""
        left = left_of(self.layers, gone)
        return left[-1:] if self.shared else left

    @abstractmethod
    def whole(self) -> float:
        """The score with all layers, rounded."""

    @abstractmethod
    def tried(self, gone: list[int]) -> dict[int, float]:
        """Scores without `gone` and one more layer."""


@dataclass
class FullSearch(Search):
    """Every candidate is fully fine-tuned from the model the search starts from."""

    def whole(self) -> float:
        """One more candidate: nothing dropped."""
        self.epochs += self.training.epochs
        return round(self._scores([[]])[0], DECIMALS)

    def tried(self, gone: list[int]) -> dict[int, float]:
        """All candidates of a round."""
        left = self.candidates(gone)
        self.epochs += len(left) * self.training.epochs
        return dict(zip(left, self._scores([[*gone, layer] for layer in left]), strict=True))

    def _scores(self, candidates: list[list[int]]) -> list[float]:
        do = partial(train_fully, self.training)
        return self.memo.scores_of(candidates, lambda new: self.context.each(do, new, self.where))


@dataclass
class ScreenedSearch(Search):
    """The whole model is fine-tuned once; the best candidates of a round, dropped untrained, go on from the last.

    Half of them stop halfway, those behind: a round of successive halving (Jamieson, Talwalkar 2016).
    """

    screen: int = 2
    short: float = 0.25

    def whole(self) -> float:
        """What the search begins with."""
        self._fine_tuned()
        return round(self.memo.scores[name_of([])], DECIMALS)

    def tried(self, gone: list[int]) -> dict[int, float]:
        """The few candidates of a round that are trained to the end."""
        left = self.candidates(gone)
        size = min(self.screen, len(left))
        self.epochs += candidates_trained(size) * self.short * self.training.epochs
        self.epochs += 0 if gone else self.training.epochs
        chosen = [layer for layer in left if name_of([*gone, layer]) in self.halfway.scores]
        if len(chosen) < size:
            chosen = self._screened(gone, left)[:size]
        candidates = [[*gone, layer] for layer in chosen]
        ahead = best_first(self._trained(candidates, self.halfway))[: surviving(size)]
        scores = self._trained(ahead, self.memo)
        self._forget(candidates, best_first(scores)[0])
        return {layer: scores[*before, layer] for *before, layer in ahead}

    @cached_property
    def halfway(self) -> Memo:
        """Scores of candidates after half of their training."""
        return Memo(self.folder / "halfway.json", self.context.is_main)

    def _trained(self, candidates: Sequence[Candidate], memo: Memo) -> dict[tuple[int, ...], float]:
        """Scores of candidates after the half of their training that `memo` is of; their models are kept."""
        half = self.training.model_copy(update={"epochs": self.training.epochs * self.short / 2})
        do = partial(train_shortly, half, self._models, self.layers, memo is self.halfway)
        scores = memo.scores_of(candidates, lambda new: self.context.each(do, new, self.where))
        return dict(zip(map(tuple, candidates), scores, strict=True))

    @property
    def _models(self) -> Path:
        return self.folder / "models"

    def _fine_tuned(self) -> None:
        """The whole model, and its score in the memo."""
        if name_of([]) in self.memo.scores:
            return
        model = self.context.model()
        self.context.train(model, self.training, name="whole")
        self.context.once(self._models / name_of([]), partial(_save, model))
        self.memo.keep(name_of([]), self.context.score(model))
        self.context.forget("whole")

    def _screened(self, gone: list[int], left: list[int]) -> list[int]:
        """The layers in `left`, by the score without them before any training, best first."""
        from compressor.models import checkpoint
        from compressor.models.architecture import structure_of
        from compressor.models.gates import Gates

        self._fine_tuned()
        model = checkpoint.load(self._models / name_of(gone))
        untrained = {}
        present = left_of(self.layers, gone)
        for layer in left:
            with Gates(model, without(structure_of(model), [present.index(layer)])):
                untrained[layer] = self.context.score(model)
        return sorted(left, key=lambda layer: (-untrained[layer], -layer))

    def _forget(self, candidates: list[list[int]], best: Candidate) -> None:
        """Of a round that is over only the winner's model is kept: the next one goes on from it."""
        if not self.context.is_main or not (self._models / name_of(best)).is_dir():
            return
        others = [name_of(gone) for gone in [*candidates, list(best[:-1])] if name_of(gone) != name_of(best)]
        for name in [*others, *(halfway_of(name_of(gone)) for gone in candidates)]:
            shutil.rmtree(self._models / name, ignore_errors=True)


def surviving(candidates: int) -> int:
    """How many of so many candidates are trained to the end."""
    return (candidates + 1) // 2


def candidates_trained(candidates: int) -> float:
    """To how many candidates, trained to the end, the training of a round amounts."""
    return (candidates + surviving(candidates)) / 2


def best_first(scores: Mapping[tuple[int, ...], float]) -> list[tuple[int, ...]]:
    """Candidates by their rounded score; of equal ones that whose last layer is highest comes first."""
    return sorted(scores, key=lambda gone: (-round(scores[gone], DECIMALS), -gone[-1]))


def train_fully(training: TrainingKeys, context: Context, gone: Sequence[int]) -> float:
    """The score of a fresh copy of the model without these layers, fine-tuned."""
    from compressor.models.architecture import structure_of
    from compressor.models.slicing import slice_model

    model = context.model()
    small = slice_model(model, without(structure_of(model), gone))
    name = f"without-{name_of(gone)}"
    context.train(small, training, name=name)
    score = context.score(small)
    context.forget(name)
    return score


def train_shortly(
    training: TrainingKeys, models: Path, layers: int, begins: bool, context: Context, gone: Candidate
) -> float:
    """The score of a candidate after one half of its short training; its model is kept in `models`.

    It `begins` as the last round's winner without one more layer, and goes on from where it was halfway.
    """
    from compressor.models import checkpoint
    from compressor.models.architecture import structure_of
    from compressor.models.slicing import slice_model

    *before, layer = gone
    if begins:
        whole = checkpoint.load(models / name_of(before))
        model = slice_model(whole, without(structure_of(whole), [left_of(layers, before).index(layer)]))
        kept = halfway_of(name_of(gone))
    else:
        model, kept = checkpoint.load(models / halfway_of(name_of(gone))), name_of(gone)
    context.train(model, training, name=f"screened-{kept}", after=2 * len(gone) - begins)
    context.once(models / kept, partial(_save, model))
    score = context.score(model)
    context.forget(f"screened-{kept}")
    return score


def halfway_of(name: str) -> str:
    """The folder of a candidate's model after half of its training."""
    return f"{name}-halfway"


def _save(model: object, folder: Path) -> None:
    from compressor.models import checkpoint

    checkpoint.save(model, folder)


def left_of(layers: int, gone: Sequence[int]) -> list[int]:
    """The layers that are still there, rising."""
    return [layer for layer in range(layers) if layer not in gone]


def name_of(gone: Sequence[int]) -> str:
    """A set of layers as text."""
    return "-".join(str(layer) for layer in sorted(gone)) or "none"


def places_in(name: str) -> list[int]:
    """The set of layers that a text names."""
    return [int(place) for place in name.split("-") if place != "none"]


class Memo:
    """Scores of candidates already tried, on disk: a search that is killed goes on where it was."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.scores: dict[str, float] = read_json(path) if path.exists() else {}

    def keep(self, name: str, score: float) -> None:
        """Remember one score."""
        self.scores[name] = score
        if self.writes:
            write_json(self.path, self.scores)

    def scores_of(
        self,
        candidates: Sequence[Sequence[int]],
        ask: Callable[[list[Sequence[int]]], Iterator[tuple[Sequence[int], float]]],
    ) -> list[float]:
        """Scores of sets of layers in their order; `ask` tries those that are new, in any order."""
        for gone, score in ask([gone for gone in candidates if name_of(gone) not in self.scores]):
            self.keep(name_of(gone), score)
        return [self.scores[name_of(gone)] for gone in candidates]

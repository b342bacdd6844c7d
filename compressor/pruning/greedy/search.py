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
from compressor.pruning.base import Context
from compressor.pruning.layer_drop import without
from compressor.schema import TrainingKeys

DECIMALS = 3
"""Scores are compared rounded, as published."""
Round = tuple[int, float]
"""The layer that goes, and the score without it."""


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
    context: Context
    folder: Path
    epochs: float = 0.0

    @cached_property
    def memo(self) -> Memo:
        """Scores of candidates."""
        return Memo(self.folder / "candidates.json", self.context.is_main)

    def left(self, gone: Sequence[int]) -> list[int]:
        """The layers that are still there, rising."""
        return [layer for layer in range(self.layers) if layer not in gone]

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
        left = self.left(gone)
        self.epochs += len(left) * self.training.epochs
        return dict(zip(left, self._scores([[*gone, layer] for layer in left]), strict=True))

    def _scores(self, candidates: list[list[int]]) -> list[float]:
        do = partial(train_fully, self.training)
        return self.memo.scores_of(candidates, lambda new: self.context.each(do, new, self.where))


@dataclass
class ScreenedSearch(Search):
    """The whole model is fine-tuned once; the best candidates of a round, dropped untrained, go on from the last."""

    screen: int = 2
    short: float = 0.25

    def whole(self) -> float:
        """What the search begins with."""
        self._fine_tuned()
        return round(self.memo.scores[name_of([])], DECIMALS)

    def tried(self, gone: list[int]) -> dict[int, float]:
        """The few candidates of a round that are trained."""
        left = self.left(gone)
        size = min(self.screen, len(left))
        self.epochs += size * self.short * self.training.epochs + (0 if gone else self.training.epochs)
        chosen = [layer for layer in left if name_of([*gone, layer]) in self.memo.scores]
        if len(chosen) < size:
            chosen = self._screened(gone, left)[:size]
        budget = self.training.model_copy(update={"epochs": self.training.epochs * self.short})
        do = partial(train_shortly, budget, self._models, self.layers)
        candidates = [[*gone, layer] for layer in chosen]
        scores = self.memo.scores_of(candidates, lambda new: self.context.each(do, new, self.where))
        self._forget(candidates, scores)
        return dict(zip(chosen, scores, strict=True))

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
        """The layers that are left, by the score without them before any training, best first."""
        from compressor.models import checkpoint
        from compressor.models.architecture import structure_of
        from compressor.models.gates import Gates

        self._fine_tuned()
        model = checkpoint.load(self._models / name_of(gone))
        untrained = {}
        for place, layer in enumerate(left):
            with Gates(model, without(structure_of(model), [place])):
                untrained[layer] = self.context.score(model)
        return sorted(left, key=lambda layer: (-untrained[layer], -layer))

    def _forget(self, candidates: list[list[int]], scores: list[float]) -> None:
        """Of a round that is over only the winner's model is kept: the next one goes on from it."""
        _, _, best = max(
            (round(score, DECIMALS), gone[-1], gone) for gone, score in zip(candidates, scores, strict=True)
        )
        if self.context.is_main and (self._models / name_of(best)).is_dir():
            for gone in [*candidates, best[:-1]]:
                if gone != best:
                    shutil.rmtree(self._models / name_of(gone), ignore_errors=True)


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
    training: TrainingKeys, models: Path, layers: int, context: Context, gone: Sequence[int]
) -> float:
    """The score of the last round's winner without one more layer, trained on; its model is kept in `models`."""
    from compressor.models import checkpoint
    from compressor.models.architecture import structure_of
    from compressor.models.slicing import slice_model

    *before, layer = gone
    model = checkpoint.load(models / name_of(before))
    place = [at for at in range(layers) if at not in before].index(layer)
    small = slice_model(model, without(structure_of(model), [place]))
    name = f"screened-{name_of(gone)}"
    context.train(small, training, name=name)
    context.once(models / name_of(gone), partial(_save, small))
    score = context.score(small)
    context.forget(name)
    return score


def _save(model: object, folder: Path) -> None:
    from compressor.models import checkpoint

    checkpoint.save(model, folder)


def name_of(gone: Sequence[int]) -> str:
    """A set of layers as text."""
    return "-".join(str(layer) for layer in sorted(gone)) or "none"


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

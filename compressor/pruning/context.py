"""What a pruning method may ask of the stage that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from compressor.executors import ExecutorKeys
from compressor.models.structure import Structure
from compressor.pruning.target import Precision, Target
from compressor.schema import TrainingKeys

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Job = TypeVar("Job")
Result = TypeVar("Result")
Interval95: TypeAlias = tuple[float, float]


class LatencyCurve(Protocol):
    """What sizes of one kind of sub-layer take."""

    @property
    def constant(self) -> float:
        """Milliseconds of a sub-layer of which nothing is kept but bias, residual and norm."""

    def at(self, units: int | None) -> float:
        """Milliseconds of so many units; `None`: the sub-layer is absent."""

    def levels(self) -> list[tuple[int, float]]:
        """Sizes to choose from, ascending: units and milliseconds; 0 stands for an absent sub-layer."""


class LatencyTable(Protocol):
    """What a model's sub-layers take on this machine, in milliseconds that add up."""

    @property
    def base_ms(self) -> float:
        """What is left of a model without layers."""

    @property
    def dense_ms(self) -> float:
        """The whole model."""

    @property
    def attention(self) -> LatencyCurve:
        """By heads."""

    @property
    def ffn(self) -> LatencyCurve:
        """By neurons."""

    def time(self, structure: Structure) -> float:
        """Predicted milliseconds of a structure."""

    def expected(self, attention: Tensor, heads: Tensor, ffn: Tensor, neurons: Tensor) -> Tensor:
        """Expected milliseconds, differentiable, where sub-layers are there with these probabilities, and so many
        units are expected in them; all (layers,).
        """


class Timing(NamedTuple):
    """An exported model, measured beside the dense one: median milliseconds, and how many times faster it is.

    `ci95` is the interval of the speedup, paired with the dense model; `ms_ci95` that of the milliseconds alone.
    """

    ms: float
    speedup: float
    ci95: Interval95
    noisy: bool
    ms_ci95: Interval95

    def pooled(self, other: Timing) -> Timing:
        """Two measurements of one model as one."""
        speedup, ci95 = _pooled((self.speedup, other.speedup), (self.ci95, other.ci95))
        ms, ms_ci95 = _pooled((self.ms, other.ms), (self.ms_ci95, other.ms_ci95))
        return Timing(ms, speedup, ci95, self.noisy or other.noisy, ms_ci95)


def _pooled(
    values: tuple[float, float], intervals: tuple[Interval95, Interval95]
) -> tuple[float, Interval95]:
    """Geometric mean, and an interval narrower by what two readings tell more, if they agree.

    Where they are further apart than their intervals explain, it reaches from the one to the other.
    """
    mean = math.sqrt(values[0] * values[1])
    widths = [math.log(high / low) / 2 for low, high in intervals]
    width = math.exp(max(math.hypot(*widths), abs(math.log(values[0] / values[1]))) / 2)
    return mean, (mean / width, mean * width)


class TrainingPart(Protocol):
    """What a method adds to a training run."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of its own: `params`, `lr`, `weight_decay`."""

    def before_step(self, step: int, total: int) -> None:
        """Called before optimiser step `step` (from 0) of `total`: set what follows a schedule."""

    def loss(self) -> Tensor | None:
        """A scalar added to the task's loss."""

    def log(self) -> dict[str, float]:
        """Figures for the training log."""


class Context(Protocol):
    """What a method may ask of the stage that runs it."""

    @property
    def folder(self) -> Path:
        """A folder of its own that survives a kill."""

    @property
    def seed(self) -> int:
        """The recipe's seed."""

    @property
    def target(self) -> Target | None:
        """The recipe's target, if the method aims at it."""

    @property
    def baseline(self) -> Structure:
        """What the run's model has as it came: speedups are over it, whatever was cut before this stage."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes (others may help to train)."""

    def model(self) -> PreTrainedModel:
        """A fresh copy of the model that the stage starts from."""

    def kept(self, what: str, *depends: Any) -> Path:
        """A folder that outlives the stage: the same whenever model, data, seed and `depends` are."""

    def once(self, path: Path, make: Callable[[Path], None]) -> None:
        """Make a file or folder, whole, if it is not there; only the main process does, the others wait."""

    def each(
        self, do: Callable[[Context, Job], Result], jobs: Sequence[Job], where: ExecutorKeys
    ) -> Iterator[tuple[Job, Result]]:
        """Every job with what `do` makes of it in a context of its own, as they are done, maybe side by side."""

    def latency(self, models: Mapping[str, Callable[[], PreTrainedModel]]) -> dict[str, float]:
        """Median milliseconds of models, exported, in the cell that the target means; measured once a machine."""

    def latency_table(self, precision: Precision = "fp32") -> LatencyTable:
        """What the model's sub-layers take in the cell that the target means; measured once a machine."""

    def timing(
        self, name: str, model: Callable[[], PreTrainedModel], precision: Precision = "fp32"
    ) -> Timing:
        """A model, exported and measured in that cell beside the dense one; once a machine and name."""

    def structure(self, stage: str) -> Structure:
        """What another stage of the run kept."""

    def train(
        self,
        model: PreTrainedModel,
        keys: TrainingKeys,
        part: TrainingPart | None = None,
        name: str | None = None,
        score: Callable[[], float | None] | None = None,
        after: int = 0,
    ) -> None:
        """Train in place on the task's training split, resuming if it was killed.

        `name` tells trainings apart whose order may differ after a break; by default they are counted. `score` rates
        the model where the keys ask for the best state (by default `score` below); `None` rules a state out. `after`
        counts the trainings that it goes on from: it sees the examples in another order than they did.
        """

    def steps(self, keys: TrainingKeys) -> int:
        """Optimiser steps of a training with these keys."""

    def forget(self, name: str) -> None:
        """Remove what a named training left to resume from."""

    def evaluate(self, model: PreTrainedModel) -> float:
        """The primary metric on the selection split."""

    def score(self, model: PreTrainedModel, precision: Precision = "fp32") -> float:
        """The same, turned so that more is better; a number below any other where it is none. Of int8 as exported."""

    def batches(self) -> Iterable[dict[str, Tensor]]:
        """Model inputs of the selection split, batch by batch."""

    def labelled_batches(self) -> Iterable[dict[str, Tensor]]:
        """The same with labels, so that the model gives a loss."""

    def sample(
        self, split: Literal["train", "selection"], examples: int, tokens: int
    ) -> list[dict[str, Tensor]]:
        """Labelled batches of a random part of a split, the same every time: so many examples and tokens at most."""

    def tell(self, what: str, share: float) -> None:
        """Say what is being done, and what share of it is finished."""

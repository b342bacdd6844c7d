"""The contract of a pruning method, what it gets from the stage that runs it, and the registry.

A method is a pydantic model whose fields are its recipe keys. Importing it must not import torch: recipes are
validated without it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from pydantic import Field, model_validator

from compressor.cell import Cell
from compressor.errors import UserError
from compressor.executors import ExecutorKeys
from compressor.models.structure import Structure
from compressor.schema import Keys, TrainingKeys

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


Positive = Annotated[float, Field(gt=0)]
Precision = Literal["fp32", "int8"]
Job = TypeVar("Job")
Result = TypeVar("Result")


class At(Keys):
    """The benchmark cell a target is meant for, the first one by default, and in which precision it counts.

    int8 is what `quantize: {mode: dynamic}` makes; auto takes fp32 or int8, as loses less. Speedups are over the
    dense model in fp32, or in the `same-precision`.
    """

    provider: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    sequence_length: int | None = None
    precision: Literal["fp32", "int8", "auto"] = "fp32"
    relative_to: Literal["dense-fp32", "same-precision"] = "dense-fp32"

    @model_validator(mode="after")
    def _one_dense_model(self) -> At:
        if self.precision == "auto" and self.relative_to == "same-precision":
            raise ValueError("precision auto compares precisions: its speedups are over dense-fp32")
        return self

    def cell(self, cells: Sequence[Cell]) -> Cell | None:
        """The first of `cells` that it speaks of, if any."""
        asked = self.model_dump(exclude={"precision", "relative_to"}, exclude_none=True)
        return next((c for c in cells if all(getattr(c, key) == value for key, value in asked.items())), None)


class Target(Keys):
    """What a method should reach: exactly one of the four; a list makes a family."""

    speedup: Positive | list[Positive] | None = None
    latency_ms: Positive | list[Positive] | None = None
    sparsity: Positive | list[Positive] | None = None
    max_metric_drop: Positive | list[Positive] | None = None
    at: At = At()

    def given(self) -> list[str]:
        """The goals that are set."""
        return [
            k
            for k in ("speedup", "latency_ms", "sparsity", "max_metric_drop")
            if getattr(self, k) is not None
        ]

    @property
    def timed(self) -> bool:
        """Whether it is reached or not depends on a machine."""
        return self.speedup is not None or self.latency_ms is not None

    @property
    def values(self) -> list[float]:
        """What is asked for of the goal that is set, one a member."""
        value = getattr(self, self.given()[0])
        return list(value) if isinstance(value, list) else [value]

    @model_validator(mode="after")
    def _one_goal(self) -> Target:
        if len(self.given()) != 1:
            raise ValueError("give exactly one of speedup, latency_ms, sparsity, max_metric_drop")
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError("a list of targets names each value once, and at least one")
        if self.sparsity is not None and max(self.values) >= 1:
            raise ValueError("sparsity is the share of the layers' weights to remove: below 1")
        return self


MEMBERS: dict[str, Callable[[float], str]] = {
    "speedup": lambda value: f"{value:g}x",
    "latency_ms": lambda value: f"{value:g}ms",
    "sparsity": lambda value: f"s{100 * value:g}",
    "max_metric_drop": lambda value: f"d{100 * value:g}",
}
"""How the members of a family are named after what they aim at."""


def members_of(target: Target | None) -> dict[str, float | None]:
    """The models a target stands for: name and goal of each; one is simply `pruned`."""
    values = target.values if target else [None]
    if target is None or len(values) == 1:
        return {"pruned": values[0]}
    name = MEMBERS[target.given()[0]]
    return {name(value): value for value in target.values}


@dataclass
class Pruned:
    """A model with everything the method leaves behind folded into its weights, and the binary structure.

    `report` is plain data for the run's results. `member` names it within a family.
    """

    model: PreTrainedModel
    structure: Structure
    report: dict[str, Any] = field(default_factory=dict)
    member: str = "pruned"


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
    """An exported model, measured beside the dense one: median milliseconds, and how many times faster it is."""

    ms: float
    speedup: float
    ci95: tuple[float, float]
    noisy: bool


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


class Pruner(Keys):
    """Base of all methods. Docstring: the paper, what is removed, what training it needs, a recipe."""

    guides: ClassVar[tuple[str, ...]] = ()
    """Its keys that name another stage whose structure it reads."""
    needs_target: ClassVar[bool] = False
    """Whether it must have one of the goals in `targets`."""
    whole_layers: ClassVar[bool] = False
    """Whether it drops layers whole and nothing inside them: all that can be done where layers are one."""
    prunes_writers: ClassVar[bool] = False
    """Whether it prunes encoder-decoders."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """What `target.at.precision` may be."""

    version: ClassVar[int] = 1
    """Raised when the code changes what the method makes: older results are not reused."""

    method: str

    @property
    def targets(self) -> frozenset[str]:
        """Goals of the recipe's `target` block that it can aim at."""
        return frozenset()

    @property
    def uses_metric(self) -> bool:
        """Whether the task's metric decides about its result."""
        return False

    @property
    def training(self) -> TrainingKeys | None:
        """Its training keys, if it trains."""
        return None

    def reads_table(self, target: Target | None) -> bool:
        """Whether it comes to the target by a latency table, which not all families have."""
        return False

    def effort(self, config: PretrainedConfig) -> float:
        """Roughly how many epochs of the whole model its trainings take together."""
        return self.training.epochs if self.training else 0.0

    def check_family(self, config: PretrainedConfig) -> None:
        """That the method can work on this family.

        Raises:
            UserError: it removes parts of layers, and all layers of this family are one; or this family is of
                encoder-decoders, and it is for encoders.
        """
        from compressor.models.architecture import ARCHITECTURES, architecture_of

        if architecture_of(config).writes_text and not self.prunes_writers:
            fit = ", ".join(name for name in METHODS if method_class(name).prunes_writers)
            raise UserError(
                f"{self.method} is for encoders, a {config.model_type} model has a decoder too; take one of {fit}"
            )
        if architecture_of(config).shares_layers and not self.whole_layers:
            others = ", ".join(name for name, family in ARCHITECTURES.items() if not family.shares_layers)
            raise UserError(
                f"{self.method}: the layers of {config.model_type} share their weights, so nothing inside them can "
                f"go; drop whole ones (layer-drop, greedy), or take one of {others}"
            )

    def check(self, config: PretrainedConfig) -> None:
        """Called before the first stage: raise UserError where this method cannot work on such a model."""

    def check_target(self, config: PretrainedConfig, target: Target | None) -> None:
        """Called beside `check`: raise UserError where it cannot bring such a model to the target."""

    def members(self, target: Target | None) -> list[str]:
        """Names of the models it makes."""
        return list(members_of(target))

    @abstractmethod
    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Choose what to keep and fold the rest; the model may be changed in place."""


METHODS = {
    "movement": "compressor.pruning.movement:Movement",
    "cofi": "compressor.pruning.cofi:Cofi",
    "layer-drop": "compressor.pruning.layer_drop:LayerDrop",
    "heads": "compressor.pruning.heads:Heads",
    "greedy": "compressor.pruning.greedy:Greedy",
    "speed": "compressor.pruning.speed:Speed",
    "head-gates": "compressor.pruning.head_gates:HeadGates",
}
"""Registry: method name -> where its class is."""


def method_class(name: str) -> type[Pruner]:
    """The class behind a method's name; KeyError if there is none."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)

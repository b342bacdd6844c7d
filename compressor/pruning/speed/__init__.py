"""Ask for a speed, get that speed: structured pruning under a measured time budget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.errors import UserError
from compressor.pruning.base import Pruned, Pruner
from compressor.pruning.context import Context
from compressor.pruning.target import Target
from compressor.schema import TrainingKeys, training_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Count = Annotated[int, Field(gt=0)]


class Speed(Pruner, TrainingKeys):
    """Pruning to a speed (after ZipLM: Kurtic, Frantar, Alistarh, NeurIPS 2023; and SPDY, ICML 2022).

    Removes heads, FFN neurons and whole sub-layers, without training. Every sub-layer is pruned to every size by
    `score`, the weights that stay making up for those that go. A latency table says what every size takes on this
    machine, the divergence from the dense model on `probes` held-out examples what it costs. The cheapest sizes
    within the time are chosen by dynamic programming, then improved in `search` steps on the loss of the whole
    model. The result is exported and measured, and the budget corrected until it is as fast as the recipe's `target`
    asks: `speedup` (over the dense model) or `latency_ms`; with `max_metric_drop` it is the fastest that loses no
    more on the selection split. A second least-squares pass then repairs what errors of lower layers do further up
    (`recover`). `target.at.precision` int8 goes by times of int8 models, auto takes the precision that loses less.
    Needs a fine-tuned model and `calibration` training examples; only score fisher reads their labels. Several
    targets share everything but the last steps.

    Fine-tune with distillation afterwards where much was removed. Where that is not enough, more `steps` go there by
    way of lower speeds, and train the model with these training keys after each of them.

    Example:
        - prune: {method: speed, score: second-order}
    """

    needs_target: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8", "auto")
    version: ClassVar[int] = 3

    method: Literal["speed"]
    score: Literal["second-order", "fisher", "kprune", "activation", "magnitude", "random"] = "second-order"
    calibration: Count = 2048
    probes: Count = 512
    search: Annotated[int, Field(ge=0)] = 40
    recover: bool = True
    steps: Count = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Speed:
        trained = [key for key in TrainingKeys.model_fields if key in self.model_fields_set]
        if self.steps == 1 and trained:
            raise ValueError(
                f"`{trained[0]}` is for training between `steps`, of which there is one; follow it with a `finetune`"
            )
        return self

    @property
    def targets(self) -> frozenset[str]:
        """A speedup over the dense model, milliseconds, or a loss."""
        return frozenset({"speedup", "latency_ms", "max_metric_drop"})

    @property
    def training(self) -> TrainingKeys | None:
        """How the model is trained between steps."""
        return training_keys(self) if self.steps > 1 else None

    def reads_table(self, target: Target | None) -> bool:
        """Always: it chooses sizes by what they take."""
        return True

    def effort(self, config: PretrainedConfig) -> float:
        """Every step but the last is trained, roughly at half the dense model's size."""
        return self.epochs * (self.steps - 1) / 2

    def check(self, config: PretrainedConfig) -> None:
        """Nothing to find wrong beforehand: how far a model can go is known from its latency table."""

    def check_target(self, config: PretrainedConfig, target: Target | None) -> None:
        """Raise UserError for a loss in several steps: how far to go in each is not known beforehand."""
        if self.steps > 1 and target is not None and target.max_metric_drop is not None:
            raise UserError(
                "speed: `steps` go to a speed: give `target` a speedup, or leave them out with max_metric_drop"
            )

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """One database for all targets; then each is searched for, measured and recovered."""
        from compressor.pruning.speed.method import prune

        return prune(self, model, context)

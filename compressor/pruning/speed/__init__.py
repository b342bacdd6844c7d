"""Ask for a speed, get that speed: structured pruning under a measured time budget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from compressor.pruning.base import Context, Pruned, Pruner, Target

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Count = Annotated[int, Field(gt=0)]


class Speed(Pruner):
    """Pruning to a speed (after ZipLM: Kurtic, Frantar, Alistarh, NeurIPS 2023; and SPDY, ICML 2022).

    Removes heads, FFN neurons and whole sub-layers, without training. Every sub-layer is pruned to every size by
    `score`, the weights that stay making up for those that go. A latency table says what every size takes on this
    machine, the divergence from the dense model on `probes` held-out examples what it costs. The cheapest sizes
    within the time are chosen by dynamic programming, then improved in `search` steps on the loss of the whole
    model. The result is exported and measured, and the budget corrected until it is as fast as the recipe's `target`
    asks: `speedup` (over the dense model) or `latency_ms`. A second least-squares pass then repairs what errors of
    lower layers do further up (`recover`). Needs a fine-tuned model and `calibration` training examples; only score
    fisher reads their labels. Several targets share everything but the last steps. Fine-tune with distillation
    afterwards where much was removed.

    Example:
        - prune: {method: speed, score: second-order}
    """

    needs_target: ClassVar[bool] = True

    method: Literal["speed"]
    score: Literal["second-order", "fisher", "kprune", "activation", "magnitude", "random"] = "second-order"
    calibration: Count = 2048
    probes: Count = 256
    search: Annotated[int, Field(ge=0)] = 40
    recover: bool = True

    @property
    def targets(self) -> frozenset[str]:
        """A speedup over the dense model, or milliseconds."""
        return frozenset({"speedup", "latency_ms"})

    def reads_table(self, target: Target | None) -> bool:
        """Always: it chooses sizes by what they take."""
        return True

    def check(self, config: PretrainedConfig) -> None:
        """Nothing to find wrong beforehand: how far a model can go is known from its latency table."""

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """One database for all targets; then each is searched for, measured and recovered."""
        from compressor.pruning.speed.method import prune

        return prune(self, model, context)

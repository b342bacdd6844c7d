"""Head gates: a gate on every attention head learns whether the head is worth its penalty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.pruning.base import Pruned, Pruner
from compressor.pruning.context import Context
from compressor.schema import Share, TrainingKeys, training_keys

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FASTER = 10
"""How many times the weights' rate the gates learn at, where the recipe doesn't say."""


class HeadGates(Pruner, TrainingKeys):
    """Layer-wise pruning of attention heads (Shim, Choi, Sung, Choi: "Layer-wise Pruning of Transformer Attention
    Heads for Efficient Language Modeling", 2021).

    Removes heads, as many in each layer as the loss can do without: a binary gate on every head is drawn anew at each
    step, open with the probability sigmoid(logit), and every head costs `penalty` times the probability that its
    gate (before it is rounded) is not zero. The costs are summed over all heads, so a model with more of them needs a
    smaller `penalty`, which alone decides how many are left: those with a logit of at least 0. In an All-attention
    Transformer a head takes its persistent vectors with it, its share of the whole layer. The FFN of other models
    stays.

    Three methods hold the training together, each of which can be switched off: the penalty rises during
    `penalty_warmup` (0: at once), after none during `penalty_start`; it starts from a converged model with open gates
    (`from` the fine-tuned stage; `initial_logit` 2 opens 88 % of them at a time, 0 half); and `scale_outputs` makes
    up for closed heads by larger outputs of the open ones, heads / open heads, which becomes part of the weights.

    Example:
        - prune: {method: head-gates, penalty: 0.02, epochs: 20, learning_rate: 1.0e-4}
    """

    version: ClassVar[int] = 2

    method: Literal["head-gates"]
    penalty: Annotated[float, Field(ge=0)] = 0.02
    penalty_start: Share = 0.0
    penalty_warmup: Share = 0.05
    scale_outputs: bool = True
    initial_logit: float = 2.0
    gate_learning_rate: Annotated[float, Field(gt=0)] | None = None
    epochs: Annotated[float, Field(gt=0)] = 20.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup: Share = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "constant"

    @model_validator(mode="after")
    def _fits_together(self) -> HeadGates:
        shares = [s for s in (self.penalty_start, self.penalty_warmup) if isinstance(s, float)]
        if sum(shares) >= 1:
            raise ValueError(
                "penalty_start and penalty_warmup must leave steps with the whole penalty (together below 1)"
            )
        if self.evaluate_every:
            raise ValueError(
                "evaluate_every keeps the best state, which is the one that is pruned least: leave it out"
            )
        return self

    @property
    def training(self) -> TrainingKeys:
        """The training keys alone."""
        return training_keys(self)

    @property
    def gate_rate(self) -> float:
        """The gates' own learning rate."""
        return self.gate_learning_rate or FASTER * self.learning_rate

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Learn the gates, decide them, and fold the scales of what is left into its output projections."""
        from compressor.pruning.head_gates.gates import BinaryGates, Gating
        from compressor.pruning.head_gates.training import HeadGatesPart

        gating = Gating(model, BinaryGates(model, self.initial_logit), self.scale_outputs)
        context.train(model, self.training, HeadGatesPart(gating.gates, self, context.seed))
        structure, report = gating.fold()
        yield Pruned(model, structure, report)

"""Block movement pruning: learn which blocks and neurons move towards zero while fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from compressor.errors import UserError
from compressor.pruning.base import Context, Pruned, Pruner
from compressor.schema import Share, TrainingKeys, training_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class Movement(Pruner, TrainingKeys):
    """Block movement pruning (Lagunas, Charlaix, Sanh, Rush: "Block Pruning For Faster Transformers", 2021).

    Removes heads and FFN neurons; variant `hybrid` scores 32x32 blocks of the attention matrices and whole
    neurons of the FFN. Starts from the pretrained encoder and fine-tunes while it prunes, usually with a
    fine-tuned teacher; follow it with `slice` and a `finetune` with `fill` (hybrid-filled).

    Example:
        - prune: {method: movement, from: model, regularization: 20, ffn_regularization: 0.25, epochs: 20,
                  distill: {teacher: teacher}}
    """

    method: Literal["movement"]
    variant: Literal["hybrid"] = "hybrid"
    attention_block: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=2, max_length=2)] = [
        32,
        32,
    ]
    regularization: Annotated[float, Field(ge=0)] = 20.0
    attention_regularization: Annotated[float, Field(ge=0)] = 1.0
    ffn_regularization: Annotated[float, Field(ge=0)] = 1.0
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1
    score_learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    epochs: Annotated[float, Field(gt=0)] = 20.0
    warmup: Share = 0.0488
    cooldown: Share = 0.488

    @field_validator("attention_block", mode="before")
    @classmethod
    def _both_sides(cls, value: object) -> object:
        return [value, value] if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _leaves_steps_to_prune(self) -> Movement:
        shares = [s for s in (self.warmup, self.cooldown) if isinstance(s, float)]
        if sum(shares) >= 1:
            raise ValueError("warmup and cooldown together must leave steps in which to prune (below 1)")
        return self

    @property
    def training(self) -> TrainingKeys:
        """The training keys alone."""
        return training_keys(self)

    def check(self, config: PretrainedConfig) -> None:
        """The blocks must tile the attention matrices."""
        if any(config.hidden_size % side for side in self.attention_block):
            raise UserError(
                f"movement: attention_block {self.attention_block} does not divide the attention matrices of this "
                f"model ({config.hidden_size} x {config.hidden_size}); choose divisors of {config.hidden_size}"
            )

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Fine-prune `model`, then fold the masks and the constants of dead units into its weights."""
        from compressor.pruning.fold import fold_dead_units
        from compressor.pruning.movement.masks import Masks
        from compressor.pruning.movement.training import MovementPart

        masks = Masks(model, tuple(self.attention_block), self.threshold)
        context.train(model, self.training, MovementPart(masks, self))
        report = masks.densities()
        masks.fold()
        yield Pruned(model, fold_dead_units(model), report)

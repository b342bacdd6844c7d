"""Block movement pruning: learn which blocks and neurons move towards zero while fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from compressor.errors import UserError
from compressor.pruning.base import Pruned, Pruner
from compressor.pruning.context import Context
from compressor.pruning.target import members_of
from compressor.schema import Share, TrainingKeys, training_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from compressor.models.structure import Sizes

OPEN = {"sigmoid": 0.0, "raw": -10.0, "topk": 1.0, "magnitude": 1.0, "l0": 0.0}
"""The threshold at which a mask still keeps everything: where schedules begin."""

NEEDS_SHARE = ("topk", "magnitude")
"""Masks that keep a given share, of whatever scores: nothing drives it but the schedule."""

Side = Annotated[int, Field(gt=0)]


def _both_sides(value: object) -> object:
    if isinstance(value, list) and len(value) != 2:
        raise ValueError("should be rows and columns, such as [32, 32], or one number for a square")
    return [value, value] if isinstance(value, int) and not isinstance(value, bool) else value


Block = Annotated[list[Side], BeforeValidator(_both_sides, json_schema_input_type=Side | list[Side])]
"""Rows and columns; one number for a square."""


class Movement(Pruner, TrainingKeys):
    """Block movement pruning (Lagunas, Charlaix, Sanh, Rush: "Block Pruning For Faster Transformers", 2021).

    Removes heads and FFN neurons. Variants differ in what is scored: `hybrid` blocks of the attention matrices
    and whole neurons, `struct` whole heads and neurons, `block` blocks everywhere, `unstructured` single
    weights (smaller on paper only: nearly nothing can be sliced). Starts from the pretrained encoder and
    fine-tunes while it prunes, usually with a fine-tuned teacher; follow it with `slice` and a `finetune` with
    `fill` ("hybrid-filled").

    `mask` says what stays: `sigmoid` (sigmoid(score) above the threshold, the published one), `raw` (score above
    it), `topk` (that share of the largest scores of each matrix), `magnitude` (that share of the largest
    weights, nothing learned) or `l0` (hard-concrete gates, no threshold).

    Of an encoder-decoder both stacks are pruned, cross-attention too, each with a strength of its own
    (`decoder_attention_regularization`, `decoder_ffn_regularization`; by default the encoder's).

    Example:
        - prune: {method: movement, from: model, regularization: 20, ffn_regularization: 0.25, epochs: 20,
                  distill: {teacher: teacher}}
    """

    prunes_writers: ClassVar[bool] = True
    guides: ClassVar[tuple[str, ...]] = ("rewind",)

    method: Literal["movement"]
    variant: Literal["hybrid", "block", "struct", "unstructured"] = "hybrid"
    mask: Literal["sigmoid", "raw", "topk", "magnitude", "l0"] = "sigmoid"
    attention_block: Block = [32, 32]
    joint_heads: bool = False
    regularization: Annotated[float, Field(ge=0)] = 20.0
    attention_regularization: Annotated[float, Field(ge=0)] = 1.0
    ffn_regularization: Annotated[float, Field(ge=0)] = 1.0
    decoder_attention_regularization: Annotated[float, Field(ge=0)] | None = None
    decoder_ffn_regularization: Annotated[float, Field(ge=0)] | None = None
    threshold: Annotated[float | None, Field(validate_default=True)] = None
    initial_score: float | None = None
    min_keep: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mask_biases: bool = True
    score_learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    epochs: Annotated[float, Field(gt=0)] = 20.0
    warmup: Share = 0.0488
    cooldown: Share = 0.488
    rewind: str | None = None
    heads: Literal["exact", "reference"] = "exact"
    uniform_heads: Literal["keep", "drop"] = "keep"
    align: Annotated[int, Field(gt=0)] = 1
    nonorm: Share | None = None
    relu: Share | None = None

    @field_validator("threshold")
    @classmethod
    def _of_the_mask(cls, value: float | None, info: ValidationInfo) -> float | None:
        mask = info.data.get("mask")
        if mask in NEEDS_SHARE and value is None:
            raise ValueError(f"mask {mask} needs a `threshold`: the share of each matrix it keeps (0 to 1)")
        if mask == "l0" and value is not None:
            raise ValueError("mask l0 has none: its gates reach zero themselves; leave it out")
        if mask == "raw" and value is not None and value <= OPEN["raw"]:
            raise ValueError(f"should be greater than {OPEN['raw']:g}, where a raw threshold begins")
        if mask in ("sigmoid", *NEEDS_SHARE) and value is not None and not 0 < value < 1:
            raise ValueError(f"should lie between 0 and 1 for mask {mask} (got {value:g})")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Movement:
        shares = [s for s in (self.warmup, self.cooldown) if isinstance(s, float)]
        if sum(shares) >= 1:
            raise ValueError("warmup and cooldown together must leave steps in which to prune (below 1)")
        given = self.model_fields_set
        if self.variant in ("struct", "unstructured") and "attention_block" in given:
            what = {"struct": "whole heads", "unstructured": "single weights"}[self.variant]
            raise ValueError(f"variant {self.variant} scores {what}: leave attention_block out")
        if self.variant in ("block", "unstructured") and self.align > 1:
            raise ValueError(f"align needs one score a neuron: variant hybrid or struct, not {self.variant}")
        if self.variant == "unstructured" and self.joint_heads:
            raise ValueError("joint_heads needs blocks of weights: variant hybrid, block or struct")
        if self.heads == "reference" and self.uniform_heads == "drop":
            raise ValueError(
                "heads: reference already drops heads that only average; leave uniform_heads out"
            )
        if self.mask in NEEDS_SHARE and given & {"regularization", "attention_regularization"}:
            raise ValueError(f"mask {self.mask} keeps a given share: leave regularization out")
        return self

    @property
    def targets(self) -> frozenset[str]:
        """A sparsity, by the threshold that reaches it: where there is one, and it is no share itself."""
        return frozenset({"sparsity"} if self.mask in ("sigmoid", "raw") else ())

    @property
    def training(self) -> TrainingKeys:
        """The training keys alone."""
        return training_keys(self)

    @property
    def final_threshold(self) -> float:
        """The threshold at the end: by default the published cut, sigmoid(score) at 0.1."""
        if self.threshold is not None:
            return self.threshold
        return -2.1972246 if self.mask == "raw" else 0.1

    @property
    def first_score(self) -> float:
        """What every score begins with: 0, or where a hard-concrete gate is open (0 would halve the weights)."""
        if self.initial_score is not None:
            return self.initial_score
        return 2.1972246 if self.mask == "l0" else 0.0

    @property
    def strength(self) -> float:
        """The regulariser's strength at the end of its schedule."""
        return 0.0 if self.mask in NEEDS_SHARE else self.regularization

    def strength_of(self, part: str) -> float:
        """A part's share of the regulariser: attention or ffn, with `decoder_` before it those of the decoder."""
        own = getattr(self, f"{part}_regularization")
        return float(getattr(self, f"{part.removeprefix('decoder_')}_regularization") if own is None else own)

    def shares_units(self, sublayer: str) -> bool:
        """Whether all matrices of a sub-layer share one score a unit."""
        return self.joint_heads if sublayer != "ffn" else self.variant in ("hybrid", "struct")

    def block_of(self, sublayer: str, sizes: Sizes) -> tuple[int, int] | None:
        """Rows and columns of the blocks with a score of their own; `None` where units' shared scores do."""
        if self.variant == "unstructured":
            return 1, 1
        if sublayer != "ffn" and self.variant == "struct":
            return None if self.joint_heads else (sizes.head_size, sizes.hidden)
        if sublayer == "ffn" and self.variant != "block":
            return None
        rows, columns = self.attention_block
        return rows, columns

    def check(self, config: PretrainedConfig) -> None:
        """The blocks must tile the matrices, and keys must be for such a model."""
        from compressor.models.architecture import architecture_of, structure_in

        family, sizes = architecture_of(config), structure_in(config).sizes
        of_encoders = ("nonorm", "relu")
        of_writers = ("decoder_attention_regularization", "decoder_ffn_regularization")
        for key in of_encoders if family.writes_text else of_writers:
            if getattr(self, key) is not None:
                other = "encoders" if family.writes_text else "models with a decoder"
                raise UserError(f"movement: {key} is for {other}; leave it out")
        if self.variant not in ("hybrid", "block"):
            return
        heads = sizes.stacks[family.stacks[0].name]["attention"]
        sides = [("attention", config.hidden_size), ("attention", heads * sizes.head_size)]
        if self.variant == "block":
            sides += [("FFN", counts["ffn"]) for counts in sizes.stacks.values() if "ffn" in counts]
        for part, size in sides:
            if any(size % side for side in self.attention_block):
                raise UserError(
                    f"movement: attention_block {self.attention_block} does not divide the {part} matrices of this "
                    f"model (side {size}); choose divisors of {size}"
                )

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Fine-prune `model`, then fold the masks and the constants of dead units into its weights."""
        from copy import deepcopy

        for member, sparsity in members_of(context.target).items():
            yield self._prune(deepcopy(model), context, member, sparsity)

    def _prune(self, model: PreTrainedModel, context: Context, member: str, sparsity: float | None) -> Pruned:
        from compressor.pruning.fold import alive_units, fold_dead_units
        from compressor.pruning.movement.masks import Masks
        from compressor.pruning.movement.patches import Patches
        from compressor.pruning.movement.training import MovementPart

        masks, patches = Masks(model, self), Patches(model, self)
        if self.rewind:
            masks.protect(context.structure(self.rewind))
        part = MovementPart(masks, patches, self, context.seed, sparsity)
        context.train(model, self.training, part)
        if sparsity is not None:
            masks.cut.final = masks.threshold_for(sparsity)
        masks.align(self.align)
        report = masks.densities() | {"threshold": masks.cut.final}
        masks.fold()
        patches.fold()
        exact = alive_units(model)
        structure = fold_dead_units(model, "uniform" if self.uniform_heads == "drop" else self.heads)
        report["lossy_heads"] = exact.heads() - structure.heads()
        return Pruned(model, structure, report, member)

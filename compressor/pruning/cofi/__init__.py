"""CoFi: coarse- and fine-grained pruning with layerwise distillation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.errors import UserError
from compressor.pruning.base import Pruned, Pruner
from compressor.pruning.context import Context
from compressor.pruning.target import Target
from compressor.schema import Share, TrainingKeys, steps_of, training_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from compressor.models.structure import Structure
    from compressor.pruning.cofi.ends import End
    from compressor.pruning.cofi.gates import LearnedGates
    from compressor.pruning.cofi.masking import Masking
    from compressor.pruning.cofi.training import CofiPart
    from compressor.pruning.cofi.values import Constraint

log = logging.getLogger(__name__)

Kind = Literal["hidden", "layer", "head", "ffn", "neuron"]
EVERY: tuple[Kind, ...] = ("hidden", "layer", "head", "ffn", "neuron")
SLICED = "cofi starts from a model with whole layers; this one was sliced before"
OPEN = 10.0
"""The first logit of a gate that is open for certain."""


class Cofi(Pruner, TrainingKeys):
    """CoFi, coarse- and fine-grained pruning (Xia, Zhong, Chen: "Structured Pruning Learns Compact and Accurate
    Models", 2022).

    Learns hard-concrete gates on hidden dimensions (`hidden`), whole attention sub-layers (`layer`), heads, whole
    FFN sub-layers (`ffn`) and FFN neurons, all at once, while it fine-tunes; a Lagrangian drives the share of the
    layers' parameters that they remove to `target: {sparsity: 0.95}`, which rises from 0 during `sparsity_warmup`.
    A list of them is a ladder: one run that goes from each to the next, an equal part of the time for each. With
    `target: {speedup: 3}` or `{latency_ms: 8}` the Lagrangian drives the time instead, predicted by a latency table
    of this machine; the decided gates are exported and measured, and moved until they are as fast as asked.
    Starts from the pretrained encoder, trains without gates for the share `preparation` of the stage, usually
    distilled from a fine-tuned teacher by logits and `layers`; follow it with `slice` and a long `finetune`.

    The gates end within `tolerance` of the target: those that matter least are closed, or opened again, where
    learning them did not end there. With `align` the hidden width and the FFNs' are multiples of it: the best of
    the closed gates open again. `neuron_logit` 0 is the published start of the neurons' gates, 10 opens them.

    Example:
        - prune: {method: cofi, from: model, epochs: 20, learning_rate: 2.0e-5, batch_size: 32, evaluate_every: 500,
                  distill: {teacher: teacher, temperature: 2, alpha: 0.1, layers: 0.9, match: ordered}}
    """

    needs_target: ClassVar[bool] = True
    version: ClassVar[int] = 2

    method: Literal["cofi"]
    granularity: Annotated[list[Kind], Field(min_length=1)] = list(EVERY)
    epochs: Annotated[float, Field(gt=0)] = 20.0
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Annotated[int, Field(gt=0)] = 32
    warmup: Share = 0.0
    freeze_embeddings: bool = True
    preparation: Share = 0.05
    sparsity_warmup: Share = 0.1
    gate_learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    neuron_logit: float = 0.0
    tolerance: Annotated[float, Field(gt=0, le=0.05)] = 0.005
    align: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Cofi:
        shares = [s for s in (self.preparation, self.sparsity_warmup) if isinstance(s, float)]
        if sum(shares) >= 1:
            raise ValueError(
                "preparation and sparsity_warmup must leave steps at the target (together below 1)"
            )
        if len(set(self.granularity)) < len(self.granularity):
            raise ValueError("`granularity` names a kind twice")
        return self

    @property
    def targets(self) -> frozenset[str]:
        """The share of the layers' parameters that goes, a speedup over the dense model, or milliseconds."""
        return frozenset({"sparsity", "speedup", "latency_ms"})

    def reads_table(self, target: Target | None) -> bool:
        """Where a time is asked for."""
        return target is not None and target.timed

    @property
    def training(self) -> TrainingKeys:
        """The training keys alone."""
        return training_keys(self)

    def check(self, config: PretrainedConfig) -> None:
        """The family has what its gates are for, and the model all of it."""
        from compressor.models.architecture import architecture_of, structure_in

        if not structure_in(config).only_layers_dropped():
            raise UserError(SLICED)
        if "hidden" in self.granularity and architecture_of(config).fixed_width:
            raise UserError(
                f"cofi: the hidden width of {config.model_type} cannot change; leave hidden out of granularity"
            )

    def check_target(self, config: PretrainedConfig, target: Target | None) -> None:
        """The gates of these kinds can remove so much; of time, only a latency table can tell."""
        from compressor.models.architecture import architecture_of
        from compressor.models.structure import Structure
        from compressor.pruning.cofi.values import ParameterShare

        if target is None or target.timed:
            return
        sizes = architecture_of(config).sizes(config)
        most = self.most(ParameterShare(sizes), Structure.dense(sizes))
        if max(target.values) > most:
            raise UserError(
                f"cofi: gates of {', '.join(self.granularity)} can be expected to remove {most:.3f} of this model's "
                f"layers at most, the target is {max(target.values):g}; lower it or give more kinds in granularity"
            )

    def most(self, constraint: Constraint, structure: Structure) -> float:
        """The share that its gates can be expected to remove, all of them closed."""
        from compressor.pruning.cofi.gates import LIMIT

        return constraint(self.gates(structure, first=-LIMIT).probabilities()).item()

    def gates(self, structure: Structure, first: float | None = None, seed: int = 0) -> LearnedGates:
        """Gates of its kinds for a model with whole layers; `first` replaces the published first logits."""
        from compressor.pruning.cofi.gates import LearnedGates

        start: dict[str, float] = {**dict.fromkeys(EVERY, OPEN), "neuron": self.neuron_logit}
        return LearnedGates(
            structure,
            self.granularity,
            lambda kind: start[kind] if first is None else first,
            seed,
            self.align,
        )

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Train without gates, then with them, once for every target; fold a copy at each."""
        from compressor.models.architecture import structure_of
        from compressor.pruning.cofi.ends import ends_of
        from compressor.pruning.cofi.masking import Masking

        structure = structure_of(model)
        if not structure.only_layers_dropped():
            raise UserError(SLICED)
        ends = ends_of(self, structure, context)
        share = self._preparation(context)
        rung = self.training.model_copy(update={"epochs": self.epochs * (1 - share) / len(ends)})
        part = self._part(structure, ends[0].constraint, share, context.seed)
        total = context.steps(rung)
        if (rising := part.warmup(total)) >= total:
            raise UserError(
                "cofi: the target would still rise when training ends: sparsity_warmup takes "
                f"{rising} of the {total} optimiser steps for each target; lower it, or train longer"
            )
        if share:
            keys = {"epochs": self.epochs * share, "schedule": "constant", "evaluate_every": 0.0}
            context.train(model, self.training.model_copy(update=keys), name="prepare")
        masking = Masking(model, part.gates)
        reached = 0.0
        for end in ends:
            part.aim(reached, end.share)
            context.train(
                model,
                rung,
                part,
                name=f"gates-{end.member}",
                score=lambda: part.rated(lambda: context.score(model)),
            )
            yield _snapshot(masking, part, structure, end)
            reached = end.share

    def _part(self, structure: Structure, constraint: Constraint, share: float, seed: int) -> CofiPart:
        """What learns the gates, in the trainings after the `share` of the stage without them."""
        from compressor.pruning.cofi.training import CofiPart

        return CofiPart(
            self.gates(structure, seed=seed),
            constraint,
            self.gate_learning_rate,
            lambda total: steps_of(self.sparsity_warmup, round(total / (1 - share))),
            self.tolerance,
            seed,
        )

    def _preparation(self, context: Context) -> float:
        """The share of the stage without gates."""
        if isinstance(self.preparation, float):
            return self.preparation
        total = context.steps(self.training)
        if self.preparation >= total:
            raise UserError(
                f"cofi: preparation {self.preparation} leaves none of {total} optimiser steps for gates"
            )
        return self.preparation / total


def _snapshot(masking: Masking, part: CofiPart, structure: Structure, end: End) -> Pruned:
    """A copy of the model as it is now, its gates decided and folded into the weights."""
    from copy import deepcopy

    from compressor.pruning.cofi.fold import fold_gates

    gates, what = part.gates, part.constraint.what
    gates.clamp()
    part.check()
    decided = part.removed(gates.decided())
    values, report = end.settle(part)
    removed = part.removed(values)
    if removed != decided:
        log.info(
            "cofi: %s: gates that remove %.4f (%s) were brought to %.4f", end.member, decided, what, removed
        )
    with masking.lifted() as model:
        copy = deepcopy(model)
    kept = fold_gates(copy, values)
    if all(layer.absent for layer in kept.layers):
        log.warning("cofi: %s: nothing is left but embeddings and head", end.member)
    shares = {f"expected_{what}": part.log()[f"expected_{what}"], f"decided_{what}": decided, what: removed}
    return Pruned(copy, kept, shares | report, end.member)

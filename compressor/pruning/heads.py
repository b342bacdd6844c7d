"""Removing attention heads by a score: how the loss depends on them, how large they are, chance, or a list."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from compressor.errors import UserError
from compressor.models.architecture import architecture_of, structure_in
from compressor.models.structure import SubLayer
from compressor.pruning.base import Pruned, Pruner
from compressor.pruning.context import Context
from compressor.schema import numbers_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from compressor.models.structure import Structure

Key = tuple[str, int, str]
"""An attention sub-layer: stack, layer, name."""
Scores = dict[Key, "Tensor"]
"""A score a head that is left, in order."""
LayerNumber = Annotated[
    int, BeforeValidator(lambda key: int(key) if isinstance(key, str) and key.isdigit() else key)
]
"""A key of a mapping, which is text in a recipe."""
Share = Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=0)]


class Heads(Pruner):
    """Removing attention heads (Michel, Levy, Neubig: "Are Sixteen Heads Really Better than One?", 2019).

    Keeps the `keep` heads (a share, or a whole number of all) of highest `score`: `sensitivity` is the mean over
    examples of the loss's absolute gradient by a gate on the head, made comparable across layers by their norm;
    `magnitude` the mean absolute weight of its part of the output projection; `random` is for comparison; with
    `explicit` the heads named in `drop` go, layer by layer: `drop: {"0": [2, 5], "3": [1]}`. `scope: layer` keeps as
    many in each layer. With `steps` it removes a part, scores again and goes on. Needs a fine-tuned model; fine-tune
    it again afterwards.

    Example:
        - prune: {method: heads, score: sensitivity, keep: 0.5}
    """

    prunes_writers: ClassVar[bool] = True

    method: Literal["heads"]
    score: Literal["sensitivity", "magnitude", "random", "explicit"] = "sensitivity"
    keep: Share | None = None
    drop: dict[LayerNumber, list[Annotated[int, Field(ge=0)]]] | None = None
    scope: Literal["global", "layer"] = "global"
    steps: Annotated[int, Field(gt=0)] = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Heads:
        explicit = self.score == "explicit"
        if explicit != (self.drop is not None):
            raise ValueError("name the heads to `drop` with score explicit, and only with it")
        if explicit != (self.keep is None):
            what = "leave `keep` out" if explicit else "say how many heads to `keep`: a share or a number"
            raise ValueError(f"{what} (score {self.score})")
        if self.drop is not None and not any(self.drop.values()):
            raise ValueError("`drop` names no head")
        if explicit and "scope" in self.model_fields_set:
            raise ValueError("`scope` is for scores that choose; explicit names the heads itself")
        if self.steps > 1 and self.score in ("explicit", "random"):
            raise ValueError(f"`steps` are for scores that change; {self.score} does not")
        return self

    def check(self, config: PretrainedConfig) -> None:
        """There are such layers and heads."""
        family = architecture_of(config)
        structure = structure_in(config)
        there = {layer.index: sub.kept for layer, name, sub in structure.each() if name != "ffn" and sub.kept}
        if self.drop and family.writes_text:
            raise UserError(
                "heads: `drop` numbers the layers of an encoder; with encoder and decoder take another score"
            )
        for layer, dropped in (self.drop or {}).items():
            if layer not in there:
                raise UserError(f"heads: no layer {layer}: this model has {numbers_text(sorted(there))}")
            for head in dropped:
                if head not in there[layer]:
                    raise UserError(
                        f"heads: no head {head} in layer {layer}: it has {numbers_text(there[layer])}"
                    )
        if isinstance(self.keep, int) and self.keep > structure.heads():
            raise UserError(f"heads: {self.keep} is more than the {structure.heads()} heads this model has")

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Choose, and leave what removed heads output at every token (their value biases) in the weights."""
        from compressor.models.architecture import structure_of
        from compressor.models.gates import Gates
        from compressor.pruning.fold import fold_constants

        structure = structure_of(model)
        if self.drop is not None:
            structure = _without(structure, self.drop)
        else:
            whole = structure.heads()
            wanted = self.keep if isinstance(self.keep, int) else round((self.keep or 0) * whole)
            for step in range(1, self.steps + 1):
                left = round(whole + (wanted - whole) * step / self.steps)
                with Gates(model, structure):
                    scores = self._scores(model, structure, context)
                structure = _keep_best(structure, scores, left, self.scope)
        fold_constants(model, structure)
        yield Pruned(model, structure, {"heads": structure.heads()})

    def _scores(self, model: PreTrainedModel, structure: Structure, context: Context) -> Scores:
        from compressor.pruning import head_scores

        score: dict[str, Callable[..., Scores]] = {
            "sensitivity": head_scores.sensitivity,
            "magnitude": head_scores.magnitude,
            "random": head_scores.chance,
        }
        return score[self.score](model, structure, context)


def _without(structure: Structure, drop: dict[int, list[int]]) -> Structure:
    kept: dict[Key, SubLayer] = {}
    for layer, name, sub in structure.each():
        if name != "ffn" and layer.index in drop:
            left = tuple(head for head in sub.kept if head not in drop[layer.index])
            kept[layer.stack, layer.index, name] = SubLayer(left)
    return structure.keeping(kept)


def _keep_best(structure: Structure, scores: Scores, count: int, scope: str) -> Structure:
    """The structure with `count` heads: the best of all, or as many in each layer (one more in the first ones)."""
    ranked: list[tuple[Any, ...]] = []
    for key, values in scores.items():
        order = sorted(range(len(values)), key=lambda at: (-float(values[at]), at))
        for rank, at in enumerate(order):
            place = (rank,) if scope == "layer" else ()
            ranked.append((*place, -float(values[at]), key, at))
    best: dict[Key, list[int]] = {key: [] for key in scores}
    for *_, key, at in sorted(ranked)[:count]:
        best[key].append(at)
    kept = {}
    for layer, name, sub in structure.each():
        key = (layer.stack, layer.index, name)
        if key in best:
            kept[key] = SubLayer(tuple(sub.kept[at] for at in sorted(best[key])))
    return structure.keeping(kept)

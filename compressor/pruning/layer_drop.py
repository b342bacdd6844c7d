"""Dropping whole layers, chosen once: by their place, by what they do, or by their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from compressor.errors import UserError
from compressor.models.architecture import architecture_of, structure_in
from compressor.pruning.base import Pruned, Pruner
from compressor.pruning.context import Context
from compressor.pruning.target import Target
from compressor.schema import TrainingKeys, numbers_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from compressor.models.structure import Structure

Count = Annotated[int, Field(ge=0)]
Value = TypeVar("Value")
PerStack = Annotated[dict[Literal["encoder", "decoder"], Value], Field(min_length=1)]
"""One value for the encoder, another for the decoder; nothing goes of what is not named."""


def top(layers: int, drop: int) -> list[int]:
    """The last layers."""
    return list(range(layers - drop, layers))


def bottom(layers: int, drop: int) -> list[int]:
    """The first layers."""
    return list(range(drop))


def even_alternate(layers: int, drop: int) -> list[int]:
    """From the top down every layer whose number, counted from 1, is even."""
    return sorted(range(layers - 1 - layers % 2, -1, -2)[:drop])


def odd_alternate(layers: int, drop: int) -> list[int]:
    """From the top down every layer whose number, counted from 1, is odd."""
    return sorted(range(layers - 2 + layers % 2, -1, -2)[:drop])


def symmetric(layers: int, drop: int) -> list[int]:
    """The middle layers: as many stay below as above."""
    below = (layers - drop) // 2
    return list(range(below, below + drop))


PLACES: dict[str, Callable[[int, int], list[int]]] = {
    "top": top,
    "bottom": bottom,
    "even-alternate": even_alternate,
    "odd-alternate": odd_alternate,
    "symmetric": symmetric,
}
"""Strategies that go by place alone: (layers, how many to drop) -> indices from 0, rising."""

MEASURES = ("contribution", "weight", "block-influence", "angular", "metric")
"""Strategies that look at the model; all but `weight` look at data too."""


def most(strategy: str, layers: int) -> int:
    """How many of `layers` a strategy can drop; one always stays."""
    fewer = {"even-alternate": layers // 2, "odd-alternate": (layers + 1) // 2, "metric": layers - 2}
    return max(0, min(fewer.get(strategy, layers), layers - 1))


class LayerDrop(Pruner):
    """Dropping whole layers (Sajjad, Dalvi, Durrani, Nakov: "On the Effect of Dropping Layers of Pre-trained
    Transformer Models", 2020, "Poor Man's BERT").

    Removes `drop` layers of the pretrained model (a list makes a family), or those named in `layers` (numbers from
    0, of the original); fine-tune it afterwards as a whole. `top`, `bottom`, `even-alternate`, `odd-alternate`
    (both from the top down) and `symmetric` go by place. The others measure on the selection split: `contribution`
    drops layers that leave the direction of `[CLS]` as it is (above `threshold`, or the `drop` least changing),
    `block-influence` does so over all tokens (ShortGPT), `angular` drops the block of layers over which it turns
    least (Gromov et al. 2024), `metric` the layers without which the task's metric is best, one after the other
    (SLEB, which protects the first and the last). `weight` drops the layers of least `weight_statistic`.
    `iterative` trains before every single drop. Where all layers are one (ALBERT), it is applied fewer times: less to
    compute, not less to store. A model that is fine-tuned already may be dropped from too. Of an encoder-decoder
    each stack has its own number, `drop: {encoder: 2, decoder: 3}`, by place, or its own `layers`.

    Example:
        - prune: {method: layer-drop, strategy: top, drop: 4}
    """

    training_at: ClassVar[tuple[str, ...]] = ("iterative",)
    whole_layers: ClassVar[bool] = True
    prunes_writers: ClassVar[bool] = True
    version: ClassVar[int] = 2

    method: Literal["layer-drop"]
    strategy: Literal[
        "top",
        "bottom",
        "even-alternate",
        "odd-alternate",
        "symmetric",
        "contribution",
        "weight",
        "block-influence",
        "angular",
        "metric",
        "explicit",
    ] = "top"
    drop: Count | Annotated[list[Count], Field(min_length=1)] | PerStack[Count] | None = None
    layers: list[Count] | PerStack[list[Count]] | None = None
    threshold: Annotated[float, Field(gt=-1, lt=1)] | None = None
    weight_statistic: Literal["magnitude", "variance"] = "magnitude"
    iterative: TrainingKeys | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> LayerDrop:
        explicit = self.strategy == "explicit"
        if explicit != (self.layers is not None):
            raise ValueError("name the `layers` with strategy explicit, and only with it")
        named = list(self.layers.values()) if isinstance(self.layers, dict) else [self.layers or []]
        if explicit and not any(named):
            raise ValueError("`layers` names none")
        if any(len(set(numbers)) < len(numbers) for numbers in named):
            raise ValueError("`layers` names one twice")
        if isinstance(self.drop, dict) and self.strategy not in PLACES:
            raise ValueError(f"`drop` for each stack goes by place: {', '.join(PLACES)}")
        if self.threshold is not None and (self.strategy != "contribution" or self.drop is not None):
            raise ValueError("`threshold` is for strategy contribution, in place of `drop`")
        if (self.drop is None) != (explicit or self.threshold is not None):
            what = "leave `drop` out" if explicit else "say how many layers to `drop`"
            raise ValueError(f"{what} (strategy {self.strategy})")
        if isinstance(self.drop, list) and len(set(self.drop)) < len(self.drop):
            raise ValueError("`drop` lists a number twice")
        if "weight_statistic" in self.model_fields_set and self.strategy != "weight":
            raise ValueError("`weight_statistic` is for strategy weight")
        if self.iterative and (isinstance(self.drop, list | dict) or self.strategy not in PLACES):
            raise ValueError(f"`iterative` takes one number and goes by place: {', '.join(PLACES)}")
        return self

    @property
    def uses_metric(self) -> bool:
        """One of its measures is the metric."""
        return self.strategy == "metric"

    @property
    def training(self) -> TrainingKeys | None:
        """How it trains between drops."""
        return self.iterative

    def effort(self, config: PretrainedConfig) -> float:
        """A training before every drop."""
        return self.iterative.epochs * self.counts()[0] if self.iterative else 0.0

    def counts(self) -> list[int]:
        """The numbers of layers that are asked for."""
        return counts_in(self.drop)

    def members(self, target: Target | None) -> list[str]:
        """One model a number of layers."""
        return members_by_count(self.counts())

    def check(self, config: PretrainedConfig) -> None:
        """There are as many layers, and the strategy can leave out so many."""
        family = architecture_of(config)
        asked = self.drop if self.layers is None else self.layers
        if isinstance(asked, dict) != family.writes_text:
            key = "drop" if self.layers is None else "layers"
            raise UserError(
                f"layer-drop: name both stacks, {key}: {{encoder: ..., decoder: ...}}"
                if family.writes_text
                else f"layer-drop: {key} by stack is for encoder-decoders; this model has one stack"
            )
        have = structure_in(config).layers
        for stack in family.stacks:
            there = [layer.index for layer in have if layer.stack == stack.name]
            where = f" of the {stack.name}" if family.writes_text else ""
            named = self.layers.get(stack.name) if isinstance(self.layers, dict) else self.layers  # type: ignore[call-overload]
            for index in named or []:
                if index not in there:
                    raise UserError(
                        f"layer-drop: no layer {index}{where}: this model has {numbers_text(there)}"
                    )
            if named is not None:
                _check_left(len(there), len(named), where)
            counts = [self.drop.get(stack.name, 0)] if isinstance(self.drop, dict) else self.counts()  # type: ignore[call-overload]
            for count in counts:
                _check_count(self.strategy, len(there), count)

    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Choose the layers; nothing is left to fold."""
        from compressor.models.architecture import structure_of

        structure = structure_of(model)
        if self.iterative:
            yield self._step_by_step(model, structure, context)
            return
        chosen = self._choose(model, structure, context)
        for member, dropped in zip(self.members(None), chosen, strict=True):
            yield Pruned(model, without(structure, dropped), _report(structure, dropped), member)

    def _choose(self, model: PreTrainedModel, structure: Structure, context: Context) -> list[list[int]]:
        """For every member the places of the layers to drop, in the model as it is."""
        layers = len(structure.layers)
        if isinstance(self.drop, dict) or isinstance(self.layers, dict):
            return [self._choose_by_stack(structure)]
        if self.layers is not None:
            gone = [at for at, layer in enumerate(structure.layers) if layer.index in self.layers]
            _check_left(layers, len(gone))
            return [gone]
        for count in self.counts():
            _check_count(self.strategy, layers, count)
        if self.strategy in PLACES:
            return [PLACES[self.strategy](layers, count) for count in self.counts()]
        from compressor.pruning import layer_measures

        return layer_measures.choose(self, model, context)

    def _choose_by_stack(self, structure: Structure) -> list[int]:
        """The places of the layers to drop, each stack for itself."""
        gone: list[int] = []
        for stack in structure.sizes.stacks:
            places = [at for at, layer in enumerate(structure.layers) if layer.stack == stack]
            if isinstance(self.layers, dict):
                named = self.layers.get(stack, [])  # type: ignore[call-overload]
                chosen = [at for at in places if structure.layers[at].index in named]
                _check_left(len(places), len(chosen), f" of the {stack}")
                gone += chosen
            elif isinstance(self.drop, dict):
                count = self.drop.get(stack, 0)  # type: ignore[call-overload]
                _check_count(self.strategy, len(places), count)
                gone += [places[at] for at in PLACES[self.strategy](len(places), count)]
        return gone

    def _step_by_step(self, model: PreTrainedModel, structure: Structure, context: Context) -> Pruned:
        """Drop what the strategy drops of one layer, of two, and so on, one more after every training."""
        from compressor.models.gates import Gates

        assert self.iterative is not None
        (count,) = self.counts()
        _check_count(self.strategy, len(structure.layers), count)
        dropped = [PLACES[self.strategy](len(structure.layers), step) for step in range(count + 1)]
        for gone in dropped[:-1]:
            with Gates(model, without(structure, gone)):
                context.train(model, self.iterative)
        return Pruned(model, without(structure, dropped[-1]), _report(structure, dropped[-1]))


def counts_in(drop: int | list[int] | Mapping[Any, int] | None) -> list[int]:
    """The numbers of layers that a `drop` key stands for."""
    if drop is None:
        return []
    if isinstance(drop, Mapping):
        return [sum(drop.values())]
    return drop if isinstance(drop, list) else [drop]


def members_by_count(counts: Sequence[int]) -> list[str]:
    """The names of a family's members that differ in the number of layers dropped."""
    return [f"drop{count}" for count in counts] if len(counts) > 1 else ["pruned"]


def without(structure: Structure, places: Sequence[int]) -> Structure:
    """The structure without the layers at these places (from 0, of those it has)."""
    kept = tuple(layer for at, layer in enumerate(structure.layers) if at not in set(places))
    return replace(structure, layers=kept)


def _report(structure: Structure, places: Sequence[int]) -> dict[str, Any]:
    """Which layers went, by their numbers in the original."""
    return {"dropped": [structure.layers[at].index for at in places]}


def _check_left(layers: int, gone: int, where: str = "") -> None:
    if gone >= layers:
        raise UserError(f"layer-drop: one of the {layers} layers{where} must stay")


def _check_count(strategy: str, layers: int, count: int) -> None:
    if count > most(strategy, layers):
        raise UserError(
            f"layer-drop: {strategy} can drop 0 to {most(strategy, layers)} of {layers} layers, not {count}"
        )
    if strategy == "symmetric" and (layers - count) % 2:
        allowed = ", ".join(str(k) for k in range(layers) if (layers - k) % 2 == 0)
        raise UserError(
            f"layer-drop: symmetric keeps as many layers below as above: of {layers} it can drop {allowed}, "
            f"not {count}"
        )

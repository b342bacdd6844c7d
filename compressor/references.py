"""What a recipe says about itself: its methods, teachers, variants and benchmark cells, each of which must exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from compressor.models.source import NewModel, TrainTokenizer
from compressor.parts import FORWARD
from compressor.schema import suggest
from compressor.stages.base import MODEL, TEACHER
from compressor.stages.chain import Place, Problem, build_chain, stage_ids
from compressor.stages.prune import Prune
from compressor.stages.quantize import Quantize
from compressor.stages.release import UNJUDGED, Limit, cell_of, judged
from compressor.tasks.schema import PARTS, STREAMED, UNLABELLED

if TYPE_CHECKING:
    from compressor.recipe import Recipe

AIMED = frozenset({"operators", "per_channel", "reduce_range", "exclude"})
"""Keys of `quantize` that make another int8 graph than the one a target is aimed with."""


def check_references(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong with what a valid recipe says about its own methods, variants and benchmark cells."""
    pruners = [s.pruner for s in recipe.stages if isinstance(s, Prune)]
    accepted = frozenset().union(*(p.targets for p in pruners)) if pruners else frozenset()
    if recipe.target and not set(recipe.target.given()) <= accepted:
        methods = ", ".join(p.method for p in pruners) or "this chain"
        goals = " or ".join(recipe.target.given())
        yield ("target",), f"{methods} does not aim at {goals}; leave `target` out"
    if recipe.target and recipe.target.at.cell(recipe.benchmark.cells()) is None:
        yield ("target", "at"), "no such cell is timed; see `benchmark`"
    for pruner in pruners:
        if pruner.needs_target and recipe.target is None:
            goals = " or ".join(sorted(pruner.targets))
            yield ("target",), f"is missing: {pruner.method} needs a {goals} to aim at"
    yield from _check_precision(recipe)
    yield from _check_families(recipe)
    if recipe.task.type in UNLABELLED:
        yield from _check_teachers(recipe)
    yield from _check_vocabulary(recipe)
    if recipe.task.type in STREAMED:
        yield from _check_no_teachers(recipe)
    else:
        yield from _check_drops(recipe)
    chain = build_chain(recipe.stages, recipe.baseline)
    known = PARTS.get(recipe.task.type, (FORWARD,))
    for part in recipe.benchmark.parts:
        if part not in known:
            yield ("benchmark", "parts"), f"no part '{part}'{suggest(part, known)} {among(known)}"
    timed = {gate: getattr(recipe.gates, gate) for gate in ("min_speedup", "max_latency_ms")}
    limits = {gate: limit for gate, limit in timed.items() if isinstance(limit, Limit)}
    asked: dict[tuple[str | int, ...], str] = {("release",): recipe.release}
    asked |= {("gates", gate, "variant"): limit.variant for gate, limit in limits.items() if limit.variant}
    names = ("final", "all", *chain.variants)
    for at, name in asked.items():
        if name not in names:
            yield at, f"no variant '{name}'{suggest(name, names)} {among(names)}"
    cells = [cell.keys() for cell in recipe.benchmark.cells()]
    for gate, limit in limits.items():
        if cell_of(cells, limit) is None:
            keys = limit.model_dump(exclude={"value", "variant"}, exclude_none=True)
            where = ", ".join(f"{key} {value}" for key, value in keys.items())
            yield ("gates", gate), f"no cell with {where} is timed; see `benchmark`"
    for gate, judges in judged(recipe.gates, recipe.release, chain.final, chain.variants).items():
        if not judges:
            yield ("gates", gate), UNJUDGED[gate]


def _check_drops(recipe: Recipe) -> Iterator[Problem]:
    """Drops of metrics between 0 and 1 are fractions."""
    target, gate = recipe.target, recipe.gates.max_metric_drop
    asked: dict[Place, list[float]] = {("gates", "max_metric_drop"): [] if gate is None else [gate]}
    if target and target.max_metric_drop is not None:
        asked[("target", "max_metric_drop")] = target.values
    for at, drops in asked.items():
        if max(drops, default=0) >= 1:
            yield at, "is a fraction of the metric: 0.01 is one point"


def _check_families(recipe: Recipe) -> Iterator[Problem]:
    """No stage prunes several models at once, or learns from several."""
    several, previous = {MODEL: False}, MODEL
    for number, (stage, name) in enumerate(zip(recipe.stages, stage_ids(recipe.stages), strict=True)):
        source = stage.source or previous
        at = ("stages", number, stage.verb)
        if isinstance(stage, Prune) and several[source]:
            yield at, f"prunes one model, '{source}' makes several: give the pruning before it one value"
        for key, other in stage.references.items():
            if several.get(other):
                yield (*at, *key), f"is one model, '{other}' makes several: give its pruning one value"
        several[name] = several[source] or (isinstance(stage, Prune) and len(stage.members()) > 1)
        previous = name


def _check_precision(recipe: Recipe) -> Iterator[Problem]:
    """A target that is meant in another precision than fp32 is for who has tables of it, and the chain gets there."""
    asked = recipe.target.at.precision if recipe.target else "fp32"
    if asked == "fp32":
        return
    here = ("target", "at", "precision")
    aiming = [stage.pruner for stage in recipe.stages if isinstance(stage, Prune) and stage.target]
    others = [pruner.method for pruner in aiming if asked not in pruner.precisions]
    if others:
        yield here, f"{others[0]} times models in fp32 only; leave it out"
    mode = {"int8": "dynamic", "auto": "auto"}[asked]
    if not any(isinstance(stage, Quantize) and stage.mode == mode for stage in recipe.stages):
        yield here, f"{asked} is what `quantize: {{mode: {mode}}}` makes: end the chain with it"
    for number, stage in enumerate(recipe.stages):
        own = sorted(stage.model_fields_set & AIMED) if isinstance(stage, Quantize) else []
        if own and asked == "int8":
            at = ("stages", number, "quantize", own[0])
            yield at, "is not what target.at.precision int8 aims with: leave it out"


def _check_teachers(recipe: Recipe) -> Iterator[Problem]:
    """Every training has a teacher, and nothing is said about labels."""
    for number, stage in enumerate(recipe.stages):
        at: Place = ("stages", number, stage.verb, *stage.training_at, TEACHER[0])
        training = stage.training
        if training and training.distill is None:
            yield (
                at,
                f"{recipe.task.type} has no labels, a teacher's embeddings are learned: {{teacher: model}}",
            )
        for key in ("alpha", "temperature"):
            if training and training.distill and key in training.distill.model_fields_set:
                yield (*at, key), f"is for tasks with labels; {recipe.task.type} has none: leave it out"


def _check_vocabulary(recipe: Recipe) -> Iterator[Problem]:
    """A vocabulary that is trained is of the task's kind."""
    tokenizer = recipe.model.tokenizer if isinstance(recipe.model, NewModel) else None
    if isinstance(tokenizer, TrainTokenizer):
        known = ("word", "bpe", "character") if recipe.task.type in STREAMED else ("wordpiece",)
        if tokenizer.train not in known:
            what = f"'{tokenizer.train}' does not serve {recipe.task.type}; take {' or '.join(known)}"
            yield ("model", "tokenizer", "train"), what


def _check_no_teachers(recipe: Recipe) -> Iterator[Problem]:
    """Nothing is distilled: what a teacher gives would be kept for all tokens times the vocabulary."""
    for number, stage in enumerate(recipe.stages):
        if stage.training and stage.training.distill:
            at = ("stages", number, stage.verb, TEACHER[0])
            yield at, f"is not for {recipe.task.type}, whose next tokens are labels enough: leave it out"


def among(names: Sequence[str]) -> str:
    """What there is to choose from."""
    return f"(there are: {', '.join(names)})"

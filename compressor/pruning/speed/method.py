"""The method: one origin for all targets; for each of them candidates, the best of which is settled on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.errors import GateError, UserError
from compressor.models.architecture import structure_of
from compressor.pruning.base import At, Context, Precision, Pruned, members_of
from compressor.pruning.speed.bounded import Bounded
from compressor.pruning.speed.candidates import Candidates
from compressor.pruning.speed.goal import Goal
from compressor.pruning.speed.gradual import climbed
from compressor.pruning.speed.origin import Origin
from compressor.pruning.speed.places import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.pruning.speed import Speed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A candidate that meets a target, how, and how good it is beside those of other precisions."""

    candidates: Candidates
    choice: Choice
    report: dict[str, Any]
    worth: float = 0.0


def prune(keys: Speed, model: PreTrainedModel, context: Context) -> Iterator[Pruned]:
    """A model for every target."""
    assert context.target is not None
    origin = Origin(keys, model, context)
    every = [_candidates(origin, precision) for precision in precisions_of(context.target.at)]
    kind = context.target.given()[0]
    members = {member: value or 0.0 for member, value in members_of(context.target).items()}
    for value in members.values() if kind != "max_metric_drop" else ():
        _reachable(every, kind, value)
    for member, value in members.items():
        if kind == "max_metric_drop":
            found = [_bounded(candidates, value) for candidates in every]
        else:
            found = _aimed(_reachable(every, kind, value), member)
        best = max(found, key=lambda one: one.worth)
        origin = best.candidates.origin
        losses = origin.settle(best.choice)
        structure = origin.database.structure_of(best.choice)
        report = {"precision": best.candidates.precision, **best.report, **losses}
        yield Pruned(origin.model, structure, report | {"curve": list(best.candidates.curve())}, member)


def precisions_of(at: At) -> list[Precision]:
    """The precisions that models are looked for in."""
    return ["fp32", "int8"] if at.precision == "auto" else [at.precision]


def _candidates(origin: Origin, precision: Precision) -> Candidates:
    """Candidates of one precision; the time of the dense model that speedups are over is measured where need be."""
    context, table = origin.context, origin.context.latency_table(precision)
    assert context.target is not None
    if precision == "fp32" or context.target.at.relative_to == "same-precision":
        return Candidates(origin, table, precision, table.dense_ms)
    ratio = context.timing("source", context.model, precision).speedup
    return Candidates(origin, table, precision, ratio * table.time(structure_of(origin.model)))


def _reachable(every: Sequence[Candidates], kind: str, value: float) -> list[tuple[Candidates, Goal]]:
    """The candidates that can come so far, each with its goal.

    Raises:
        UserError: none can.
    """
    able, error = [], None
    for candidates in every:
        goal = Goal(kind, value, candidates.dense_ms)
        try:
            goal.check(candidates.least_ms)
            able.append((candidates, goal))
        except UserError as unable:
            error = unable
    if error and not able:
        raise error
    return able


def _aimed(able: Sequence[tuple[Candidates, Goal]], member: str) -> list[Found]:
    """Of every precision the candidate that is as fast as asked; worth is the metric on the selection split.

    Raises:
        GateError: none was measured to be.
    """
    found, error = [], None
    for candidates, goal in able:
        here = candidates.at(climbed(candidates, goal.asked_ms, member))
        attempts = here.attempts(goal)
        choice = attempts[-1].choice
        try:
            report = goal.report(attempts)
        except GateError as unable:
            error = unable
            continue
        worth = 0.0
        if len(able) > 1:
            here.origin.settle(choice)
            worth = here.origin.score(choice, here.precision)
            report["compared"] = worth
        found.append(Found(here, choice, report, worth))
    if error and not found:
        raise error
    return found


def _bounded(candidates: Candidates, allowed: float) -> Found:
    """The fastest candidate of a precision that loses no more than `allowed`; worth is its measured speedup.

    Raises:
        GateError: none loses so little.
    """
    origin, most = candidates.origin, candidates.dense_ms / candidates.least_ms
    whole = origin.context.score(origin.context.model())

    def drop(choice: Choice) -> float:
        origin.settle(choice)
        return whole - origin.score(choice, candidates.precision)

    search = Bounded(
        allowed,
        lambda speed, coefficients: candidates.within(candidates.dense_ms / speed, coefficients),
        lambda speed: candidates.refined(candidates.dense_ms / speed),
        drop,
    )
    choice = search.furthest(candidates.even, most)
    log.info("speed: on the selection split %s are lost", search.curve())
    timing = candidates.measure(choice)
    report = {
        "asked": {"max_metric_drop": allowed},
        "measured": timing._asdict(),
        "predicted_ms": candidates.predicted(choice),
        "tried": search.tried,
    }
    return Found(candidates, choice, report, timing.speedup)

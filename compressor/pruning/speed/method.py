"""The method: one origin for all targets; for each of them candidates, the best of which is settled on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from compressor.errors import GateError, UserError
from compressor.models.architecture import structure_of
from compressor.pruning.base import Pruned
from compressor.pruning.context import Context
from compressor.pruning.goal import Goal
from compressor.pruning.speed.bounded import Bounded
from compressor.pruning.speed.candidates import Candidates
from compressor.pruning.speed.gradual import climbed
from compressor.pruning.speed.origin import Origin
from compressor.pruning.speed.places import Choice
from compressor.pruning.target import At, Precision, members_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.pruning.speed import Speed

T = TypeVar("T")
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
    if kind == "max_metric_drop":
        ways = {member: [partial(_bounded, one, value) for one in every] for member, value in members.items()}
    else:
        goals = {
            m: _able([partial(_goal, one, kind, value) for one in every]) for m, value in members.items()
        }
        ways = {m: [partial(_aimed, *one, m, len(able) > 1) for one in able] for m, able in goals.items()}
    for member, tries in ways.items():
        found = _able(tries)
        best = max(found, key=lambda one: one.worth)
        origin = best.candidates.origin
        losses = origin.settle(best.choice)
        structure = origin.database.structure_of(best.choice)
        report = {"precision": best.candidates.precision, **best.report, **losses}
        if others := {one.candidates.precision: one.worth for one in found if one is not best}:
            report["others"] = others
        yield Pruned(origin.model, structure, report | {"curve": list(best.candidates.curve())}, member)


def precisions_of(at: At) -> list[Precision]:
    """The precisions that models are looked for in."""
    return ["fp32", "int8"] if at.precision == "auto" else [at.precision]


def _candidates(origin: Origin, precision: Precision) -> Candidates:
    """Candidates of one precision; the time of the dense model that speedups are over is measured where need be."""
    context, table = origin.context, origin.context.latency_table(precision)
    assert context.target is not None
    if precision == "fp32" or context.target.at.relative_to == "same-precision":
        return Candidates(origin, table, precision, table.time(context.baseline))
    ratio = context.timing("source", context.model, precision).speedup
    return Candidates(origin, table, precision, ratio * table.time(structure_of(origin.model)))


def _able(tries: Sequence[Callable[[], T]]) -> list[T]:
    """What those tries give that come to something; where none does, the error says of every one why."""
    found: list[T] = []
    errors: list[UserError | GateError] = []
    for one in tries:
        try:
            found.append(one())
        except (UserError, GateError) as unable:
            errors.append(unable)
    if not found:
        raise type(errors[-1])("; or ".join(str(error) for error in errors))
    return found


def _goal(candidates: Candidates, kind: str, value: float) -> tuple[Candidates, Goal]:
    """The candidates with their goal.

    Raises:
        UserError: they cannot come so far.
    """
    goal = Goal(kind, value, candidates.dense_ms, candidates.precision)
    goal.check(candidates.least_ms, candidates.smaller())
    return candidates, goal


def _aimed(candidates: Candidates, goal: Goal, member: str, compared: bool) -> Found:
    """The candidate that is as fast as asked; its worth, where it is `compared`, is that on the selection split.

    Raises:
        GateError: none was measured to be.
    """
    here = candidates.at(climbed(candidates, goal.asked_ms, member))
    attempts = here.attempts(goal)
    choice, report = attempts[-1].choice, goal.report(attempts)
    if not compared:
        return Found(here, choice, report)
    here.origin.settle(choice)
    worth = here.origin.score(choice, here.precision)
    return Found(here, choice, report | {"compared": worth}, worth)


def _bounded(candidates: Candidates, allowed: float) -> Found:
    """The fastest candidate of a precision that loses no more than `allowed`; worth is its measured speedup.

    Raises:
        GateError: none loses so little.
    """
    origin, most = candidates.origin, candidates.dense_ms / candidates.least_ms

    def drop(choice: Choice) -> float:
        origin.settle(choice)
        return origin.whole - origin.score(choice, candidates.precision)

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

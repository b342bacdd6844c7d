"""The method: latency table, database, costs, and for every target search, measurement and recovery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compressor.files import digest
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure
from compressor.pruning.base import Context, LatencyTable, Pruned, Timing, members_of
from compressor.pruning.speed.aim import Attempt, aim
from compressor.pruning.speed.database import Database, store
from compressor.pruning.speed.divergence import Probe
from compressor.pruning.speed.goal import Goal
from compressor.pruning.speed.moments import Batch, input_moments
from compressor.pruning.speed.places import Choice, Key, Place, Units, places_of
from compressor.pruning.speed.recovery import second_pass
from compressor.pruning.speed.scores import ORDERS, Evidence
from compressor.pruning.speed.search import Menu, choose, refine
from compressor.pruning.speed.sizes import price, probed, sizes_of, without

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.pruning.speed import Speed

VERSION = 1
"""Raised when databases of older code mean something else."""
CALIBRATION_TOKENS, PROBE_TOKENS = 50_000, 16_000
"""Tokens of calibration and probe examples at most, whatever their number: what a CPU does in minutes."""
CURVE = (1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8, 10, 15)
"""Speedups at which the report shows what the search expects to lose."""


def prune(keys: Speed, model: PreTrainedModel, context: Context) -> Iterator[Pruned]:
    """A model for every target."""
    assert context.target is not None
    table, places = context.latency_table(), places_of(model)
    goals = {
        member: Goal(context.target.given()[0], value or 0.0, table)
        for member, value in members_of(context.target).items()
    }
    menus = sizes_of(places, table)
    rest = without(model, places, table)
    least = rest + min(ms for menu in menus.values() for n, ms in zip(menu.units, menu.ms, strict=True) if n)
    for goal in goals.values():
        goal.check(least)
    batches = context.sample("train", keys.calibration, CALIBRATION_TOKENS)
    database = _database(keys, model, places, batches, context)
    probe = Probe(model, context.sample("selection", keys.probes, PROBE_TOKENS))
    priced = _priced(menus, database, probe, context)
    search = Search(keys, context, table, rest, least, database, probe, priced)
    curve = list(search.curve())
    for member, goal in goals.items():
        model.cpu()  # scoring the member before may have moved it, away from the probe
        database.restore()
        *_, best = attempts = search.attempts(goal)
        structure = database.structure_of(best.choice)
        database.apply(best.choice)
        report = goal.report(best, attempts) | {"curve": curve}
        with Gates(model, structure):
            report["divergence"] = probe.loss()
            if keys.recover:
                report["recovered"] = _recovered(model, structure, batches, probe, context)
        if report.get("recovered", 0.0) > report["divergence"]:
            database.apply(best.choice)
        yield Pruned(model, structure, report, member)


@dataclass(frozen=True)
class Search:
    """What the search for one target needs: the priced sizes, and the true loss of a candidate."""

    keys: Speed
    context: Context
    table: LatencyTable
    rest_ms: float
    """What the model takes without any of its places."""
    least_ms: float
    """What it takes with the cheapest of them alone: less is not aimed at."""
    database: Database
    probe: Probe
    menus: Sequence[Menu]

    def attempts(self, goal: Goal) -> list[Attempt[Choice]]:
        """Candidates that were exported and measured, the best last."""
        self.context.tell(f"search for {goal.kind} {goal.value:g}", 0.0)
        coefficients, _ = refine(
            self.menus, goal.asked_ms - self.rest_ms, self._loss, self.keys.search, self.context.seed
        )
        return aim(
            goal.asked_ms,
            lambda budget: choose(self.menus, max(budget, self.least_ms) - self.rest_ms, coefficients),
            lambda choice: self.table.time(self.database.structure_of(choice)),
            self._measure,
            goal.reach,
        )

    def curve(self) -> Iterator[dict[str, float]]:
        """What the search expects to lose (the sum of costs) at speeds from low to high, as far as it can go."""
        even = np.ones(len(self.menus))
        for speedup in CURVE:
            choice = choose(self.menus, self.table.dense_ms / speedup - self.rest_ms, even)
            if choice is None:
                return
            cost = sum(float(menu.cost[menu.units.index(choice[menu.key])]) for menu in self.menus)
            yield {"speedup": speedup, "cost": cost}

    def _loss(self, choice: Choice, limit: float) -> float:
        return self.database.loss(self.probe, choice, limit)

    def _measure(self, choice: Choice) -> Timing:
        structure = self.database.structure_of(choice)
        return self.context.timing(
            digest(structure.to_json()), lambda: slice_model(self.database.model, structure)
        )


def _database(
    keys: Speed, model: PreTrainedModel, places: Sequence[Place], batches: Sequence[Batch], context: Context
) -> Database:
    """The database of this model, score and calibration data: made once, for any target."""
    folder = context.kept("speed", VERSION, keys.score, keys.calibration, keys.probes)
    database = Database(model, places, folder)
    if not database.complete:
        context.tell("calibrate", 0.0)
        moments = input_moments(model, places, batches)
        context.tell(f"order units by {keys.score}", 0.0)
        orders = ORDERS[keys.score](Evidence(model, places, batches, moments, context.seed))
        for place in places:
            found = moments[place.key]
            store(folder, place, orders[place.key], found.mean, found.covariance)
    return database


def _priced(menus: dict[Key, Menu], database: Database, probe: Probe, context: Context) -> list[Menu]:
    """The menus with what every size costs."""
    costs: dict[Key, dict[Units, float]] = {}
    for costs in database.costs(probe, {key: probed(menu.units) for key, menu in menus.items()}):
        context.tell("measure what every size costs", len(costs) / len(menus))
    return [Menu(key, menu.units, menu.ms, price(menu.units, costs[key])) for key, menu in menus.items()]


def _recovered(
    model: PreTrainedModel, structure: Structure, batches: Sequence[Batch], probe: Probe, context: Context
) -> float:
    """Run the second pass; the divergence after it."""
    context.tell("recover", 0.0)
    second_pass(model, context.model(), structure, batches)
    return probe.loss()

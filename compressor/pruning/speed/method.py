"""The method: latency table, database, costs, and for every target search, measurement and recovery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import GateError, UserError
from compressor.files import digest
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.pruning.base import Context, LatencyTable, Pruned, Timing, members_of
from compressor.pruning.speed.aim import Attempt, aim
from compressor.pruning.speed.database import Database, store
from compressor.pruning.speed.divergence import Probe
from compressor.pruning.speed.moments import Batch, input_moments
from compressor.pruning.speed.places import Choice, Key, Place, Units, places_of
from compressor.pruning.speed.recovery import second_pass
from compressor.pruning.speed.scores import ORDERS, Evidence
from compressor.pruning.speed.search import Array, Menu, choose, refine

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
    rest = _without(model, places, table)
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
class Goal:
    """One thing asked for: `speedup` times faster than dense, or `latency_ms`."""

    kind: str
    value: float
    table: LatencyTable

    @property
    def asked_ms(self) -> float:
        """The time to reach, by the table."""
        return self.table.dense_ms / self.value if self.kind == "speedup" else self.value

    def reach(self, timing: Timing) -> float:
        """How much of it was reached: 1 is exactly as fast as asked."""
        return timing.speedup / self.value if self.kind == "speedup" else self.value / timing.ms

    def check(self, least_ms: float) -> None:
        """Raise UserError where even a model of hardly anything takes longer."""
        if self.asked_ms >= least_ms:
            return
        dense = self.table.dense_ms
        most = f"{dense / least_ms:.3g}x" if self.kind == "speedup" else f"{least_ms:.3g} ms"
        raise UserError(
            f"target.{self.kind} {self.value:g} cannot be reached here: the dense model takes {dense:.3g} ms, and "
            f"{least_ms:.3g} ms are left when all sub-layers but one have gone. The furthest is {most}"
        )

    def report(self, best: Attempt, attempts: Sequence[Attempt]) -> dict[str, Any]:
        """What was asked, what was measured, and how it was come by.

        Raises:
            GateError: the exported model is certainly slower than asked.
        """
        timing = best.timing
        value = timing.speedup if self.kind == "speedup" else timing.ms
        if best.reach < 1 and timing.ci95[1] / timing.speedup * best.reach < 1:
            raise GateError(
                f"target.{self.kind} {self.value:g} was not reached: the fastest of {len(attempts)} exported models "
                f"was measured at {value:.3g}; ask for that, or for less"
            )
        return {
            "asked": {self.kind: self.value},
            "measured": {**timing._asdict(), "reach": best.reach},
            "predicted_ms": best.predicted_ms,
            "attempts": [[attempt.predicted_ms, attempt.timing.ms, attempt.reach] for attempt in attempts],
        }


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

    def attempts(self, goal: Goal) -> list[Attempt]:
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


def sizes_of(places: Sequence[Place], table: LatencyTable) -> dict[Key, Menu]:
    """The sizes that every place can have, with their times; costs are yet to be found."""
    menus = {}
    for place in places:
        curve = table.attention if place.table.is_attention else table.ffn
        whole = len(place.units)
        levels = sorted({n for n, _ in curve.levels() if 0 < n < whole} | {0, whole})
        units: tuple[Units, ...] = (None, *levels)
        times = np.array([curve.at(n) for n in units])
        menus[place.key] = Menu(place.key, units, times, np.zeros(len(units)))
    return menus


def probed(units: Sequence[Units]) -> list[Units]:
    """The sizes whose cost is measured: none, constant, every second and the largest below whole."""
    between = [n for n in units if n][:-1]
    return [None, 0, *sorted({*between[::2], *between[-1:]})]


def price(units: Sequence[Units], known: dict[Units, float]) -> Array:
    """Costs of all sizes: those measured, in straight lines between, and nothing for the whole."""
    sizes = [n for n in units if n is not None]
    points = {n: cost for n, cost in known.items() if n is not None} | {sizes[-1]: 0.0}
    x = sorted(points)
    return np.array([known[None], *np.interp(sizes, x, [points[n] for n in x])])


def _without(model: PreTrainedModel, places: Sequence[Place], table: LatencyTable) -> float:
    """Milliseconds of the model without any of its places."""
    from compressor.models.architecture import structure_of

    gone = structure_of(model).keeping({place.key: SubLayer(absent=True) for place in places})
    return table.time(gone)


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

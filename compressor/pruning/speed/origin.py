"""The model that candidates are cut from, and everything that is known of it whatever is aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.pruning.context import Context
from compressor.pruning.speed.database import Database, store
from compressor.pruning.speed.divergence import Probe
from compressor.pruning.speed.moments import Batch, input_moments
from compressor.pruning.speed.places import Choice, Key, Units, places_of
from compressor.pruning.speed.recovery import second_pass
from compressor.pruning.speed.scores import ORDERS, Evidence
from compressor.pruning.speed.search import Menu
from compressor.pruning.speed.sizes import price, probed
from compressor.pruning.target import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.pruning.speed import Speed

VERSION = 4
"""Raised when databases of older code mean something else."""
CALIBRATION_TOKENS, PROBE_TOKENS = 50_000, 16_000
"""Tokens of calibration and probe examples at most, whatever their number: what a CPU does in minutes."""


class Origin:
    """A model with the database of its sub-layers, calibration batches, and the probe that losses are taken on."""

    def __init__(self, keys: Speed, model: PreTrainedModel, context: Context, *made_by: Any) -> None:
        """Of this model, which is the stage's or was `made_by` something else."""
        self.keys, self.model, self.context, self.made_by = keys, model, context, made_by
        self.places = places_of(model)

    @cached_property
    def batches(self) -> list[Batch]:
        """Calibration examples, with labels."""
        return self.context.sample("train", self.keys.calibration, CALIBRATION_TOKENS)

    @cached_property
    def database(self) -> Database:
        """All sizes of all places; measured unless it was before."""
        keys = self.keys
        what = (VERSION, keys.score, keys.calibration, keys.probes, *self.made_by)
        database = Database(self.model, self.places, self.context.kept("speed", *what))
        if not database.complete:
            self._measure(database.folder)
        return database

    @cached_property
    def probe(self) -> Probe:
        """What losses are measured on; made while the model is as it was."""
        return Probe(self.model, self.context.sample("selection", self.keys.probes, PROBE_TOKENS))

    @cached_property
    def whole(self) -> float:
        """The metric, more being better, of the stage's model."""
        return self.context.score(self.context.model())

    def priced(self, menus: Mapping[Key, Menu]) -> list[Menu]:
        """The same menus with what every size costs."""
        self.renew()
        costs: dict[Key, dict[Units, float]] = {}
        wanted = {key: probed(menu.units) for key, menu in menus.items()}
        for costs in self.database.costs(self.probe, wanted):
            self.context.tell("measure what every size costs", len(costs) / len(menus))
        return [Menu(key, menu.units, menu.ms, price(menu.units, costs[key])) for key, menu in menus.items()]

    def renew(self) -> None:
        """Give the model back the weights it had."""
        self.model.cpu()  # scoring a candidate may have moved it, away from the probe
        self.database.restore()

    def loss(self, choice: Choice, limit: float = float("inf")) -> float:
        """The true loss of a candidate."""
        return self.database.loss(self.probe, choice, limit)

    def sliced(self, choice: Choice) -> PreTrainedModel:
        """A candidate's shape, with the weights that the model has now."""
        return slice_model(self.model, self.database.structure_of(choice))

    def settle(self, choice: Choice) -> dict[str, float]:
        """Give the model a candidate's weights, those of the second pass where they are better; the loss of both."""
        self.renew()
        dense = deepcopy(self.model) if self.keys.recover else None
        self.database.apply(choice)
        structure = self.database.structure_of(choice)
        with Gates(self.model, structure):
            found = {"divergence": self.probe.loss()}
            if dense is not None:
                self.context.tell("recover", 0.0)
                second_pass(self.model, dense, structure, self.batches)
                found["recovered"] = self.probe.loss()
        if found.get("recovered", 0.0) > found["divergence"]:
            self.database.apply(choice)
        return found

    def score(self, choice: Choice, precision: Precision) -> float:
        """The metric, more being better, of the candidate that the model was given last."""
        return self.context.score(self.sliced(choice), precision)

    def _measure(self, folder: Path) -> None:
        """Fill the database."""
        context, score = self.context, self.keys.score
        context.tell("calibrate", 0.0)
        moments = input_moments(self.model, self.places, self.batches)
        context.tell(f"order units by {score}", 0.0)
        orders = ORDERS[score](Evidence(self.model, self.places, self.batches, moments, context.seed))
        for place in self.places:
            found = moments[place.key]
            store(folder, place, orders[place.key], found.mean, found.covariance)

"""The sizes that sub-layers can have: what they take, and what they cost where not all of them are measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from compressor.models.architecture import structure_of
from compressor.models.structure import SubLayer
from compressor.pruning.context import LatencyTable
from compressor.pruning.speed.places import Key, Place, Units
from compressor.pruning.speed.search import Array, Menu


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


def without(model: PreTrainedModel, places: Sequence[Place], table: LatencyTable) -> float:
    """Milliseconds of the model without any of its places."""
    gone = structure_of(model).keeping({place.key: SubLayer(absent=True) for place in places})
    return table.time(gone)

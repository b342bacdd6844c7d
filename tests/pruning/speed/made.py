"""Calibration batches, evidence for scores and a database of a tiny model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.pruning.speed.database import Database, store
from compressor.pruning.speed.moments import input_moments
from compressor.pruning.speed.places import places_of
from compressor.pruning.speed.scores import Evidence, magnitude
from tests.zoo import padded_batch


def batches(family: str = "bert", count: int = 4) -> list[dict[str, Tensor]]:
    return [padded_batch(family, 6, 20, seed) | {"labels": torch.tensor([0, 1] * 3)} for seed in range(count)]


def evidence(model: Any, family: str = "bert") -> Evidence:
    places = places_of(model)
    return Evidence(model, places, batches(family), input_moments(model, places, batches(family)), 0)


def database(model: Any, folder: Path, family: str = "bert") -> Database:
    """Units go by magnitude."""
    proof = evidence(model, family)
    orders = magnitude(proof)
    for place in proof.places:
        moments = proof.moments[place.key]
        store(folder, place, orders[place.key], moments.mean, moments.covariance)
    return Database(model, proof.places, folder)

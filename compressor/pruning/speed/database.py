"""Every sub-layer at every size: in which order units go, the weights that make up for them, and what a size costs.

Stored are orders, moments and costs; weights are solved for when a size is asked for. So a database is small, and one
serves every target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from compressor.files import appearing, read_json, write_json
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.structure import Structure
from compressor.pruning.speed.divergence import Probe
from compressor.pruning.speed.obs import LeastSquares
from compressor.pruning.speed.places import Choice, Key, Place, Units

MEMORY = 2**30
"""Bytes that factorisations may take, and as many that solved weights may: as much as fits is kept of either."""
DOUBLE = 8
"""Bytes of a float64: a factorisation keeps three square matrices of them."""


def slug(key: Key) -> str:
    """A sub-layer as text: `encoder-3-ffn`."""
    return "-".join(map(str, key))


def store(folder: Path, place: Place, order: Sequence[int], mean: Tensor, covariance: Tensor) -> None:
    """Write what solving a place's sizes takes."""
    tensors = {"order": torch.tensor(order), "mean": mean, "covariance": covariance.float()}
    with appearing(folder / f"{slug(place.key)}.safetensors") as temporary:
        save_file(tensors, temporary)


class Database:
    """The sizes of all `places` of a dense `model`, kept in `folder`.

    While the model is changed (`holding`), the weights it had are remembered here.
    """

    def __init__(self, model: PreTrainedModel, places: Sequence[Place], folder: Path) -> None:
        self.model = model
        self.places = {place.key: place for place in places}
        self.folder = folder
        self.structure = structure_of(model)
        self._dense = {
            key: (place.projection.weight.detach().clone(), place.projection.bias.detach().clone())
            for key, place in self.places.items()
        }
        self._order = lru_cache(None)(self._read_order)
        widest = max((place.projection.weight for place in places), key=Tensor.numel)
        out, width = widest.shape
        self._solver = lru_cache(max(2, MEMORY // (3 * DOUBLE * width**2)))(self._open)
        solved = lru_cache(max(2, MEMORY // (DOUBLE // 2 * out * width)))
        self._solved = solved(lambda key, units: self._solver(key).solve(units))

    @property
    def complete(self) -> bool:
        """Whether every place is there."""
        return all(self._path(key).exists() for key in self.places)

    def structure_of(self, choice: Choice) -> Structure:
        """What of the model a candidate keeps."""
        kept = {key: place.keeping(self._kept(key, choice[key])) for key, place in self.places.items()}
        return self.structure.keeping(kept)

    def apply(self, choice: Choice) -> None:
        """Give the model the weights of a candidate; those of absent and whole sub-layers are as they were."""
        for key, units in choice.items():
            self._write(key, self._weights(key, units))

    def restore(self, keys: Sequence[Key] | None = None) -> None:
        """Give the model back the weights it had."""
        for key in keys or self._dense:
            self._write(key, self._dense[key])

    @contextmanager
    def holding(self, choice: Choice) -> Iterator[None]:
        """The model computes what the candidate would; its places alone may be named."""
        whole: dict[Key, Units] = {key: len(place.units) for key, place in self.places.items()}
        self.apply(choice)
        try:
            with Gates(self.model, self.structure_of(whole | dict(choice))):
                yield
        finally:
            self.restore(list(choice))

    def loss(self, probe: Probe, choice: Choice, limit: float = float("inf")) -> float:
        """How far a candidate's answers are from the dense model's."""
        places = self.places
        changed = [places[key].at for key, units in choice.items() if units != len(places[key].units)]
        with self.holding(choice):
            return probe.loss(min(changed, default=0), limit)

    def costs(self, probe: Probe, sizes: dict[Key, list[Units]]) -> Iterator[dict[Key, dict[Units, float]]]:
        """The loss of every size of every sub-layer, all others being whole; stored as they are measured.

        Yields after every sub-layer what is known so far.
        """
        path = self.folder / "costs.json"
        stored: dict[str, dict[str, float]] = read_json(path) if path.exists() else {}
        found: dict[Key, dict[Units, float]] = {}
        for key, wanted in sizes.items():
            known = stored.setdefault(slug(key), {})
            for units in wanted:
                if str(units) not in known:
                    known[str(units)] = self.loss(probe, {key: units})
            write_json(path, stored)
            found[key] = {units: known[str(units)] for units in wanted}
            yield found

    def _kept(self, key: Key, units: Units) -> list[int] | None:
        """The places of the units that stay; `None`: the sub-layer is absent."""
        if units is None or units == 0:
            return None if units is None else []
        return sorted(self._order(key)[-units:])

    def _weights(self, key: Key, units: Units) -> tuple[Tensor, Tensor]:
        if units is None or units == len(self.places[key].units):
            return self._dense[key]
        return self._solved(key, units)

    @torch.no_grad()
    def _write(self, key: Key, weights: tuple[Tensor, Tensor]) -> None:
        projection = self.places[key].projection
        projection.weight.copy_(weights[0])
        projection.bias.copy_(weights[1])

    def _path(self, key: Key) -> Path:
        return self.folder / f"{slug(key)}.safetensors"

    def _read_order(self, key: Key) -> list[int]:
        with safe_open(self._path(key), "pt") as file:
            order: list[int] = file.get_tensor("order").tolist()
        return order

    def _open(self, key: Key) -> LeastSquares:
        stored = load_file(self._path(key))
        weight, bias = (values.cpu() for values in self._dense[key])
        size = self.places[key].size
        return LeastSquares(weight, bias, stored["mean"], stored["covariance"], self._order(key), size)

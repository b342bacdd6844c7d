"""The weights of a model folder: safetensors alone, in one file or several."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from compressor.errors import UserError
from compressor.models.refusals import fitting

WEIGHTS = "model.safetensors"


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder, sharded or not.

    Raises:
        UserError: none in safetensors format, or a damaged file.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in _weight_files(folder):
        with _readable(file):
            tensors.update(load_file(file))
    return tensors


def check_weights(folder: Path) -> None:
    """That a model folder's weights are whole safetensors files, by their headers alone.

    Raises:
        UserError: none in safetensors format, or a damaged file.
    """
    for file in _weight_files(folder):
        with _readable(file), safe_open(file, "pt"):
            pass


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is no readable safetensors file ({error}); save the model again") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        with fitting(f"{index} is no index of weights"):
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / Path(name).name for name in sorted(names)]
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    if pickles:
        raise UserError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when opened; convert them with "
            "`model.save_pretrained(folder, safe_serialization=True)` where you trust them"
        )
    raise UserError(f"{folder} has no {WEIGHTS}")

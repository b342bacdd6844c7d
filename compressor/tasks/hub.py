"""Data sets of the Hugging Face hub, and folders of data files, through `datasets`."""

import logging
import os
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pandas as pd
import pyarrow
from huggingface_hub.file_download import repo_folder_name

from compressor.errors import UserError
from compressor.files import sha256
from compressor.schema import expand, is_path, refuse_namesake
from compressor.tasks.schema import DatasetHub
from compressor.tasks.tables import Table

log = logging.getLogger(__name__)

# The first one a data set has is scored; those without a validation split come with a test one.
VALIDATION_SPLITS = ("validation", "dev", "validation_matched", "test")


def read(keys: DatasetHub) -> dict[str, Table]:
    """The tables `train` and `validation`; from the local cache where there is no network.

    Code that comes with a data set is never run. Raises UserError for whatever keeps it from being read.
    """
    path = _folder(keys.hub) or keys.hub
    refuse_namesake(keys.hub, "data set")
    try:
        found = datasets.load_dataset(str(path), name=keys.config, revision=keys.revision)
    except Exception as error:  # what `datasets` raises has no common base
        raise UserError(f"task.dataset: cannot load '{keys.hub}': {_reason(error)}") from error
    validation = next((split for split in VALIDATION_SPLITS if split in found), None)
    if "train" not in found or validation is None:
        raise UserError(
            f"task.dataset: '{keys.hub}' has the splits {', '.join(found)}; needed are train and one of "
            f"{', '.join(VALIDATION_SPLITS)}"
        )
    if validation != "validation":
        log.info("%s has no validation split: %s is scored", keys.hub, validation)
    splits = {"train": "train", "validation": validation}
    return {name: _table(found[split], f"{keys.hub} {split}") for name, split in splits.items()}


def fingerprint(keys: DatasetHub) -> dict[str, Any]:
    """Id, config and commit (None where the cache does not hold it); of a folder the hash of its content."""
    folder = _folder(keys.hub)
    if folder:
        return {"folder": sha256(folder), "config": keys.config}
    return {"hub": keys.hub, "config": keys.config, "revision": _cached_commit(keys)}


def from_arrow(table: pyarrow.Table, source: str) -> Table:
    """A table out of Arrow data; class names that `datasets` stored with it are kept."""
    return _table(datasets.Dataset(datasets.table.InMemoryTable(table)), source)


def _table(dataset: datasets.Dataset, source: str) -> Table:
    if not len(dataset):
        raise UserError(f"{source} holds no rows")
    frame = dataset.to_pandas()
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="row")
    inner = {name: getattr(feature, "feature", feature) for name, feature in dataset.features.items()}
    names = {name: kind.names for name, kind in inner.items() if isinstance(kind, datasets.ClassLabel)}
    return Table(frame, source, names)


def _folder(name: str) -> Path | None:
    if not is_path(name):
        return None
    path = expand(name)
    if not path.is_dir():
        raise UserError(f"task.dataset: there is no folder {name}")
    return path


def _cached_commit(keys: DatasetHub) -> str | None:
    revision = keys.revision or "main"
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    folder = cache / repo_folder_name(repo_id=keys.hub, repo_type="dataset")
    reference = folder / "refs" / revision
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    return revision if (folder / "snapshots" / revision).is_dir() else None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:3]) or type(error).__name__
    if "Config name is missing" in reason or "BuilderConfig" in reason:
        return f"{reason} Set task.dataset: {{hub: ..., config: ...}}"
    if isinstance(error, OSError) and os.environ.get("HF_HUB_OFFLINE", "0") in ("0", ""):
        return f"{reason} (without a network give local files: task.dataset: {{train: ..., validation: ...}})"
    return reason

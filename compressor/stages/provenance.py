"""Where a model and its data come from: names, revisions, hashes, and the licences that their cards state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.files import digest
from compressor.models.source import HubModel, ModelSource, NewModel, describe, folder_of, model_content
from compressor.report.card import source_name
from compressor.schema import expand, is_path, json_of
from compressor.stages.base import Data
from compressor.tasks.schema import DatasetHub

CARD = "README.md"


def sources_of(model: ModelSource, data: Data) -> dict[str, dict[str, Any]]:
    """Name, identity and licence of a run's model and data, fit to publish; `None` stands for unknown.

    A hub's source is identified by its commit, files by their sha256, and what is made here by a digest.
    """
    return {
        "model": {
            "name": source_name(describe(model)),
            **_model_identity(model),
            "licence": None if isinstance(model, NewModel) else _licence_of_model(model),
        },
        "data": {
            "name": source_name(json_of(data.keys)["dataset"]),
            **{key: value for key, value in data.kind.fingerprint(data.keys).items() if key != "hub"},
            "licence": _licence_of_data(data.keys.dataset),
        },
    }


def _model_identity(model: ModelSource) -> dict[str, Any]:
    content = model_content(model)
    if isinstance(model, NewModel):
        return {"sha256": digest(content)}
    return {"files": content} if isinstance(content, dict) else {"revision": content[1]}


def _licence_of_model(model: str | HubModel) -> str | None:
    folder = folder_of(model)
    name, revision = (model.id, model.revision) if isinstance(model, HubModel) else (model, None)
    return stated_licence(folder / CARD if folder else _hub_card(name, revision, "model"))


def _licence_of_data(dataset: Any) -> str | None:
    """Of a hub data set or a folder of data; single files and data built here state none."""
    keys = DatasetHub(hub=dataset) if isinstance(dataset, str) else dataset
    if not isinstance(keys, DatasetHub):
        return None
    local = is_path(keys.hub)
    return stated_licence(expand(keys.hub) / CARD if local else _hub_card(keys.hub, keys.revision, "dataset"))


def stated_licence(card: Path | None) -> str | None:
    """What the YAML header of a model's or data set's card says under `license`; `None` where it says nothing.

    The hub's `other` is followed by the licence's own name and link, where they are given.
    """
    import yaml
    from huggingface_hub import metadata_load

    try:
        header = metadata_load(card) if card else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    header = header if isinstance(header, dict) else {}
    stated = header.get("license")
    names = [str(name) for name in (stated if isinstance(stated, list) else [stated]) if name]
    more = [str(header[key]) for key in ("license_name", "license_link") if header.get(key)]
    detail = f" ({', '.join(more)})" if names == ["other"] and more else ""
    return ", ".join(names) + detail or None


def _hub_card(name: str, revision: str | None, kind: str) -> Path | None:
    """The card of a repository, fetched or from the local cache; `None` where neither has it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, CARD, repo_type=kind, revision=revision))
    except (OSError, ValueError):  # no card, no network: a licence that stays unknown stops no run
        return None

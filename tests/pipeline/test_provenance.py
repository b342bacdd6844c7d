"""Licences are taken from cards, identities from content, and what nobody states stays unknown."""

import hashlib
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers

from compressor.files import sha256
from compressor.models.source import HubModel, NewModel
from compressor.stages.base import Data
from compressor.stages.provenance import sources_of, stated_licence
from compressor.tasks.schema import TaskKeys

HEADERS = {
    "license: mit": "mit",
    "license: [apache-2.0, cc-by-4.0]": "apache-2.0, cc-by-4.0",
    "license:\n- mit\nlanguage: en": "mit",
    "license: other\nlicense_name: mine-1.0\nlicense_link: LICENSE": "other (mine-1.0, LICENSE)",
    "license: other": "other",
    "license: mit\nlicense_name: not asked": "mit",
    "license:": None,
    "license: []": None,
    "language: en": None,
    "license: {a: [": None,
    "- license": None,
}


def card(folder: Path, header: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{header}\n---\n# A card\n", encoding="utf-8")
    return folder / "README.md"


@pytest.mark.parametrize(("header", "licence"), HEADERS.items(), ids=range(len(HEADERS)))
def test_the_licence_that_a_card_states(tmp_path: Path, header: str, licence: str | None) -> None:
    assert stated_licence(card(tmp_path, header)) == licence


def test_no_card_and_a_card_without_header_state_none(tmp_path: Path) -> None:
    assert stated_licence(None) is None
    assert stated_licence(tmp_path / "README.md") is None
    (tmp_path / "README.md").write_text("license: mit\n", encoding="utf-8")
    assert stated_licence(tmp_path / "README.md") is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert stated_licence(tmp_path / "README.md") is None


def data(dataset: Any) -> Data:
    return Data(TaskKeys(type="text-classification", dataset=dataset), seed=1)


def test_local_folders_state_their_licences(tmp_path: Path) -> None:
    card(tmp_path / "model", "license: mit")
    card(tmp_path / "data", "license: cc-by-4.0")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    found = sources_of(str(tmp_path / "model"), data({"hub": str(tmp_path / "data")}))
    assert found["model"]["name"] == ".../model"
    assert found["model"]["licence"] == "mit"
    assert found["model"]["files"]["model.safetensors"] == sha256(tmp_path / "model" / "model.safetensors")
    assert found["data"]["folder"] == sha256(tmp_path / "data")
    assert (found["data"]["name"], found["data"]["licence"]) == (".../data", "cc-by-4.0")


def test_what_is_made_here_has_no_licence_but_a_digest() -> None:
    model = {"config": {"model_type": "bert"}}
    found = sources_of(NewModel(**model), data({"builtin": "docstrings"}))
    assert found["model"]["licence"] is None
    assert len(found["model"]["sha256"]) == 64
    assert found["data"]["name"] == "docstrings"
    assert len(found["data"]["rows"]) == 64
    other = NewModel(config={"model_type": "bert", "hidden_size": 64})
    assert sources_of(other, data({"builtin": "docstrings"}))["model"]["sha256"] != found["model"]["sha256"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the hub's files are kept, empty; without a network nothing comes into it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path))
    return tmp_path


def snapshot(cache: Path, repository: str, branch: str, header: str) -> str:
    """A repository as it lies there once it was downloaded; returns its commit."""
    commit = hashlib.sha1(header.encode()).hexdigest()
    folder = cache / repository / "snapshots" / commit
    folder.mkdir(parents=True)
    card(folder, header)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (cache / repository / "refs").mkdir(exist_ok=True)
    (cache / repository / "refs" / branch).write_text(commit, encoding="utf-8")
    return commit


def test_what_was_downloaded_is_known_by_its_commit_and_states_its_licence(cache: Path) -> None:
    commit = snapshot(cache, "models--a--b", "v1", "license: mit")
    snapshot(cache, "models--a--b", "main", "license: gpl-3.0")
    rows = snapshot(cache, "datasets--c--d", "main", "license: [cc-by-4.0]")
    found = sources_of(HubModel(id="a/b", revision="v1"), data({"hub": "c/d", "config": "en"}))
    assert found["model"] == {"name": "a/b", "revision": commit, "licence": "mit"}
    assert found["data"] == {"name": "c/d", "config": "en", "revision": rows, "licence": "cc-by-4.0"}


def test_without_a_network_licences_stay_unknown(cache: Path) -> None:
    found = sources_of("a/b", data("c/d"))
    assert found["model"] == {"name": "a/b", "revision": None, "licence": None}
    assert found["data"]["licence"] is None

"""An artifact is the same for the same run, and nothing about it changes unnoticed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.cli import main
from compressor.errors import GateError, UserError
from compressor.signing import SIGNATURE, check_signature, sign
from compressor.stages.package import verify
from tests.pipeline.tiny import write_recipe

TIMED = {"README.md", "serve/config.pbtxt"}
"""Files that hold timings, or the date."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same recipe run twice, each time from nothing."""
    recipe = write_recipe(tmp_path_factory.mktemp("data"), rows=160)
    folders = [tmp_path_factory.mktemp(name) / "run" for name in ("one", "another")]
    for folder in folders:
        assert main(["run", str(recipe), "--output", str(folder)]) == 0
    return folders


@pytest.fixture
def artifact(runs: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[0] / "artifact", tmp_path / "artifact"))


def test_the_same_run_makes_the_same_bytes(runs: list[Path]) -> None:
    variants = sorted(path.name for path in (runs[0] / "artifacts").iterdir())
    assert len(variants) == 4
    for variant in variants:
        one, other = (run / "artifacts" / variant for run in runs)
        for name in files_of(one) - TIMED - {"manifest.json"}:
            assert (one / name).read_bytes() == (other / name).read_bytes(), f"{variant}: {name}"
        assert untimed(one) == untimed(other)


def untimed(artifact: Path) -> dict[str, Any]:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    for key in ("latency", "speedup", "sha256"):
        manifest.pop(key)
    manifest["environment"].pop("load")
    manifest["files"] = {name: about for name, about in manifest["files"].items() if name not in TIMED}
    return dict(manifest)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_changed_byte_anywhere_is_noticed(artifact: Path) -> None:
    verify(artifact)
    for name in sorted(files_of(artifact)):
        path = artifact / name
        whole = path.read_bytes()
        for changed in mistakes(whole):
            path.unlink()  # it may be a hard link
            path.write_bytes(changed)
            with pytest.raises(GateError):
                verify(artifact)
        path.write_bytes(whole)
    verify(artifact)


def mistakes(whole: bytes) -> Iterator[bytes]:
    """A flipped bit at several places, every end of line changed, a byte more and a byte less."""
    step = max(1, len(whole) // 7)
    for at in {*range(0, len(whole), step), len(whole) - 1}:
        yield whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    if b"\n" in whole:
        yield whole.replace(b"\n", b"\r\n")
    yield whole + b"\n"
    yield whole[:-1]


def test_a_file_more_or_less_is_noticed(artifact: Path) -> None:
    for name in sorted(files_of(artifact) - {"manifest.json"}):
        moved = (artifact / name).rename(artifact.parent / "moved")
        with pytest.raises(GateError, match=f"{name} is missing"):
            verify(artifact)
        moved.rename(artifact / name)
    for name in (".hidden", "serve/more.py", "model.onnx.data"):
        (artifact / name).touch()
        with pytest.raises(GateError, match="files the manifest does not name"):
            verify(artifact)
        (artifact / name).unlink()
    for target in ("nowhere", artifact / "serve"):
        (artifact / "link").symlink_to(target)
        with pytest.raises(GateError, match="does not name: link"):
            verify(artifact)
        (artifact / "link").unlink()
    verify(artifact)


Keys = dict[str, Path]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Two pairs of keys, as openssl makes them."""
    pytest.importorskip("model_signing", reason="model-signing is not installed (compressor[sign])")
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make keys")
    made = {}
    for owner in ("ada", "eve"):
        private, public = (tmp_path / f"{owner}.{kind}" for kind in ("key", "pem"))
        command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
        subprocess.run(command, check=True, capture_output=True)
        command = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
        subprocess.run(command, check=True, capture_output=True)
        made |= {f"{owner} private": private, f"{owner} public": public}
    return made


def test_a_signed_artifact_verifies_where_it_is_moved_to(
    artifact: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(artifact), "--sign", str(keys["ada private"])]) == 0
    moved = artifact.rename(artifact.with_name("elsewhere"))
    assert main(["verify", str(moved)]) == 0
    assert f"{SIGNATURE} was not checked" in capsys.readouterr().out
    assert main(["verify", str(moved), "--public-key", str(keys["ada public"])]) == 0
    assert "signature checked" in capsys.readouterr().out


def test_a_signature_of_another_or_of_other_files_does_not_hold(artifact: Path, keys: Keys) -> None:
    with pytest.raises(GateError, match="is not signed"):
        verify(artifact, keys["ada public"])
    sign(artifact, keys["eve private"])
    with pytest.raises(GateError, match="does not hold"):
        verify(artifact, keys["ada public"])
    signature = sign(artifact, keys["ada private"])
    check_signature(artifact, keys["ada public"])
    (artifact / "config.json").unlink()
    (artifact / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(GateError, match=r"does not hold: .*config\.json"):
        check_signature(artifact, keys["ada public"])
    signature.write_text("{}", encoding="utf-8")
    with pytest.raises(GateError, match="does not hold"):
        check_signature(artifact, keys["ada public"])


def test_keys_that_are_none(artifact: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for key in (tmp_path / "gone", tmp_path / "empty", keys["ada public"]):
        with pytest.raises(UserError, match="is no private key"):
            sign(artifact, key)
    for key in (tmp_path / "gone", tmp_path / "empty", keys["ada private"]):
        with pytest.raises(UserError, match="is no public key"):
            check_signature(artifact, key)


def test_without_the_extra_it_says_what_to_install(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("model_signing.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UserError, match=r"pip install .compressor\[sign\]"):
        sign(artifact, tmp_path / "key")

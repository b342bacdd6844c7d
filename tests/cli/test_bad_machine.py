"""What this machine or the output folder cannot give, and artifacts that are not what was released."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor.cli import main
from compressor.files import read_json, sha256, write_json
from compressor.stages.base import LOCK
from compressor.stages.package import sealed
from tests.cli.conftest import LABELS, TEXTS
from tests.cli.refusals import Call, everything_in, refused

RECIPE = """\
name: tiny
model: {model}
task:
  type: text-classification
  dataset: {{train: {folder}/data.csv, validation: {folder}/data.csv}}
  labels: [bad, good]
  max_length: 16
stages:
  - finetune: {{id: teacher, epochs: 1, batch_size: 8}}
  - export: {{}}
benchmark: {{threads: [1], sequence_lengths: [16], seconds: 0.02, processes: 3}}
"""


def write_recipe(folder: Path, model: Path) -> Path:
    rows = [f"{text},{LABELS[n % 2]}" for n, text in enumerate(TEXTS * 4)]
    (folder / "data.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, folder=folder), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, tiny)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The folder of an earlier run, beside its recipe."""
    folder = tmp_path_factory.mktemp("earlier")
    assert main(["run", str(write_recipe(folder, tiny)), "--output", str(folder / "run")]) == 0
    return folder / "run"


# The machine


def test_a_gpu_on_a_machine_without(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    arguments = ["run", recipe, "--set", "benchmark.providers=[cuda]"]
    refused(
        call,
        recipe.parent,
        arguments,
        "provider 'cuda' is not in the installed onnxruntime",
        "compressor[gpu]",
    )


def test_more_threads_than_cores(call: Call, recipe: Path) -> None:
    arguments = ["run", recipe, "--set", "benchmark.threads=[1, 4096]"]
    refused(call, recipe.parent, arguments, "benchmark.threads asks for 4096, this machine has", "lower it")


def test_batches_that_cannot_be_shared_out(call: Call, recipe: Path) -> None:
    words = "stages.teacher.batch_size 8 is no multiple of --nproc"
    refused(call, recipe.parent, ["run", recipe, "--nproc", 3], words)
    refused(call, recipe.parent, ["run", recipe, "--set", "stages.teacher.gradient_accumulation=3"], words)


def test_from_a_stage_that_is_not_there(call: Call, recipe: Path) -> None:
    words = "--from techer: no such stage; did you mean 'teacher'? (there are: model, teacher, export)"
    refused(call, recipe.parent, ["run", recipe, "--from", "techer"], words)


@pytest.mark.parametrize("last", [False, True])
def test_debug_shows_the_traceback(
    call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    monkeypatch.setenv("COMPRESSOR_DEBUG", "")  # so that it is put back afterwards
    words = ["run", recipe, "--from", "techer"]
    said = call(*words, "--debug") if last else call("--debug", *words)
    assert said.code == 2
    assert "Traceback" in said.err
    assert said.err.splitlines()[-1].startswith("error: --from techer")


# The output folder


def test_an_output_that_is_no_folder(call: Call, recipe: Path) -> None:
    file = recipe.with_name("data.csv")
    for output in (file, file / "run"):
        refused(call, recipe.parent, ["run", recipe, "--output", output], f"{file} is a file; name a folder")


def test_an_output_with_files_that_are_not_of_a_run(call: Call, recipe: Path, tiny: Path) -> None:
    words = "holds files that are not of a run"
    for output in (recipe.parent, ".", tiny):
        refused(
            call, recipe.parent, ["run", recipe, "--output", output], words, "name a new or an empty folder"
        )
    refused(call, tiny, ["run", recipe, "--output", tiny], words)


def test_an_output_in_use(call: Call, recipe: Path, earlier: Path) -> None:
    with (earlier / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        words = f"another run is using {earlier}; wait for it, or give another --output"
        refused(call, earlier, ["run", recipe, "--output", earlier], words, code=1)


def test_an_output_of_an_earlier_run_stays_as_it_was(call: Call, recipe: Path, earlier: Path) -> None:
    arguments = ["run", recipe, "--output", earlier, "--fresh", "--set"]
    refused(call, earlier, [*arguments, "seed=x"], "--set seed=x: seed")
    refused(call, earlier, [*arguments, "model=./gone"], "no model folder at gone")
    refused(call, earlier, [*arguments, "task.dataset.train=gone.csv"], "no file gone.csv")


# Disks


def test_too_little_room_is_seen_before_the_first_stage(
    call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.estimate.free_disk", lambda folder: 1_000_000)
    words = ("no space left: the run needs about", "1 MB are free; make room or give another --output")
    refused(call, recipe.parent, ["run", recipe], *words, code=1)


def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of that size, where this user may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Too small for the model."""
    yield from small_disk(tmp_path / "disk", 120)


@pytest.fixture
def larger_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for the model, not for a checkpoint of its training."""
    yield from small_disk(tmp_path / "disk", 500)


def fills_up(call: Call, recipe: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """A run that ends on a full disk: exit 1, one message, no stage half-written. The stages it finished."""
    monkeypatch.setattr("compressor.estimate.free_disk", lambda folder: 10**12)
    said = call("run", recipe, "--output", disk / "run")
    assert said.code == 1
    last = said.err.splitlines()[-1]
    assert last == f"error: no space left in {disk / 'run'}; make room and run the same command again"
    assert "Traceback" not in said.err
    assert not list(disk.glob("**/.*.tmp"))
    return {path.parent.name for path in disk.glob("run/*/stage.json")}


def test_a_disk_too_small_for_the_model(
    call: Call, recipe: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fills_up(call, recipe, tiny_disk, monkeypatch) == set()
    assert not (tiny_disk / "run" / "model").exists()


def test_a_disk_that_fills_up_while_training(
    call: Call, recipe: Path, larger_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fills_up(call, recipe, larger_disk, monkeypatch) == {"model"}
    assert not (larger_disk / "run" / "teacher").exists()
    subprocess.run(["mount", "-o", "remount,size=50m", str(larger_disk)], check=True)
    said = call("run", recipe, "--output", larger_disk / "run")
    assert said.code == 0, said.err
    assert "model: done before, kept" in said.err


def test_a_limit_on_the_size_of_files(recipe: Path, tmp_path: Path) -> None:
    command = f"ulimit -f 250; exec {sys.executable} -m compressor run recipe.yaml --output run"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert said.returncode == 1, said.stderr
    assert said.stderr.splitlines()[-1].startswith("error: no space left in run; make room")
    assert "Traceback" not in said.stderr
    assert (tmp_path / "run" / "model" / "stage.json").is_file()
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.onnx"), "no space left where a.onnx is written"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "no space left where the run is written"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "a.onnx"), "Permission denied: a.onnx"),
        (ZeroDivisionError("first line\nsecond line"), "ZeroDivisionError: first line (--debug shows where)"),
    ],
)
def test_what_else_goes_wrong_is_one_line_too(
    call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("compressor.pipeline.check_everything", fail)
    refused(call, recipe.parent, ["run", recipe], words, code=1)


def test_ctrl_c(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.pipeline.check_everything", interrupt)
    refused(call, recipe.parent, ["run", recipe], "interrupted; the same command goes on", code=130)


# Artifacts


@pytest.fixture
def artifact(earlier: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(earlier / "artifact", tmp_path / "artifact"))


def released_again(artifact: Path, name: str) -> None:
    """Write a changed file's hash into the manifest, so that only the sample can tell."""
    files = read_json(artifact / "manifest.json")["files"]
    files[name]["sha256"] = sha256(artifact / name)
    manifest(files=files)(artifact)


def flip(artifact: Path) -> None:
    content = bytearray((artifact / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / "model.onnx").write_bytes(content)


def other_weights(artifact: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "classifier.bias":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    onnx.save(model, artifact / "model.onnx")
    released_again(artifact, "model.onnx")


def no_graph(artifact: Path) -> None:
    (artifact / "model.onnx").write_text("no graph", encoding="utf-8")
    released_again(artifact, "model.onnx")


def no_sample(artifact: Path) -> None:
    (artifact / "sample.npz").write_bytes(b"no sample")
    released_again(artifact, "sample.npz")


def pickled_sample(artifact: Path) -> None:
    np.savez(artifact / "sample.npz", **{"input.input_ids": np.array([{"a": 1}], dtype=object)})
    released_again(artifact, "sample.npz")


def manifest(**changes: Any) -> Callable[[Path], None]:
    """Changes it and the hash of its own content, as somebody would who knows of that."""

    def change(artifact: Path) -> None:
        path = artifact / "manifest.json"
        changed = {key: value for key, value in read_json(path).items() if key != "sha256"} | changes
        write_json(path, sealed(changed))

    return change


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda artifact: (artifact / name).write_text(content, encoding="utf-8") and None


def score(artifact: Path) -> None:
    path = artifact / "manifest.json"
    write_json(path, read_json(path) | {"metrics": {"accuracy": 1.0}})


TAMPERED = {
    "a flipped bit": (flip, "model.onnx is not the file that was released: its sha256 differs"),
    "another config": (text("config.json", "{}"), "config.json is not the file that was released"),
    "another card": (text("README.md", "great"), "README.md is not the file that was released"),
    "a lost file": (lambda a: (a / "config.json").unlink(), "config.json is missing from"),
    "a lost graph": (lambda a: (a / "model.onnx").unlink(), "model.onnx is missing from"),
    "a file more": (text("run.sh", "x"), "holds files the manifest does not name: run.sh"),
    "a folder more": (lambda a: shutil.copytree(a, a / "b"), "holds files the manifest does not name: b/"),
    "other weights": (other_weights, "the sample's outputs differ by"),
    "no graph": (no_graph, "the sample stored in"),
    "no sample": (no_sample, "cannot be replayed"),
    "a pickle in the sample": (pickled_sample, "cannot be replayed"),
    "a manifest that is no JSON": (text("manifest.json", "{"), "manifest.json is damaged"),
    "a manifest that is a list": (text("manifest.json", "[]"), "manifest.json is damaged"),
    "a manifest without hashes": (manifest(files={"model.onnx": {}}), "manifest.json is damaged"),
    "a manifest without files": (manifest(files={}), "does not name model.onnx"),
    "a manifest without tolerance": (manifest(sample={}), "manifest.json is damaged"),
    "a tolerance that is no number": (manifest(sample={"tolerance": "nan"}), "the sample's outputs differ"),
    "another score": (score, "manifest.json is not the one that was released"),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "words"), TAMPERED.values(), ids=list(TAMPERED))
def test_verify_tells_what_was_tampered_with(
    call: Call, artifact: Path, tamper: Callable[[Path], object], words: str
) -> None:
    assert call("verify", artifact).code == 0
    tamper(artifact)
    refused(call, artifact, ["verify", artifact], words, code=3)


def test_verify_of_what_is_no_artifact(call: Call, artifact: Path, tmp_path: Path) -> None:
    (artifact / "manifest.json").unlink()
    for path in (artifact, tmp_path / "gone", artifact / "model.onnx"):
        refused(call, tmp_path, ["verify", path], "is no artifact: it has no manifest.json")


def test_a_missed_gate_is_no_release(call: Call, earlier: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(earlier, tmp_path / "run"))
    recipe = earlier.with_name("recipe.yaml")
    before = everything_in(output / "teacher")
    said = call("run", recipe, "--output", output, "--set", "gates.min_metric=1.1")
    assert said.code == 3, said.err
    assert said.err.splitlines()[-1] == "error: gates not passed: min_metric"
    assert not (output / "artifact").exists()
    assert (output / "rejected" / "dense_fp32" / "manifest.json").is_file()
    assert everything_in(output / "teacher") == before

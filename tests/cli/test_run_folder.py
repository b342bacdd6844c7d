"""What lies in a run's folder belongs together, is the run's own, and says how it came about."""

import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor import __version__
from compressor.cli import main
from compressor.files import sha256
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.structure import SubLayer
from compressor.stages.base import LOCK
from compressor.tasks import text_classification
from tests.cli.conftest import LABELS
from tests.cli.refusals import Call, everything_in, refused
from tests.cli.test_bad_machine import write_recipe

OUTCOME = {"results.json", "report.html", "artifact", "artifacts"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The folder of a finished run, beside its recipe."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["run", str(write_recipe(folder, tiny)), "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def again(call: Call, finished: Path, output: Path, *options: object) -> int:
    return call("run", finished.with_name("recipe.yaml"), "--output", output, *options).code


# Whose folder it is


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".lock", ""),
        (".lock", "of another program"),
        ("results.json", "{}"),
        ("results.json", '{"stages": 1}'),
    ],
)
def test_a_folder_of_another_program(
    call: Call, finished: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    for folder in ("model", "artifact"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "precious").write_text("mine", encoding="utf-8")
    arguments = ["run", finished.with_name("recipe.yaml"), "--output", tmp_path]
    refused(call, tmp_path, arguments, "holds files that are not of a run", "name a new or an empty folder")


def test_a_folder_of_a_run_that_was_killed_early(call: Call, finished: Path, output: Path) -> None:
    for path in output.iterdir():
        if path.name not in (LOCK, "run.log"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert again(call, finished, output) == 0
    assert {path.name for path in output.iterdir()} >= OUTCOME


# What belongs together


def test_a_run_that_fails_midway_leaves_no_earlier_outcome(call: Call, finished: Path, output: Path) -> None:
    recipe = finished.with_name("recipe.yaml")
    said = call("run", recipe, "--output", output, "--set", "stages.teacher.learning_rate=1.0e+30")
    assert said.code == 1
    last = said.err.splitlines()[-1]
    assert last.startswith("error: teacher: the loss is no finite number at step ")
    assert "lower learning_rate (now 1e+30)" in last
    left = {path.name for path in output.iterdir()}
    assert not left & {*OUTCOME, "rejected"}
    assert {"model", "teacher", "export"} <= left


def test_a_run_refused_before_it_begins_keeps_the_earlier_outcome(
    call: Call, finished: Path, output: Path
) -> None:
    before = everything_in(output)
    assert again(call, finished, output, "--set", "model=./gone") == 2
    assert everything_in(output) == before


def test_another_file_is_scored_anew(call: Call, finished: Path, output: Path) -> None:
    """As where a stage's folder was removed and its second making differs in the last digits."""
    measured = output / "measurements" / "dense_fp32"
    before = pd.read_parquet(measured / "predictions.parquet")["prediction"]
    wanted = "bad" if before[0] == "good" else "good"
    weights = output / "teacher" / "model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.bias"] = torch.tensor([100.0 if label == wanted else -100.0 for label in LABELS])
    save_file(tensors, weights, {"format": "pt"})
    shutil.rmtree(output / "export")
    assert again(call, finished, output) == 0
    assert set(pd.read_parquet(measured / "predictions.parquet")["prediction"]) == {wanted}
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    metrics = json.loads((measured / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    assert results["variants"]["dense_fp32"]["metrics"] == metrics
    assert metrics["accuracy"] == 0.5


def test_raw_timings_lie_beside_the_predictions(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    for name, variant in results["variants"].items():
        raw = [finished / row["raw"] for row in variant["latency"]]
        assert len(raw) == 2
        assert all(path.is_file() and path.parent == finished / "measurements" / name for path in raw)


# What it says


def test_the_log_tells_what_happened(call: Call, finished: Path, output: Path) -> None:
    told = (finished / "run.log").read_text(encoding="utf-8")
    for words in (
        "teacher begins",
        "train, step 1 of 3: loss ",
        " s, selection metric ",
        "dense_fp32: accuracy ",
        "Dense model only, accuracy ",
        "package dense_fp32 begins",
    ):
        assert words in told, words
    assert "[dim]" not in told
    again(call, finished, output, "--set", "stages.teacher.learning_rate=1.0e+30")
    told = (output / "run.log").read_text(encoding="utf-8")
    assert "model: done before, kept" in told
    assert "RunError: teacher: the loss is no finite number" in told


def test_the_log_holds_what_was_found_before_the_first_stage(
    call: Call, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(keys: object) -> object:
        logging.getLogger("compressor.tasks.hub").info("no validation split: test is scored")
        return tables(keys)

    tables = text_classification.read_tables
    monkeypatch.setattr(text_classification, "read_tables", read)
    assert again(call, finished, tmp_path / "run") == 0
    told = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert told.count("no validation split: test is scored") == 1
    assert told.index("no validation split") < told.index("model begins")


def test_an_artifact_names_no_path_of_this_machine(finished: Path, tiny: Path) -> None:
    for path in filter(Path.is_file, (finished / "artifact").rglob("*")):
        content = path.read_bytes()
        for folder in (finished.parent, tiny):
            assert str(folder).encode() not in content, path
    manifest = json.loads((finished / "artifact" / "manifest.json").read_text(encoding="utf-8"))
    model, data = manifest["sources"]["model"], manifest["sources"]["data"]
    assert (model["name"], model["licence"]) == (f".../{tiny.name}", None)
    assert model["files"]["model.safetensors"] == sha256(tiny / "model.safetensors")
    rows = sha256(finished.with_name("data.csv"))
    assert data == {"name": "local files", "train": rows, "validation": rows, "licence": None}
    assert manifest["tool"] == {"name": "compressor", "version": __version__}
    assert manifest["recipe"]["model"] == f".../{tiny.name}"
    card = (finished / "artifact" / "README.md").read_text(encoding="utf-8")
    assert "as stated by the source" not in card
    assert card.count("unknown: settle before publishing") == 2


# What a run may begin with


def test_a_model_that_is_pruned_but_not_sliced(
    call: Call, finished: Path, tmp_path: Path, tiny: Path, tokenizer: object
) -> None:
    model = checkpoint.load(tiny)
    structure = structure_of(model).keeping({("encoder", 0, "attention"): SubLayer((1, 3))})
    checkpoint.save(model, tmp_path / "gated", tokenizer, gates=structure)
    recipe = finished.with_name("recipe.yaml")
    arguments = [recipe, "--output", tmp_path / "run", "--set", f"model={tmp_path / 'gated'}"]
    words = (
        "gated' is pruned but not sliced yet: name the folder of a `slice` stage after it, or a dense model"
    )
    for verb in ("run", "plan"):
        refused(call, tmp_path, [verb, *arguments], words)

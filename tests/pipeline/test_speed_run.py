"""Pruning to a speed in the whole chain: a family, its artifacts, and a second target from the same database."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.cli import main
from compressor.models.architecture import structure_of
from compressor.pruning.context import Timing
from compressor.stages.context import TaskContext
from tests.pipeline.tiny import RECIPE, finish, start, write_recipe
from tests.pruning.speed.stand_in import Table

UNGATED = "gates={max_target_miss: null}"
"""The clock is made up: what is measured in the end is another speed."""
TABLE = Table(layers=2, heads=2, ffn=48)
PRUNE = RECIPE[RECIPE.index("  - prune:") : RECIPE.index("  - slice:")]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe, pruned to a speed and not trained afterwards."""
    path = write_recipe(tmp_path)
    text = path.read_text(encoding="utf-8")
    lines = text.replace(PRUNE, "  - prune: {method: speed, search: 2}\n").splitlines()
    text = "\n".join(line for line in lines if "fill" not in line and "quantize" not in line)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def made_up_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times by a table that needs no machine."""

    def timing(self: TaskContext, _name: str, model: Callable[[], Any], _precision: str = "fp32") -> Timing:
        ms = TABLE.time(structure_of(model()))
        speedup = TABLE.time(self.baseline) / ms
        return Timing(ms, speedup, (speedup, speedup), False, (ms, ms))

    monkeypatch.setattr(TaskContext, "latency_table", lambda _self, _precision="fp32": TABLE)
    monkeypatch.setattr(TaskContext, "timing", timing)


def run(recipe: Path, output: Path, *options: str) -> Any:
    assert main(["run", str(recipe), "--output", str(output), "--set", UNGATED, *options]) == 0
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("made_up_clock")
def test_several_speeds_and_another_one_from_the_same_database(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    found = run(recipe, output, "--set", "target={speedup: [1.5, 2]}")
    assert list(found["variants"]) == ["dense_fp32", "1.5x_fp32", "2x_fp32"]
    for name in ("1.5x_fp32", "2x_fp32"):
        assert found["variants"][name]["parity"]["max_abs_error"] < 1e-4
        assert found["variants"][name]["sliced_density"] < 1
    (folder,) = (output / "work").glob("speed-*")
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(files) == 5  # four sub-layers and their costs
    again = run(recipe, output, "--set", "target={speedup: 2}")
    assert again["variants"]["pruned_fp32"]["structure"] == found["variants"]["2x_fp32"]["structure"]
    now = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {p: t for p, t in now.items() if p.suffix == ".safetensors"} == {
        p: t for p, t in files.items() if p.suffix == ".safetensors"
    }


@pytest.mark.usefixtures("made_up_clock")
def test_the_speed_of_a_model_that_was_cut_before_is_over_what_it_was_then(
    recipe: Path, tmp_path: Path
) -> None:
    run(recipe, tmp_path / "run", "--set", "target={speedup: 1.5}")
    run(
        recipe,
        tmp_path / "again",
        "--set",
        f"model={tmp_path / 'run' / 'slice'}",
        "--set",
        "target={speedup: 1.5}",
    )
    times = []
    for name in ("run", "again"):
        record = json.loads((tmp_path / name / "prune" / "stage.json").read_text(encoding="utf-8"))
        measured = record["info"]["members"]["pruned"]["measured"]
        assert measured["speedup"] >= 1.5
        times.append(measured["ms"])
    assert times[1] <= times[0] / 1.5


@pytest.mark.usefixtures("made_up_clock")
def test_a_speed_out_of_reach_ends_the_run_with_one_message(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--output", str(tmp_path / "run"), "--set", "target={speedup: 50}"]
    assert main(["run", str(recipe), *options]) == 2
    said = capsys.readouterr()
    assert "target.speedup 50 cannot be reached" in said.out + said.err


def test_a_target_must_be_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(recipe)]) == 2
    said = capsys.readouterr()
    assert "speed needs a latency_ms or max_metric_drop or speedup to aim at" in said.out + said.err


@pytest.mark.usefixtures("made_up_clock")
def test_the_fastest_within_a_loss(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(recipe, output, "--set", "target={max_metric_drop: 0.9}")
    record = json.loads((output / "prune" / "stage.json").read_text(encoding="utf-8"))
    report = record["info"]["members"]["pruned"]
    assert all(row["drop"] <= 0.9 for row in report["tried"])
    assert report["measured"]["speedup"] > 5


@pytest.mark.usefixtures("made_up_clock")
@pytest.mark.parametrize("goal", ["speedup: 2", "max_metric_drop: 0.9"])
def test_targets_of_int8_models(goal: str, recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    quantized = text.replace("  - export: {}", "  - export: {}\n  - quantize: {mode: dynamic}")
    recipe.write_text(quantized, encoding="utf-8")
    output = tmp_path / "run"
    found = run(recipe, output, "--set", f"target={{{goal}, at: {{precision: int8}}}}")
    assert "pruned_int8" in found["variants"]
    (aims,) = found["pruning"]
    assert aims["members"]["pruned"]["precision"] == "int8"
    assert "What was aimed at" in (output / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("precision", "mode"), [("int8", "dynamic"), ("auto", "auto")])
def test_another_precision_needs_the_stage_that_makes_it(
    recipe: Path, precision: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"target={{speedup: 2, at: {{precision: {precision}}}}}"
    assert main(["validate", str(recipe), "--set", target]) == 2
    said = capsys.readouterr()
    assert f"quantize: {{mode: {mode}}}" in said.out + said.err


@pytest.mark.slow
def test_measured_on_this_machine(recipe: Path, tmp_path: Path) -> None:
    """With a real table and real timings; a model this small is hardly anything but overhead."""
    finish(start(recipe, tmp_path / "run", "--set", "target={speedup: 1.1}", "--set", "gates={}"))
    record = json.loads((tmp_path / "run" / "prune" / "stage.json").read_text(encoding="utf-8"))
    report = record["info"]["members"]["pruned"]
    assert report["measured"]["speedup"] > 1
    assert report["attempts"]

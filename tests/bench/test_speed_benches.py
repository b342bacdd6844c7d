"""The benches of `speed`: what they run, what they keep of it, and their tables."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import runs, scores, speedup_targets
from compressor.files import read_json, write_json
from compressor.recipe import load_recipe

CELL = "minilm-b1-s128-int8"


def options(bench: Any, folder: Path, *words: str) -> argparse.Namespace:
    data = ["--train", str(folder / "train.tsv"), "--validation", str(folder / "dev.tsv")]
    places = ["--runs", str(folder / "runs"), "--output", str(folder / "results.json")]
    found: argparse.Namespace = bench.parser().parse_args(
        ["--model", str(folder / "minilm"), *data, *places, *words]
    )
    return found


def valid(recipe: Any, folder: Path) -> Any:
    """The recipe as `compressor` reads it."""
    path = folder / "recipe.yaml"
    write_json(path, recipe)  # JSON is YAML
    return load_recipe(path).recipe


@pytest.mark.parametrize("precision", speedup_targets.PRECISIONS)
def test_a_cell_asks_for_speeds_over_the_same_precision(precision: str, tmp_path: Path) -> None:
    asked = options(speedup_targets, tmp_path)
    made = speedup_targets.recipe_of(asked, "cell", 1.5, "minilm", 8, 128, precision)
    recipe = valid(made, tmp_path)
    assert recipe.target.values == [1.5]
    assert recipe.stages[0].id == "prune-1_5x"
    assert (recipe.target.at.precision, recipe.target.at.relative_to) == (precision, "same-precision")
    (cell,) = recipe.benchmark.cells()
    assert (cell.batch_size, cell.sequence_length, cell.threads) == (8, 128, 2)
    assert [stage.verb for stage in recipe.stages][-1] == ("quantize" if precision == "int8" else "export")


@pytest.mark.parametrize("task", scores.TASKS)
@pytest.mark.parametrize("kind", scores.KINDS)
@pytest.mark.parametrize("words", [(), ("--trained", "--rows", "500")])
def test_every_kind_is_a_valid_recipe(task: str, kind: str, words: tuple[str, ...], tmp_path: Path) -> None:
    asked = options(scores, tmp_path, "--task", task, *words)
    if task == "squad":
        asked.train, asked.validation = "train.json", "dev.json"
    recipe = valid(scores.recipe_of(asked, kind), tmp_path)
    assert (recipe.target is None) == (kind == scores.LAYERS)
    assert len(recipe.stages) == (4 if words else 3)
    assert recipe.stages[0].id == kind


def finished_run(folder: Path) -> Path:
    """What a run leaves of two targets, one of them missed; times of the pair scatter together."""
    dice, variants = np.random.default_rng(0), {}
    drift = 1 + 0.1 * dice.random((4, 50))
    for name, ms in {"dense_fp32": 20.0, "dense_int8": 12.0, "2x_int8": 5.9, "3x_int8": 4.2}.items():
        path = folder / "measurements" / name / "cell.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, ms=(ms * drift).ravel(), process=np.repeat(np.arange(4), 50))
        raw = f"measurements/{name}/cell.npz"
        row = {"p50_ms": ms, "raw": raw}
        variants[name] = {
            "latency": [row],
            "metric": {"name": "accuracy", "value": 0.9},
            "metric_drop": {"value": 0.012, "ci95": [0.001, 0.02]},
            "speedup": [{"value": 2.0, "ci95": [1.9, 2.1], "noisy": False}],
        }
    stages = [{"id": "prune", "seconds": 60.0}]
    results = {
        "variants": variants,
        "stages": stages,
        "environment": {"load": [0.1]},
        "task": {"examples": {"train": 9, "selection": 1, "validation": 5}},
    }
    write_json(folder / "results.json", results)
    members = {
        f"{asked:g}x": {
            "asked": {"speedup": asked},
            "measured": {"ms": 12.0 / asked, "speedup": asked, "noisy": False},
            "attempts": [[1, 1, 1]],
            "selection_metric": 0.91,
            "divergence": 0.2,
            "recovered": 0.1,
        }
        for asked in (2.0, 3.0)
    }
    write_json(folder / "prune" / "stage.json", {"info": {"members": members}})
    return folder


def aimed_run(folder: Path, member: str, searching: float = 1.0) -> Path:
    """A run of one target; the dense model took so many times as long while searching."""
    run = finished_run(folder)
    results = read_json(run / "results.json")
    results["variants"]["pruned_int8"] = results["variants"][f"{member}_int8"]
    write_json(run / "results.json", results)
    found = read_json(run / "prune" / "stage.json")["info"]["members"][member]
    found["measured"]["ms"] *= searching
    write_json(run / f"prune-{member}" / "stage.json", {"info": {"members": {"pruned": found}}})
    return run


def test_asked_is_compared_with_the_artifacts_over_dense_of_the_same_precision(tmp_path: Path) -> None:
    two, three = (
        speedup_targets.row(aimed_run(tmp_path / member, member), float(member[0]), "int8")
        for member in ("2x", "3x")
    )
    assert two["measured"] == pytest.approx(12.0 / 5.9)
    assert two["error"] == pytest.approx(12.0 / 5.9 / 2 - 1)
    assert not two["certainly_short"]
    assert three["measured"] == pytest.approx(12.0 / 4.2)
    assert three["certainly_short"]
    assert three["dense_ms"] == three["dense_ms_while_searching"] == 12.0
    state = speedup_targets.summed({"cells": {CELL: {"targets": [two, three]}}})
    assert state["summary"]["worst_error"] == pytest.approx(1 - 12.0 / 4.2 / 3)
    assert state["summary"]["certainly_short"] == 1
    assert len(state["missing"]) == 8
    text = speedup_targets.table(state)
    assert f"| {CELL} | 12.00 | 3x | 2.857 (2.857 to 2.857) | -4.8 % | 1 |" in text
    assert "worst 4.8 %, certainly short of the asked speed 1" in text


@pytest.mark.parametrize(("searching", "again"), [(1.0, 0), (1.04, 0), (1.1, 2), (0.9, 2)])
def test_where_the_machine_has_changed_it_is_measured_again(
    searching: float, again: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(speedup_targets, tmp_path)
    run, calls = aimed_run(asked.runs / "cell", "2x", searching), []

    def finish(_recipe: Any, _output: Path, _seconds: float) -> bool:
        calls.append((run / "measurements" / "latency.json").exists())
        write_json(run / "measurements" / "latency.json", {})
        return True

    monkeypatch.setattr(speedup_targets, "finished", finish)
    found = speedup_targets.measured(asked, "cell", 2.0, ["minilm", 1, 128, "int8"], 1e9)
    assert found is not None
    assert found["measured_again"] == again
    assert calls == [False] * (1 + again)


def test_what_was_measured_is_not_asked_for_again(tmp_path: Path) -> None:
    asked = options(
        speedup_targets, tmp_path, "--cells", CELL, "bert-base-b1-s128-fp32", "--targets", "2", "3"
    )
    state = {"cells": {CELL: {"targets": [{"asked": 2.0}]}}}
    assert [(name, target) for name, target, *_ in speedup_targets.lacking(state, asked)] == [
        ("bert-base-b1-s128-fp32", 2.0),
        ("bert-base-b1-s128-fp32", 3.0),
        (CELL, 3.0),
    ]
    every = [name for name, _ in scores.lacking({"cells": {"sst2 fisher": {}}}, options(scores, tmp_path))]
    assert "sst2 fisher" not in every
    assert len(every) == len(scores.KINDS) - 1


def test_scores_keep_speed_loss_and_divergence(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    results = read_json(run / "results.json")
    results["variants"] |= {f"{n}x_fp32": results["variants"][f"{n}x_int8"] for n in (2, 3)}
    row = scores.row(results, options(scores, tmp_path), "prune", run)
    assert [one["asked"] for one in row["models"]] == [2.0, 3.0]
    assert str(tmp_path) not in row["command"]
    text = scores.table({"cells": {"sst2 fisher": row}})
    assert "| sst2 fisher | 2x |" in text
    assert "| accuracy 90.00 | 1.20 (0.10 to 2.00) | 0.1000 |" in text


def test_a_run_that_the_budget_ends_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            self.command = command
            seen.append(command)

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None and timeout < 2:
                raise runs.subprocess.TimeoutExpired("run", timeout)
            return 0 if "good.yaml" in self.command[4] else 3

        def send_signal(self, number: int) -> None:
            seen.append([str(number)])

    monkeypatch.setattr(runs.subprocess, "Popen", Process)
    assert not runs.finished({"name": "good"}, tmp_path / "out", 0.0)
    assert seen[1] == [str(int(runs.signal.SIGINT))]
    assert runs.finished({"name": "good"}, tmp_path / "out", 60.0)
    with pytest.raises(SystemExit, match=r"bad\.yaml failed"):
        runs.finished({"name": "bad"}, tmp_path / "out", 60.0)

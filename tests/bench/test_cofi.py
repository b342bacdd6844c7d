"""The bench of CoFi: its recipes, and its plot."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from bench import cofi, runs
from bench.plot import save_plot
from compressor.files import write_json
from compressor.recipe import load_recipe


def options(folder: Path, *words: str) -> argparse.Namespace:
    data = ["--train", str(folder / "train.tsv"), "--validation", str(folder / "dev.tsv")]
    return runs.arguments("cofi", None, cofi.SPARSITIES).parse_args(
        [*data, "--rows", "500", "--precision", "bf16", *words]
    )


def cell(kind: str, value: float, speedup: float, minutes: float) -> dict[str, Any]:
    interval = {"value": value, "ci95": [value - 0.01, value + 0.01]}
    return {
        "task": "sst2",
        "kind": kind,
        "metric": "accuracy",
        "dense": 0.9,
        "metric_drop": {"fp32": interval},
        "speedup": {"fp32": [{"value": speedup, "ci95": [speedup - 0.1, speedup + 0.1]}]},
        "minutes": {"recover": minutes},
    }


STATE = {
    "cells": {
        "sst2 sparsity 0.6": cell("sparsity 0.6", 0.01, 2.0, 6.0),
        "sst2 sparsity 0.8": cell("sparsity 0.8", 0.03, 4.0, 4.0),
        "sst2 drop 3": cell("drop 3", 0.02, 1.9, 5.0),
    },
    "epoch_minutes": {"sst2": 1.0},
}
OTHERS = {
    "cells": {"sst2 hybrid 10": cell("hybrid", 0.02, 1.6, 9.0), "sst2 plain 10": cell("plain", 0, 1, 1)}
}


def valid(recipe: Any, folder: Path) -> Any:
    path = folder / "recipe.yaml"
    write_json(path, recipe)  # JSON is YAML
    return load_recipe(path).recipe


def test_the_ladder_and_its_rivals_are_valid_recipes(tmp_path: Path) -> None:
    ladder = valid(cofi.ladder(options(tmp_path)), tmp_path)
    assert ladder.target.values == list(cofi.SPARSITIES["sst2"])
    assert ladder.task.limit.train == 500
    trained = [stage for stage in ladder.stages if stage.verb in ("finetune", "prune")]
    assert [stage.training.precision for stage in trained] == ["bf16"] * 3
    rival = valid(cofi.dropping(options(tmp_path), STATE, 3), tmp_path)
    (pruned,) = [stage for stage in rival.stages if stage.verb == "prune"]
    trained = [stage for stage in rival.stages if stage.verb == "finetune"][-1]
    assert pruned.pruner.drop == 3
    assert trained.epochs == pytest.approx(
        5.0 / (1.0 * 3 / 6)
    )  # as many minutes as the ladder's members took
    assert trained.training.precision == "bf16"


def test_the_plot_has_a_line_a_method(tmp_path: Path) -> None:
    series, *words = cofi.curves(STATE, OTHERS, "sst2")
    assert {name: len(points) for name, points in series.items()} == {
        "CoFi (4 to 6 min each)": 2,
        "layers dropped (5 to 5 min each)": 1,
        "block pruning (9 to 9 min each)": 1,
    }
    save_plot(series, *words, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "CoFi (4 to 6 min each)" in drawn
    assert "accuracy 90.0 with all" in drawn

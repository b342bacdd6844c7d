"""The comparison of `auto` with the grid: what it says of what was measured, and the whole of it on a tiny run."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from compressor.files import read_json
from tests.pipeline.tiny import ENVIRONMENT, finish, start, write_recipe

BENCH = Path(__file__).parents[2] / "bench"
CELL = {"provider": "cpu", "threads": 1, "batch_size": 1, "sequence_length": 16}
DYNAMIC, STATIC = "dynamic-per-channel", "static-per-channel-minmax-asymmetric"


def speed(value: float) -> dict[str, Any]:
    return CELL | {"value": value, "ci95": [0.9 * value, 1.1 * value]}


def state() -> dict[str, Any]:
    """One model: the static graph is the fastest, but loses too much."""
    timing = {
        "latency": {name: {"p50_ms": 8.0} for name in ("fp32", DYNAMIC, STATIC, "auto")},
        "speedup": {DYNAMIC: speed(2.0), STATIC: speed(2.2), "auto": speed(2.1)},
        "drop": {"fp32": 0.0, DYNAMIC: 0.005, STATIC: 0.04},
        "best": DYNAMIC,
        "auto_over_best": speed(1.05),
        "files": 4,
        "seconds": 40.0,
    }
    tried = [
        {"scheme": "x", "admitted": False},
        {"scheme": "y", "admitted": True, "metric": 0.89, "drop": 0.01},
    ]
    scores = {
        name: {"value": value, "seconds": 50.0}
        for name, value in (("fp32", 0.9), (DYNAMIC, 0.895), (STATIC, 0.86))
    }
    row = {
        "auto": {"label": "y", "tried": tried, "seconds": 36.0},
        **scores,
        "timing": timing,
        "metric": "metric",
    }
    return {"models": {"tiny: dense": row, "tiny: pruned": {"auto": row["auto"]}}}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("quantization_table")


def test_the_table_sets_the_search_beside_the_grid(table: ModuleType) -> None:
    rows = table.table(state()).splitlines()
    (dense,) = [row for row in rows if row.startswith("| tiny: dense | metric")]
    assert "| 90.00 | dynamic-per-channel 2.00x [1.80, 2.20] | y 2.10x [1.89, 2.31] | 1.05x" in dense
    assert dense.endswith(
        "| 36 s | 180 s | 0.20x |"
    )  # three graphs of 50 s, and three quarters of the timing
    details = [row for row in rows if row.startswith("| tiny: dense |")][1:]
    assert [row.split(" | ")[1] for row in details] == ["fp32", DYNAMIC, STATIC, "auto: y"]
    assert details[2].endswith("| 86.00 | 4.00 |")
    assert "pruned" not in "".join(rows)  # not measured to its end


@pytest.mark.slow
def test_a_tiny_run_is_measured_and_resumed(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "quantization.json"
    finish(start(write_recipe(tmp_path / "data"), run, "--set", "stages.prune.epochs=1"))
    command = [sys.executable, str(BENCH / "quantization.py"), "--run", str(run), "--models", "dense"]
    command += ["--length", "16", "--threads", "1", "--seconds", "0.05"]
    command += ["--work", str(tmp_path / "work"), "--output", str(output)]
    environment = ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join([str(BENCH.parent), os.environ.get("PYTHONPATH", "")])
    }

    def call(*options: str) -> str:
        made = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        )
        return made.stdout

    assert call("--budget", "0").startswith("missing: dense auto; dense fp32; dense dynamic-per-channel;")
    assert call("--budget", "30") == "missing: nothing\n"
    (row,) = read_json(output)["models"].values()
    assert set(row["timing"]["drop"]) == {
        "fp32",
        *(name for name in row if name.startswith(("dynamic", "static"))),
    }
    assert row["timing"]["drop"][row["timing"]["best"]] <= row["allowed"]
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
    assert call("--budget", "0") == "missing: nothing\n"
    assert "auto over best" in call("--table")

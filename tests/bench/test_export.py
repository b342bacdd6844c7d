"""The comparison with optimum-cli's export: saved length by length, resumed, within its budget."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import export
from compressor.files import read_json

TIMED: list[int] = []


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls the script without exporting or timing anything; returns what it has stored."""
    TIMED.clear()
    monkeypatch.setattr(export, "exports", lambda *_: {})
    monkeypatch.setattr(export, "random_bert", lambda folder: folder)
    monkeypatch.setattr(export, "measure", measured)
    output = tmp_path / "export.json"

    def run(*options: object):
        monkeypatch.setattr(sys, "argv", ["bench/export.py", "--output", str(output), *map(str, options)])
        export.main()
        return read_json(output) if output.is_file() else None

    return run


def measured(files, cells, **_):
    (cell,) = cells
    TIMED.append(cell.sequence_length)
    latency = {name: [cell.keys() | {"p50_ms": 1.0}] for name in ("optimum-cli", "compressor")}
    speedup = {"compressor": [cell.keys() | {"value": 1.0, "ci95": [0.9, 1.1]}]}
    return SimpleNamespace(latency=latency, speedup=speedup, conditions=[cell.keys()])


def test_no_time_measures_nothing_and_says_what_is_missing(call, capsys):
    assert call("--budget", 0) is None
    assert capsys.readouterr().out == "missing: 128, 384\n"


def test_a_call_goes_on_where_the_last_one_ended(call, monkeypatch, capsys):
    def interrupted(files, cells, **options):
        if cells[0].sequence_length == 384:
            raise KeyboardInterrupt
        return measured(files, cells, **options)

    monkeypatch.setattr(export, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call("--budget", 60)
    monkeypatch.setattr(export, "measure", measured)
    stored = call("--budget", 60)
    assert TIMED == [128, 384]
    assert stored["missing"] == []
    rows = [stored["conditions"], stored["speedup_over_optimum_cli"], *stored["latency"].values()]
    assert all([row["sequence_length"] for row in part] == [128, 384] for part in rows)
    assert "384 tokens: 1.00x [0.90, 1.10]\nmissing: nothing" in capsys.readouterr().out


def test_what_was_measured_otherwise_is_not_resumed(call):
    call("--budget", 60)
    call("--budget", 60)
    call("--budget", 60, "--seconds", 1)
    assert TIMED == [128, 384, 128, 384]

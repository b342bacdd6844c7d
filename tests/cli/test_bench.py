"""`bench`: its comma lists, what it refuses before it times anything, and one real measurement."""

import json
import shlex
import sys

import onnx
import pytest

from compressor.cell import Cell
from compressor.errors import UserError
from compressor.files import sha256
from compressor.views import bench
from tests.benchmark.graphs import encoder


@pytest.fixture
def slow(tmp_path):
    path = tmp_path / "slow.onnx"
    onnx.save(encoder(["batch", "sequence"], work=60), path)
    return path


def test_the_grid_of_comma_lists():
    grid = bench.parse_grid("1, 8,1", "128,384", "1", "cpu", 2, 3)
    assert grid.cells() == [Cell("cpu", 1, batch, length) for batch in (1, 8) for length in (128, 384)]
    assert (grid.seconds, grid.processes) == (2, 3)


@pytest.mark.parametrize(("cores", "threads"), [(1, [1]), (2, [2]), (64, [2])])
def test_two_threads_where_there_are_two_cores(monkeypatch, cores, threads):
    monkeypatch.setattr(bench, "usable_cores", lambda: cores)
    assert bench.parse_grid("1", "128", "", "cpu", 3, 6).threads == threads


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": "1,x"}, "--batch 1,x: 'x' is no whole number above 0; write --batch 1,8"),
        ({"batch": "1,,8"}, "--batch '1,,8': write values with commas between them"),
        ({"seq": "0"}, "--seq 0: '0' is no whole number above 0"),
        ({"seq": "1.5"}, "'1.5' is no whole number"),
        ({"threads": "-1"}, "--threads -1"),
        ({"provider": "cpu,gpu"}, "--provider gpu: unknown"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"seconds": 0.0}, "--seconds 0.0"),
    ],
)
def test_lists_that_are_none(change, says):
    values = {"batch": "1", "seq": "8", "threads": "1", "provider": "cpu", "seconds": 1.0, "processes": 3}
    with pytest.raises(UserError) as caught:
        bench.parse_grid(**(values | change))
    assert says in str(caught.value)


def test_what_cannot_be_measured_is_said_before_anything_is(call, slow, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("it began to measure"))
    for arguments, says in (
        ([tmp_path / "gone.onnx"], "there is nothing at"),
        ([tmp_path], "is not an .onnx file or a folder with a model.onnx"),
        ([slow, "--baseline", tmp_path / "gone.onnx"], "gone.onnx"),
        ([slow, "--input", "x"], "write name=shape"),
        ([slow, "--json", tmp_path], "is a folder; name the file"),
        ([slow, "--lengths", recipe], "holds no tokenizer"),
        ([slow, "--lengths", tmp_path / "gone.yaml"], "gone.yaml"),
    ):
        said = call("bench", *arguments)
        assert said.code == 2, said
        assert says in said.err
    assert slow.is_file()


def test_a_file_that_is_no_model(call, tmp_path):
    (tmp_path / "x.onnx").write_text("no model", encoding="utf-8")
    said = call("bench", tmp_path / "x.onnx", "--seconds", 0.05, "--processes", 3, "--threads", 1)
    assert said.code == 2
    assert "onnxruntime cannot open it" in said.err


def test_a_model_against_a_baseline_with_real_lengths_and_json(
    call, exported, slow, recipe, tmp_path, monkeypatch
):
    figures = tmp_path / "new" / "bench.json"
    arguments = [exported, "--baseline", slow, "--seq", 64, "--threads", 1, "--lengths", recipe]
    arguments += ["--seconds", 0.05, "--processes", 3, "--sessions", 2, "--json", figures]
    monkeypatch.setattr(sys, "argv", ["compressor", "bench", *map(str, arguments)])
    said = call("bench", *arguments)
    assert said.code == 0, said.err
    assert f"model: {exported / 'model.onnx'}" in said.rows
    assert "cpu, 1 thread, batch 1, 64 tokens" in said.rows
    assert "cpu, 1 thread, batch 1, real lengths" in said.rows
    assert sum(row.startswith("baseline ") and " –" in row for row in said.rows) == 2
    assert sum(row.startswith("model ") and "x [" in row for row in said.rows) == 2
    assert sum(row.startswith(("model ", "baseline ")) and row.endswith("] by 2") for row in said.rows) == 2
    assert any(
        row.startswith("threads: 1 of ") and "spinning: onnxruntime's default" in row for row in said.rows
    )
    assert any("; load " in row for row in said.rows)

    stored = json.loads(figures.read_text(encoding="utf-8"))
    assert stored["command"] == shlex.join(["compressor", "bench", *map(str, arguments)])
    graph = exported / "model.onnx"
    assert stored["models"]["model"]["files"]["model.onnx"] == {
        "sha256": sha256(graph),
        "bytes": graph.stat().st_size,
    }
    assert stored["environment"]["cpu"]
    assert stored["reference"] == "baseline"
    assert [row["sequence_length"] for row in stored["speedup"]["model"]] == [64, "data"]
    assert [row["sessions"] for row in stored["throughput"]["model"]] == [2]
    raw = figures.with_name("bench.json.raw")
    assert all((raw / row["raw"]).is_file() for row in stored["latency"]["model"])


def test_what_disturbed_a_cell_stands_below_it():
    seen = {"disturbance": "other processes ran: make (90% of a core)", "settled": False, "set_aside": 3}
    first, second, third = bench._warnings(seen)
    assert "make (90% of a core)" in first.plain
    assert "everything took longer in them: 3 processes" in second.plain
    assert "more --seconds" in third.plain
    assert bench._warnings({"disturbance": None, "settled": True, "set_aside": 0}) == []

"""The harness from end to end, on models that run in microseconds."""

import os
import signal

import numpy as np
import pytest

from compressor.benchmark import harness, process
from compressor.benchmark.harness import measure
from compressor.benchmark.process import Job, run_in_fresh_process
from compressor.benchmark.throughput import measure_throughput
from compressor.cell import DATA, Cell
from compressor.errors import RunError, UserError
from tests.benchmark.graphs import encoder

SHORT = {"seconds": 0.1, "processes": 2}
CELL = Cell("cpu", 1, 2, 64)


@pytest.fixture
def models(saved):
    dims = ["batch", "sequence"]
    return {
        "slow": saved(encoder(dims, work=60), "slow.onnx"),
        "fast": saved(encoder(dims, work=2), "fast.onnx"),
    }


def test_rows_raw_samples_and_conditions(models, tmp_path):
    heard = []
    found = measure(
        models,
        [CELL],
        reference="slow",
        raw_dir=tmp_path / "raw",
        progress=lambda *said: heard.append(said),
        **SHORT,
    )
    assert heard == [
        ("timing cpu, 1 thread, batch 2, 64 tokens: process 1 of 2", 0.0),
        ("timing cpu, 1 thread, batch 2, 64 tokens: process 2 of 2", 0.5),
    ]
    (row,) = found.latency["fast"]
    assert row.items() >= CELL.keys().items()
    assert row["p50_ci95"][0] <= row["p50_ms"] <= row["p50_ci95"][1]
    assert row["p50_ms"] <= row["p90_ms"]
    assert row["cold_start_ms"] > row["p50_ms"]
    assert "host_p50_ms" not in row
    assert found.speedup.keys() == {"fast"}
    (speedup,) = found.speedup["fast"]
    assert speedup["ci95"][0] <= speedup["value"] <= speedup["ci95"][1]
    assert speedup["value"] > 2
    assert found.speedup_over("fast")["slow"][0]["value"] == pytest.approx(1 / speedup["value"])
    (conditions,) = found.conditions
    assert conditions["processes"] == 2
    assert all(rounds >= 10 for rounds in conditions["warmup_rounds"])

    with np.load(tmp_path / "raw" / row["raw"]) as raw:
        assert len(raw["ms"]) == row["runs"] >= 10
        medians = [np.median(raw["ms"][raw["process"] == number]) for number in (0, 1)]
    assert row["p50_ms"] == pytest.approx(np.sqrt(medians[0] * medians[1]), rel=0.02)


@pytest.mark.parametrize(
    ("dense_ms", "run", "kept"),
    [
        ([8.0, 8.3, 8.1], 3, [8.0, 8.3, 8.1]),
        ([8.0, 11.0, 8.1, 11.0, 8.2], 5, [8.0, 8.1, 8.2]),
        ([11.0, 8.0, 11.5, 8.1, 11.0, 11.2], 6, [11.0, 8.0, 8.1]),
        ([11.0, 11.1, 11.2], 3, [11.0, 11.1, 11.2]),
    ],
)
def test_processes_that_shared_the_machine_are_set_aside(models, monkeypatch, dense_ms, run, kept):
    """The other model is slowed by more; the wait ends after as many processes again."""
    made = iter(dense_ms)

    def result(_job):
        dense = next(made)
        ms = np.array([[dense, dense**2 / 16]] * 10)
        return {
            "ms": ms,
            "shape": np.zeros(10, int),
            "cold_ms": ms[0],
            "drift": ms[0] * 0,
            "warmup_rounds": 10,
        }

    monkeypatch.setattr(harness, "run_in_fresh_process", result)
    found = measure(models, [CELL], reference="slow", seconds=1.0, processes=3)
    assert [ms[0, 0] for ms in found.samples[0].ms] == kept
    assert found.conditions[0]["set_aside"] == run - 3
    assert not list(made)


def test_real_lengths_are_one_more_cell(models):
    lengths = [8] * 90 + [300] * 10
    real = Cell("cpu", 1, 1, DATA)
    found = measure(models, [real], reference="slow", lengths=lengths, **SHORT)
    (row,) = found.latency["slow"]
    assert (row["sequence_length"], row["batch_size"]) == ("data", 1)
    (samples,) = found.samples
    shapes = np.concatenate(samples.shape)
    short, long = (samples.ms[0][samples.shape[0] == shape, 0] for shape in (0, 15))
    assert np.bincount(shapes).min() == np.bincount(shapes).max()
    assert np.median(long) > 1.5 * np.median(short)
    with pytest.raises(UserError, match="data set is empty"):
        measure(models, [real], reference="slow", lengths=[], **SHORT)


def test_lengths_stand_for_the_whole_distribution():
    shapes = harness._shapes(Cell("cpu", 1, 1, "data"), list(range(1, 161)))
    assert len(shapes) == 16
    assert np.mean([length for _, length in shapes]) == pytest.approx(80.5, abs=3)


def test_throughput_rows(models):
    heard = []
    rows = measure_throughput(
        models, [CELL], 2, seconds=0.1, processes=2, progress=lambda *said: heard.append(said)
    )
    assert heard == [
        ("counting cpu, 1 thread, batch 2, 64 tokens: process 1 of 2", 0.0),
        ("counting cpu, 1 thread, batch 2, 64 tokens: process 2 of 2", 0.5),
    ]
    (slow,), (fast,) = rows["slow"], rows["fast"]
    assert fast.items() >= CELL.keys().items()
    assert fast["sessions"] == 2
    assert fast["examples_per_second"] > slow["examples_per_second"]
    assert fast["range"][0] <= fast["examples_per_second"] <= fast["range"][1]


def test_a_cell_has_settled_when_its_processes_do_not_drift_together():
    rng = np.random.default_rng(0)
    noise = 0.05 * rng.standard_normal((8, 2))
    assert np.abs(noise).max() > 0.05
    assert harness._settled(list(noise))
    noise[:, 1] -= 0.1
    assert not harness._settled(list(noise))


def test_what_cannot_be_measured_is_said_before_anything_runs(models, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "run_in_fresh_process", lambda _: pytest.fail("a process was started"))
    with pytest.raises(UserError, match="'slwo', is not measured; did you mean 'slow'"):
        measure(models, [CELL], reference="slwo", **SHORT)
    with pytest.raises(UserError, match=r"no such file: .*none\.onnx"):
        measure({**models, "none": tmp_path / "none.onnx"}, [CELL], reference="slow", **SHORT)
    with pytest.raises(UserError, match=r"4096 threads.*lower benchmark\.threads"):
        measure(models, [CELL, Cell("cpu", 4096, 1, 64)], reference="slow", **SHORT)
    with pytest.raises(UserError, match="2 processes or more"):
        measure(models, [CELL], reference="slow", processes=1)


def test_what_a_process_finds_wrong_reaches_the_user(models):
    with pytest.raises(UserError, match=r"^--input input_id: the model has no such input"):
        measure(models, [CELL], reference="slow", overrides={"input_id": (1, 8)}, **SHORT)


def test_a_process_that_dies_is_reported(monkeypatch):
    job = Job(["a.onnx"], "cpu", 1, [(1, 8)], 0.1, seed=0)

    def died(code, stderr=""):
        ended = process.subprocess.CompletedProcess([], code, "", stderr)
        monkeypatch.setattr(process.subprocess, "run", lambda *_, **__: ended)

    died(-signal.SIGKILL)
    with pytest.raises(
        RunError, match=r"signal 9; if memory ran out, measure fewer models at once \(1 were open\)"
    ):
        run_in_fresh_process(job)
    died(1, "Traceback ...\nMemoryError")
    with pytest.raises(RunError, match="MemoryError"):
        run_in_fresh_process(job)


def test_processes_find_the_package_from_any_folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.devnull)
    job = Job([str(models["fast"])], "cpu", 1, [(1, 8)], 0.01, seed=0)
    assert run_in_fresh_process(job)["ms"].shape[1] == 1

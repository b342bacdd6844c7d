"""The bench that proves the harness: what it counts, what it takes up again, what it calls passed."""

import importlib.util
import sys
from pathlib import Path

import pytest

from compressor.files import read_json

PATH = Path(__file__).resolve().parents[2] / "bench" / "harness.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_harness", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WANTED", {"hog": 4, "quiet": 2})
    monkeypatch.setattr(module, "overhead_us", lambda: 0.1)
    return module


def made(kind, seed, low=0.98, high=1.02, disturbance=None):
    return {
        "kind": kind,
        "seed": seed,
        "ci95": [low, high],
        "half_width": (high - low) / 2,
        "process_log_ratios": [0.0, 0.01],
        "disturbance": disturbance,
    }


def run(bench, monkeypatch, path, compare, budget="10"):
    monkeypatch.setattr(bench, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["bench/harness.py", "--budget", budget, "--output", str(path)])
    bench.main()
    return read_json(path)


def test_it_goes_on_where_it_stopped_and_makes_disturbed_ones_again(bench, monkeypatch, tmp_path):
    asked = []

    def compare(models, kind, seed):
        asked.append((kind, seed))
        return made(kind, seed, disturbance="another ran" if seed == 1 else None)

    first = run(bench, monkeypatch, tmp_path / "out.json", compare)
    assert sorted(asked) == [("hog", 0), ("hog", 1), ("hog", 2), ("hog", 3), ("quiet", 0), ("quiet", 1)]
    assert first["missing"] == {"hog": 0, "quiet": 1}, "beside a hog, more load only makes it harder"
    asked.clear()
    second = run(bench, monkeypatch, tmp_path / "out.json", compare)
    assert asked == [("quiet", 2)]
    assert second["missing"] == {"hog": 0, "quiet": 0}
    assert second["summary"]["hog"]["comparisons"] == 4
    assert second["summary"]["quiet"]["comparisons"] == 2
    assert [kind["disturbed"] for kind in second["summary"].values()] == [1, 1]


def test_another_machine_adds_to_what_was_measured(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "WANTED", {"hog": 3, "quiet": 1})
    run(bench, monkeypatch, tmp_path / "out.json", lambda models, kind, seed: made(kind, seed))
    monkeypatch.setattr(bench, "WANTED", {"hog": 4, "quiet": 2})
    monkeypatch.setattr(bench, "machine_key", lambda machine: "another")
    found = run(bench, monkeypatch, tmp_path / "out.json", lambda models, kind, seed: made(kind, seed))
    assert found["summary"]["hog"]["comparisons"] == 4
    assert [kinds["hog"]["comparisons"] for kinds in found["by_machine"].values()] == [3, 1]
    assert len(found["machines"]) == 2


def test_other_settings_start_afresh(bench, monkeypatch, tmp_path):
    run(bench, monkeypatch, tmp_path / "out.json", lambda models, kind, seed: made(kind, seed))
    monkeypatch.setattr(bench, "SECONDS", 9.0)
    assert bench.load(tmp_path / "out.json")["comparisons"] == []


def test_without_budget_nothing_is_measured_and_it_says_so(bench, monkeypatch, tmp_path):
    found = run(bench, monkeypatch, tmp_path / "out.json", lambda *_: pytest.fail("measured"), budget="0.1")
    assert found["summary"]["quiet"] == {"disturbed": 0, "not measured": "out of budget"}
    assert found["missing"] == {"hog": 4, "quiet": 2}


@pytest.mark.parametrize(
    ("intervals", "passed"),
    [
        ([(0.93, 1.07)] * 10, True),
        ([(0.93, 1.07)] * 9 + [(1.01, 1.05)], True),
        ([(0.93, 1.07)] * 8 + [(1.01, 1.05)] * 2, False),
        ([(0.93, 1.07)] * 9 + [(0.91, 1.09)], False),
    ],
    ids=["all", "nine cover", "eight cover", "one too wide"],
)
def test_what_passes(bench, intervals, passed):
    comparisons = [made("hog", seed, *interval) for seed, interval in enumerate(intervals)]
    assert bench.summary(comparisons, "hog")["passed"] is passed


def test_the_hog_itself_is_no_disturbance(bench):
    hog, other = {"name": "hog", "pid": 7, "cores": 0.9}, {"name": "other", "pid": 8, "cores": 0.2}
    beside = {"processes": [hog, other], "other_cores": 1.12, "steal": 0.0}
    rest = bench.without(beside, 7)
    assert rest["processes"] == [other]
    assert rest["other_cores"] == pytest.approx(0.22)


def test_its_model_is_one(bench, saved):
    from compressor.benchmark.sessions import open_session, random_inputs

    session = open_session(saved(bench.bert_like(layers=1, vocabulary=300)), "cpu", 1)
    (output,) = session.run(None, random_inputs(session, 2, 200, seed=0))
    assert output.shape == (2, 200, 256)

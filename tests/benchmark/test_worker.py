"""What happens inside a measuring process."""

import itertools
import time

import numpy as np
import pytest

from compressor.benchmark import worker
from compressor.benchmark.process import Job
from compressor.benchmark.worker import time_rounds


def noting(log, name):
    return lambda: log.append(name)


def test_a_round_runs_every_model_once_in_random_order():
    log = []
    time_rounds([[noting(log, "a"), noting(log, "b")]], 0.0, np.random.default_rng(0), least=200)
    rounds = list(zip(log[::2], log[1::2], strict=True))
    assert all(sorted(pair) == ["a", "b"] for pair in rounds)
    first = [pair[0] for pair in rounds]
    assert 70 < first.count("a") < 130


def test_every_shape_gets_its_round_before_any_gets_the_next():
    log = []
    calls = [[noting(log, (shape, model)) for model in "ab"] for shape in range(3)]
    times, shapes = time_rounds(calls, 0.0, np.random.default_rng(0), least=10)
    assert times.shape == (12, 2)  # whole cycles only
    assert all(sorted(cycle) == [0, 1, 2] for cycle in shapes.reshape(-1, 3).tolist())
    assert [shape for shape, _ in log[::2]] == shapes.tolist()  # both models run the same shape in a round
    assert [shape for shape, _ in log[1::2]] == shapes.tolist()


def test_a_model_is_timed_after_runs_of_its_own_but_a_long_one_at_once(monkeypatch):
    log = []
    seconds = {"short": 0.008, "even": 0.03, "long": 0.11}
    monkeypatch.setattr(worker, "_run", lambda call: log.append(call()) or int(1e9 * seconds[log[-1]]))
    calls = [[lambda name=name: name for name in seconds]]
    times, _ = time_rounds(calls, 0.0, np.random.default_rng(0), least=150, lead=0.02)
    assert times.tolist() == [[8, 30, 110]] * 150
    assert {name: log.count(name) / 50 for name in seconds} == {"short": 6, "even": 4, "long": 3}
    assert len(list(itertools.groupby(log))) > 100  # in a row


def test_times_are_milliseconds_and_the_time_is_kept():
    start = time.perf_counter()
    times, _ = time_rounds(
        [[lambda: time.sleep(0.004), lambda: None]], 0.1, np.random.default_rng(0), least=3
    )
    assert 0.1 <= time.perf_counter() - start < 0.5
    assert 4.0 <= np.median(times[:, 0]) < 8.0
    assert np.median(times[:, 1]) < 0.1


def test_warm_up_goes_on_until_the_medians_settle():
    rng = np.random.default_rng(0)
    waits = iter([0.03 * 0.8**number for number in range(12)] + [0.002] * 1000)
    rounds, drift = worker._warm_up([[lambda: time.sleep(next(waits))]], 5.0, rng)
    assert abs(drift[0]) <= worker.SETTLED
    assert 15 < rounds < 60


def test_warm_up_ends_when_they_never_settle():
    rng = np.random.default_rng(0)
    growing = iter(0.0005 * 1.2**number for number in range(1000))
    rounds, drift = worker._warm_up([[lambda: time.sleep(next(growing))]], 0.02, rng)
    assert drift[0] > worker.SETTLED
    assert rounds >= 10


def test_a_slow_model_gets_time_to_settle_after_its_first_ten_rounds(monkeypatch):
    milliseconds = iter([200] * 5 + [100] * 100)
    clock = [0.0]

    def run(call):
        spent = next(milliseconds)
        clock[0] += spent / 1e3
        return 1e6 * spent

    monkeypatch.setattr(worker, "_run", run)
    monkeypatch.setattr(worker, "perf_counter", lambda: clock[0])
    rounds, drift = worker._warm_up([[lambda: None]], 2.0, np.random.default_rng(0))
    assert rounds == 13  # then most of the five before are of the fast ones too
    assert drift == pytest.approx([0.0])


def shapes_that_take(monkeypatch, slower):
    """Sixteen shapes of very different lengths; run number n of one takes `slower(n)` times as long."""
    runs = np.zeros(16, int)

    def spent(shape):
        runs[shape] += 1
        return int(1e6 * (1 + shape) * slower(runs[shape]))

    monkeypatch.setattr(worker, "_run", lambda call: spent(call()))
    return [[lambda shape=shape: shape] for shape in range(16)], runs


def test_shapes_of_different_lengths_are_warm_when_each_is(monkeypatch):
    calls, runs = shapes_that_take(monkeypatch, lambda n: 1.0)
    rounds, drift = worker._warm_up(calls, 0.0, np.random.default_rng(0))
    assert rounds == 32
    assert (runs == 2).all()
    assert drift == pytest.approx([0.0])


def test_the_first_run_of_a_shape_is_no_sign_of_warmth(monkeypatch):
    calls, runs = shapes_that_take(monkeypatch, lambda n: 1.5 if n == 1 else 1.0)
    _, drift = worker._warm_up(calls, 1.0, np.random.default_rng(0))
    assert (runs == 3).all()
    assert drift == pytest.approx([0.0])


def test_each_process_opens_another_model_first_with_other_random_numbers():
    job = Job(["a", "b", "c"], "cpu", 1, [(1, 8)], 1.0, seed=10)
    assert [(again.first, again.seed) for again in map(job.again, range(4))] == [
        (0, 10),
        (1, 11),
        (2, 12),
        (0, 13),
    ]


def test_a_job_survives_the_way_to_its_process():
    job = Job(["a"], "cuda", 1, [(1, 8), (1, 9)], 1.5, seed=3, sessions=2, overrides={"x": (1, 2)})
    assert Job.from_json(job.to_json()) == job


def test_on_cuda_host_copies_are_timed_in_the_same_rounds(monkeypatch):
    opened = []
    monkeypatch.setattr(worker, "share_threads", lambda threads: None)
    monkeypatch.setattr(worker, "open_session", lambda path, *_, **__: opened.append(path.name) or path.name)
    monkeypatch.setattr(worker, "random_inputs", lambda *_: {})
    monkeypatch.setattr(worker, "run_call", lambda session, *_: lambda: time.sleep(0.001))
    monkeypatch.setattr(worker, "host_call", lambda session, *_: lambda: time.sleep(0.004))
    result = worker.time_models(Job(["a", "b"], "cuda", 1, [(1, 8)], 0.05, seed=0, first=1))
    assert opened == ["b", "a"]
    assert result["ms"].shape[1] == 4
    assert (np.median(result["ms"], axis=0) > [1, 1, 4, 4]).all()
    assert (result["cold_ms"] >= 1).all()


@pytest.mark.parametrize("sessions", [1, 2])
def test_throughput_adds_up_over_sessions(monkeypatch, sessions):
    monkeypatch.setattr(worker, "open_session", lambda *_: None)
    monkeypatch.setattr(worker, "random_inputs", lambda *_: {})
    monkeypatch.setattr(worker, "run_call", lambda *_: lambda: time.sleep(0.005))
    job = Job(["a"], "cpu", 1, [(4, 8)], 0.2, seed=0, sessions=sessions)
    (rate,) = worker.count_examples(job)["examples_per_second"]
    assert 0.5 * sessions * 800 < rate <= sessions * 800

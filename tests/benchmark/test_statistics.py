"""Intervals that hold: simulated machines with drift, neighbours and processes that differ."""

import numpy as np
import pytest

from compressor.benchmark.statistics import (
    Interval,
    is_noisy,
    median_interval,
    paired_interval,
    ratio_interval,
    scatter,
)


def simulated(rng, processes=6, rounds=60, between=0.0, drift=0.0, spikes=0.0, ratio=1.0):
    """Timings of two models: shared drift (an AR(1) of that size), own noise, spikes, a shift per process."""
    common = rng.standard_normal((processes, rounds)) * drift
    for number in range(1, rounds):
        common[:, number] = 0.95 * common[:, number - 1] + np.sqrt(1 - 0.95**2) * common[:, number]
    logs = common[..., None] + 0.03 * rng.standard_normal((processes, rounds, 2))
    logs += np.log(3.0) * (rng.random((processes, rounds, 2)) < spikes)
    logs[..., 1] += between * rng.standard_normal((processes, 1)) - np.log(ratio)
    return list(10 * np.exp(logs))


@pytest.mark.parametrize(
    "world",
    [
        {},
        {"drift": 0.5},
        {"spikes": 0.2},
        {"between": 0.02, "drift": 0.3, "spikes": 0.05},
        {"between": 0.05, "processes": 3},
    ],
    ids=str,
)
def test_the_interval_contains_the_true_ratio_in_its_share_of_worlds(world):
    rng = np.random.default_rng(0)
    hits = []
    for seed in range(200):
        interval = ratio_interval(simulated(rng, ratio=2.0, **world), seed)
        hits.append(interval.low <= 2.0 <= interval.high)
    assert np.mean(hits) >= 0.9


def test_differences_between_processes_widen_the_interval():
    rng = np.random.default_rng(0)
    alike = np.mean([ratio_interval(simulated(rng)).half_width for _ in range(30)])
    unlike = np.mean([ratio_interval(simulated(rng, between=0.03)).half_width for _ in range(30)])
    assert unlike > 2 * alike


def test_drift_that_both_models_share_does_not_widen_it():
    rng = np.random.default_rng(0)
    still = np.mean([ratio_interval(simulated(rng)).half_width for _ in range(30)])
    drifting = np.mean([ratio_interval(simulated(rng, drift=0.5)).half_width for _ in range(30)])
    assert drifting < 1.2 * still


def test_processes_that_agree_by_chance_do_not_make_it_narrow():
    rng = np.random.default_rng(0)
    rounds = simulated(rng, rounds=40)[0]
    once, copies = ratio_interval([rounds] * 6), ratio_interval([rounds[::-1]] * 6)
    assert once.half_width > 0.002
    assert copies.half_width > 0.002


def test_stretches_of_alike_runs_widen_the_median():
    rng = np.random.default_rng(0)
    times = [np.exp(np.repeat(rng.standard_normal(10), 10)) for _ in range(6)]
    shuffled = [rng.permutation(run) for run in times]
    # the same values, so the processes' medians are the same: only the blocks can tell
    within = [np.concatenate(times)] * 6, [np.concatenate(shuffled)] * 6
    assert median_interval(within[0]).half_width > 1.5 * median_interval(within[1]).half_width


def test_the_estimates_themselves():
    processes = [np.array([[10.0, 5.0]] * 20), np.array([[20.0, 10.0]] * 20)]
    ratio = ratio_interval(processes)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert median_interval([rounds[:, 0] for rounds in processes]).value == pytest.approx(np.sqrt(200))
    assert scatter([np.array([9.0, 11.0])]) == pytest.approx(0.1)


def test_one_process_gives_no_interval():
    with pytest.raises(ValueError, match="two processes"):
        ratio_interval([np.ones((20, 2))])


def test_what_is_called_noisy():
    narrow, wide = Interval(2.0, 1.95, 2.05), Interval(2.0, 1.8, 2.2)
    assert not is_noisy(narrow, 0.1, 0.2)
    assert is_noisy(wide, 0.1)
    assert is_noisy(narrow, 0.1, 0.4)


def test_the_paired_interval_sees_that_both_models_fail_on_the_same_examples():
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.3
    a = ~hard
    b = a & (rng.random(400) > 0.02)
    low, high = paired_interval(lambda rows: a[rows].mean(), lambda rows: b[rows].mean(), 400)
    assert 0 <= low <= a.mean() - b.mean() <= high
    assert high - low < 0.04  # unpaired it would be +-6 %


def test_the_paired_interval_is_honest():
    rng = np.random.default_rng(0)
    hits = []
    for seed in range(150):
        a, b = rng.random(200) < 0.85, rng.random(200) < 0.8
        low, high = paired_interval(lambda r, a=a: a[r].mean(), lambda r, b=b: b[r].mean(), 200, 300, seed)
        hits.append(low <= 0.05 <= high)
    assert np.mean(hits) >= 0.9

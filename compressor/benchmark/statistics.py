"""Medians and ratios with 95 % intervals that hold on a busy machine.

Two things make timings differ: what happens from run to run inside a process (often in stretches, so
neighbouring runs are alike), and what differs from one process to the next (where memory and threads came to
lie). The second is often the larger, and no number of runs in one process shows it. So every estimate is made
per process, and the interval takes the wider of two half-widths:

- between processes: Student's t on the processes' estimates, which contains both kinds of variation;
- within processes: a bootstrap of blocks of adjacent rounds, a floor for when few processes agree by chance.

All of it happens on logarithms, because timings vary by factors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 200
TRIM = 0.1
NOISY_WIDTH = 0.05
"""An interval wider than +-5 % is called noisy."""
NOISY_CV = 0.25
"""So is a comparison in which the runs of a model scatter by more than this around their median."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, in the unit of what was estimated."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's width as a fraction of the value."""
        return (self.high - self.low) / 2 / self.value


def ratio_interval(processes: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """How many times faster the second model is than the first.

    `processes`: one array a process, [rounds, 2] in any unit of time; a round holds one run of each model,
    made one right after the other. The estimate is the mean of log(first / second) over rounds without the
    top and bottom tenth, averaged over processes. On a quiet machine that is the ratio of the medians. On a
    busy one it scatters four times less (4 % against 15 % from process to process, 1.5 s each, beside a
    one-thread hog), since what disturbs a round mostly disturbs both its runs, while each median jumps alone
    between fast and slow stretches.
    """
    return _interval([np.log(rounds[:, 0] / rounds[:, 1]) for rounds in processes], trimmed_mean, seed)


def median_interval(processes: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """The median run time: the geometric mean of the processes' medians. `processes`: [rounds] times each."""
    return _interval([np.log(rounds) for rounds in processes], lambda logs: np.median(logs, axis=-1), seed)


def is_noisy(ratio: Interval, *cvs: float) -> bool:
    """Whether to warn of a comparison: an interval wider than +-5 %, or runs that scatter by over 25 %."""
    return ratio.half_width > NOISY_WIDTH or max(cvs, default=0.0) > NOISY_CV


def scatter(processes: Sequence[np.ndarray]) -> float:
    """Coefficient of variation of the runs inside their process. `processes`: [rounds] each."""
    return float(np.sqrt(np.mean([np.var(rounds) / np.mean(rounds) ** 2 for rounds in processes])))


def paired_interval(
    score_a: Callable[[np.ndarray], float],
    score_b: Callable[[np.ndarray], float],
    n: int,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % bootstrap interval of score_a - score_b over the same `n` examples.

    Each score takes an array of row numbers (with repetitions) and returns the metric on those rows.
    """
    rng = np.random.default_rng(seed)
    rows = (rng.integers(0, n, n) for _ in range(resamples))
    differences = [score_a(chosen) - score_b(chosen) for chosen in rows]
    low, high = np.nanquantile(differences, [0.025, 0.975])
    return float(low), float(high)


def relative(times: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Times [rounds, ...] over the median of all that used the same input shape; `shapes` [rounds]."""
    medians = {shape: np.median(times[shapes == shape], axis=0) for shape in np.unique(shapes)}
    made: np.ndarray = times / np.array([medians[shape] for shape in shapes])
    return made


def trimmed_mean(values: np.ndarray) -> np.ndarray:
    """Mean along the last axis without the top and bottom tenth."""
    cut = int(values.shape[-1] * TRIM)
    return np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)


def _interval(
    processes: Sequence[np.ndarray], estimate: Callable[[np.ndarray], np.ndarray], seed: int
) -> Interval:
    """The mean of `estimate` over processes of log values, with its interval, both brought back from logs."""
    count = len(processes)
    if count < 2:
        raise ValueError("an interval needs at least two processes")
    rng = np.random.default_rng(seed)
    estimates = np.array([estimate(logs) for logs in processes])
    spread = np.std(estimates, ddof=1) / np.sqrt(count)
    within = np.sqrt(np.mean([_block_variance(logs, estimate, rng) for logs in processes]) / count)
    half = max(stdtrit(count - 1, 0.975) * spread, 1.96 * within)
    centre = estimates.mean()
    low, value, high = np.exp([centre - half, centre, centre + half])
    return Interval(float(value), float(low), float(high))


def _block_variance(
    logs: np.ndarray, estimate: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> float:
    """Variance of `estimate` over resamples of blocks of sqrt(n) adjacent rounds (the ends are joined)."""
    n = len(logs)
    length = max(1, round(np.sqrt(n)))
    starts = rng.integers(0, n, (RESAMPLES, -(-n // length), 1))
    rows = (starts + np.arange(length)).reshape(RESAMPLES, -1)[:, :n] % n
    return float(np.var(estimate(logs[rows]), ddof=1))

"""The smoothest rising line that goes through measured times, as far as these are certain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

STIFFNESS = 10.0 ** np.arange(3, -5, -1)
"""Weights of the bends, tried from the greatest."""
SURE = 1e-3
"""No time is known better than by this share of the greatest."""

Array = NDArray[np.float64]


def rising_line(x: Sequence[float], y: Sequence[float], deviation: Sequence[float]) -> Array:
    """Values at `x` (ascending) that never fall, with as few bends as `y`, with its standard `deviation`, allows.

    Bends (changes of slope) are penalised as strongly as the mean squared deviation from `y` stays within what
    chance explains (the discrepancy principle). A line through every reading would hand the noise on to whoever looks
    for the cheapest point of it.
    """
    times, widths = np.array(y, float), np.array(x, float)
    if len(widths) < 3:
        return np.maximum.accumulate(times)
    sigma = np.maximum(np.array(deviation, float), SURE * max(np.abs(times).max(), 1e-12))
    gaps = np.diff(widths)
    # Unknown are the first value and the slopes, so that a bound on each says that the line rises.
    values = np.column_stack([np.ones(len(widths)), np.tril(np.ones((len(widths), len(gaps))), -1) * gaps])
    typical = max(np.ptp(times), sigma.max()) / (widths[-1] - widths[0])
    bends = np.column_stack([np.zeros(len(gaps) - 1), np.diff(np.eye(len(gaps)), axis=0)]) / typical
    low = np.array([-np.inf, *np.zeros(len(gaps))])
    for weight in STIFFNESS:
        matrix = np.vstack([values / sigma[:, None], weight * bends])
        target = np.concatenate([times / sigma, np.zeros(len(bends))])
        line: Array = values @ lsq_linear(matrix, target, (low, np.inf), method="bvls").x
        if np.mean(((line - times) / sigma) ** 2) <= 1:
            break
    return line

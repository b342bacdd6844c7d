"""The smoothest rising line through uncertain times."""

import numpy as np
import pytest

from compressor.benchmark.latency_smooth import rising_line

WIDTHS = [16, 32, 64, 112, 160, 208, 272, 368, 480, 640, 864, 1152, 1520, 1536]
TRUE = 0.06 + 5e-4 * np.array(WIDTHS)


@pytest.mark.parametrize("deviation", [0.0, 0.02])
def test_a_straight_line_stays_as_it_is(deviation: float) -> None:
    np.testing.assert_allclose(rising_line(WIDTHS, TRUE, [deviation] * len(WIDTHS)), TRUE, rtol=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_it_rises_and_is_nearer_to_the_truth_than_the_readings(seed: int) -> None:
    read = TRUE + np.random.default_rng(seed).normal(0, 0.03, len(WIDTHS))
    line = rising_line(WIDTHS, read, [0.03] * len(WIDTHS))
    assert (np.diff(line) >= -1e-12).all()
    assert np.mean((line - TRUE) ** 2) < np.mean((read - TRUE) ** 2)


def test_bends_that_are_certain_are_kept() -> None:
    bent = np.maximum(0.2, 5e-4 * np.array(WIDTHS))
    line = rising_line(WIDTHS, bent, [1e-4] * len(WIDTHS))
    np.testing.assert_allclose(line, bent, atol=3e-3)


def test_what_is_certain_counts_for_more() -> None:
    read = TRUE.copy()
    read[5] += 0.1
    deviation = np.full(len(WIDTHS), 0.001)
    deviation[5] = 0.1
    np.testing.assert_allclose(rising_line(WIDTHS, read, deviation), TRUE, atol=0.005)


def test_two_points_are_a_line() -> None:
    assert rising_line([1, 2], [0.3, 0.2], [0.0, 0.0]).tolist() == [0.3, 0.3]

"""Structured second-order pruning against brute force on small maps."""

import itertools

import pytest
import torch
from torch import Tensor

from compressor.pruning.speed.obs import LeastSquares, _columns, damped, removal_order


def energy(weight: Tensor, matrix: Tensor) -> float:
    """tr(W C W'): the mean squared output of a map, summed over rows."""
    return float(((weight @ matrix) * weight).sum())


def problem(units: int, size: int, out: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated inputs (samples, d), their covariance, and a map."""
    random = torch.Generator().manual_seed(seed)
    d = units * size
    inputs = torch.randn(200, d, generator=random, dtype=torch.float64)
    inputs = inputs @ torch.randn(d, d, generator=random, dtype=torch.float64) + 0.5
    weight = torch.randn(out, d, generator=random, dtype=torch.float64)
    return inputs, torch.cov(inputs.T, correction=0), weight


def best_without(covariance: Tensor, weight: Tensor, kept: list[int], size: int) -> tuple[Tensor, float]:
    """The least-squares weights on the kept units by the normal equations, and their squared error."""
    matrix = damped(covariance)
    at = _columns(torch.tensor(kept, dtype=torch.long), size)
    solved = torch.zeros_like(weight)
    if kept:
        solved[:, at] = weight @ matrix[:, at] @ torch.linalg.inv(matrix[at][:, at])
    return solved, energy(weight - solved, matrix)


@pytest.mark.parametrize(("units", "size"), [(7, 1), (4, 3), (6, 2)])
def test_every_removal_is_the_best_one_of_all_that_are_left(units: int, size: int) -> None:
    _, covariance, weight = problem(units, size)
    order, growth = removal_order(covariance, weight, size)
    assert sorted(order) == list(range(units))
    left = list(range(units))
    before = 0.0
    for unit, grown in zip(order, growth, strict=True):
        errors = {u: best_without(covariance, weight, [v for v in left if v != u], size)[1] for u in left}
        assert min(errors, key=errors.__getitem__) == unit
        assert grown == pytest.approx(errors[unit] - before, rel=1e-8, abs=1e-9)
        before = errors[unit]
        left.remove(unit)


@pytest.mark.parametrize(("units", "size", "block"), [(9, 1, 1), (40, 1, 8), (5, 4, 1), (12, 2, 4)])
def test_the_growth_adds_up_to_the_error_and_the_solution_is_least_squares(
    units: int, size: int, block: int
) -> None:
    _, covariance, weight = problem(units, size, seed=units)
    order, growth = removal_order(covariance, weight, size, block)
    assert sorted(order) == list(range(units))
    solver = LeastSquares(weight, torch.zeros(5), torch.zeros(units * size), covariance, order, size)
    for count in range(units + 1):
        expected, error = best_without(covariance, weight, solver.kept(count), size)
        torch.testing.assert_close(solver.solve(count)[0], expected, rtol=1e-7, atol=1e-9)
        assert sum(growth[: units - count]) == pytest.approx(error, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("size", [1, 3])
def test_least_squares_do_what_scales_of_the_kept_units_do_and_more(size: int) -> None:
    """Mask tuning (Kwon et al. 2022) only scales what each kept unit gives: 1 each where nothing was removed."""
    units = 6
    inputs, covariance, weight = problem(units, size)
    mean, bias = inputs.mean(dim=0), torch.zeros(len(weight), dtype=torch.float64)
    order = removal_order(covariance, weight, size)[0]
    solver = LeastSquares(weight, bias, mean, covariance, order, size)
    around = inputs - mean
    wanted = (around @ weight.T).flatten()
    for count in range(1, units + 1):
        kept = solver.kept(count)
        parts = [_columns(torch.tensor([unit]), size) for unit in kept]
        given = torch.stack([(around[:, at] @ weight[:, at].T).flatten() for at in parts], dim=1)
        scales = torch.linalg.lstsq(given, wanted).solution
        solved = solver.solve(count)[0]
        left = (around @ solved.T).flatten() - wanted
        assert left.square().mean() <= (given @ scales - wanted).square().mean() * (1 + 1e-3) + 1e-6
        if count == units:
            torch.testing.assert_close(scales, torch.ones_like(scales))
            torch.testing.assert_close(solved, weight, rtol=1e-6, atol=1e-6)


def test_blocks_choose_nearly_as_well_as_one_at_a_time() -> None:
    _, covariance, weight = problem(64, 1, seed=3)
    exact = torch.tensor(removal_order(covariance, weight, 1, 1)[1]).cumsum(0)
    blocks = torch.tensor(removal_order(covariance, weight, 1, 8)[1]).cumsum(0)
    assert (blocks[15:] <= 1.2 * exact[15:]).all()


def test_uncorrelated_inputs_need_no_update_and_score_by_norm_times_variance() -> None:
    variance = torch.tensor([4.0, 1.0, 0.25, 9.0], dtype=torch.float64)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order, growth = removal_order(torch.diag(variance), weight, 1)
    scores = weight.square().sum(0) * damped(torch.diag(variance)).diagonal()
    assert order == scores.argsort().tolist()
    assert growth == pytest.approx(scores.sort().values.tolist())
    solver = LeastSquares(weight, torch.zeros(3), torch.zeros(4), torch.diag(variance), order, 1)
    kept = solver.kept(2)
    torch.testing.assert_close(solver.solve(2)[0][:, kept], weight[:, kept])


def test_of_twins_the_first_goes_free_and_the_second_does_not() -> None:
    inputs = 10 * torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    inputs[:, 3] = inputs[:, 1]
    covariance, weight = torch.cov(inputs.T, correction=0), torch.ones(5, 6, dtype=torch.float64)
    for block in (1, 2):
        order, growth = removal_order(covariance, weight, 1, block)
        assert order[0] in (1, 3)
        assert order[1] not in (1, 3)
        assert growth[0] < 0.1 * growth[1]


def test_the_bias_makes_up_for_the_mean() -> None:
    """The same as a constant input that is never removed, on the inputs as they are."""
    inputs, covariance, weight = problem(8, 1, seed=2)
    bias, mean = torch.randn(5, dtype=torch.float64), inputs.mean(0)
    order, _ = removal_order(covariance, weight, 1)
    solver = LeastSquares(weight, bias, mean, covariance, order, 1)
    outputs = inputs @ weight.T + bias
    for count in range(9):
        new, shifted = solver.solve(count)
        change = inputs @ new.T + shifted - outputs
        torch.testing.assert_close(change.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(solver.solve(0)[1], outputs.mean(0))
    ones = torch.cat([inputs[:, solver.kept(4)], torch.ones(len(inputs), 1)], dim=1).double()
    direct = torch.linalg.lstsq(ones, outputs).solution.T
    new, shifted = solver.solve(4)
    ridge = (inputs @ new.T + shifted - outputs).square().sum()
    assert ridge <= 1.05 * (ones @ direct.T - outputs).square().sum()


def test_the_error_grows_with_every_removal_from_0_to_1() -> None:
    _, covariance, weight = problem(10, 2, seed=4)
    order, _ = removal_order(covariance, weight, 2)
    solver = LeastSquares(weight, torch.zeros(5), torch.zeros(20), covariance, order, 2)
    matrix = damped(covariance)
    lost = [energy(weight - solver.solve(count)[0], matrix) for count in range(11)]
    errors = [(one / energy(weight, matrix)) ** 0.5 for one in lost]
    assert errors[10] == pytest.approx(0, abs=1e-9)
    assert errors[0] == pytest.approx(1)
    assert all(more >= less - 1e-12 for more, less in itertools.pairwise(errors))


def test_inputs_that_never_change_go_first_and_change_nothing() -> None:
    inputs = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    inputs[:, 0], inputs[:, 4] = 0.0, 3.0
    covariance, weight = torch.cov(inputs.T, correction=0), torch.ones(5, 6, dtype=torch.float64)
    order, _ = removal_order(covariance, weight, 1)
    assert set(order[:2]) == {0, 4}
    solver = LeastSquares(weight, torch.zeros(5).double(), inputs.mean(0), covariance, order, 1)
    new, bias = solver.solve(4)
    torch.testing.assert_close(inputs @ new.T + bias, inputs @ weight.T)

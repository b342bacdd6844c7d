"""The Lagrangian and the schedule of its target (CoFi specification, 1.6)."""

from itertools import pairwise

import pytest
import torch

from compressor.pruning.lagrangian import Lagrangian, ramp


@pytest.mark.parametrize(("gap", "falls"), [(-0.3, True), (0.2, False)])
def test_multipliers_climb_with_the_gap(gap: float, falls: bool) -> None:
    """lambda1 falls while too little is reached and rises while too much is; lambda2 only grows."""
    lagrangian = Lagrangian()
    optimizer = torch.optim.AdamW([{k: v for k, v in lagrangian.group(0.01).items() if k != "steady"}])
    assert lagrangian(torch.tensor(gap)).item() == 0
    before = (0.0, 0.0)
    for _ in range(5):
        optimizer.zero_grad()
        lagrangian(torch.tensor(gap)).backward()
        optimizer.step()
        now = lagrangian.linear.item(), lagrangian.quadratic.item()
        assert (now[0] < before[0]) is falls
        assert now[1] > before[1]
        before = now


@pytest.mark.parametrize("gap", [-0.4, 0.3])
def test_what_is_constrained_is_pushed_towards_the_target(gap: float) -> None:
    """Once lambda1 has the sign of the gap, a step against the gradient makes the gap smaller."""
    lagrangian, reached = Lagrangian(), torch.tensor(gap, requires_grad=True)
    with torch.no_grad():
        lagrangian.linear.fill_(0.5 if gap > 0 else -0.5)
        lagrangian.quadratic.fill_(1.0)
    lagrangian(reached).backward()
    assert reached.grad is not None
    assert torch.sign(reached.grad) == torch.sign(torch.tensor(gap))


def test_the_target_rises_in_a_line_and_stays() -> None:
    targets = [ramp(step, 20, 0.0, 0.8) for step in range(60)]
    assert targets[0] == 0
    assert targets[10] == pytest.approx(0.4)
    assert all(target == 0.8 for target in targets[20:])
    assert [b - a for a, b in pairwise(targets[:21])] == pytest.approx([0.04] * 20)
    assert ramp(0, 0, 0.0, 0.5) == 0.5
    assert ramp(5, 10, 0.6, 0.8) == pytest.approx(0.7)

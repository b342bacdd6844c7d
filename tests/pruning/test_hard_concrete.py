"""Hard-concrete gates: probabilities, samples and the rule that decides (CoFi specification, 1.2)."""

import math
from itertools import pairwise

import pytest
import torch

from compressor.pruning.cofi.gates import LIMIT, SHARPNESS
from compressor.pruning.hard_concrete import SHIFT, decide, noise_like, open_probability, sample


@pytest.mark.parametrize(
    ("logit", "probability"), [(-4.60517, 0.04713), (-1.598597, 0.5), (0.0, 0.83182), (4.60517, 0.99798)]
)
def test_the_published_probabilities(logit: float, probability: float) -> None:
    assert open_probability(torch.tensor(logit)).item() == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize("logit", [-4.6, -1.6, 0.0, 1.0, 4.6])
def test_samples_are_open_as_often_as_their_probability_says(logit: float) -> None:
    logits = torch.full((200_000,), logit)
    drawn = sample(logits, noise_like(logits, torch.Generator().manual_seed(1)))
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    share = drawn.gt(0).double().mean().item()
    assert share == pytest.approx(open_probability(logits[0]).item(), abs=0.005)
    assert (drawn == 0).any()
    assert (drawn == 1).any()


def test_how_often_a_gate_is_wholly_open() -> None:
    for logit, share in ((LIMIT, 0.953), (0.0, 0.168)):
        logits = torch.full((200_000,), logit)
        drawn = sample(logits, noise_like(logits, torch.Generator().manual_seed(2)))
        assert drawn.eq(1).double().mean().item() == pytest.approx(share, abs=0.005)


def test_the_noise_is_that_of_its_seed_and_the_gradient_goes_to_the_logits() -> None:
    logits = torch.zeros(50, requires_grad=True)
    one, two, other = (noise_like(logits, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    sample(logits, one).sum().backward()
    assert logits.grad is not None
    assert (logits.grad >= 0).all()
    assert (logits.grad > 0).any()


def test_a_row_keeps_as_many_gates_as_are_expected_to_be_open() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 31) * 2
    state = torch.get_rng_state()
    decided = decide(logits, SHARPNESS)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(decided, decide(logits, SHARPNESS))
    for row, found in zip(logits, decided, strict=True):
        zeros = int((found == 0).sum())
        assert zeros == round(31 - open_probability(row.double()).sum().item())
        kept = row[found > 0]
        assert kept.min() >= row[found == 0].max()
        torch.testing.assert_close(found[found > 0], torch.sigmoid(1.2 * kept))
    assert decided.max() < 1


def test_a_gate_of_its_own_flips_where_it_is_as_likely_closed() -> None:
    assert pytest.approx(-1.598597, abs=1e-6) == SHIFT
    assert decide(torch.tensor([[-1.598598]]), SHARPNESS).item() == 0
    assert decide(torch.tensor([[-1.598596]]), SHARPNESS).item() == pytest.approx(0.128, abs=1e-3)
    assert decide(torch.tensor([[LIMIT]]), SHARPNESS).item() == pytest.approx(0.996, abs=1e-3)


def test_more_likely_gates_are_never_fewer() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 40)
    counts = [decide(logits + by, SHARPNESS).ne(0).sum(-1) for by in torch.linspace(-6, 6, 40).tolist()]
    assert all((a <= b).all() for a, b in pairwise(counts))
    shifted = decide(logits, SHARPNESS, shift=-1.0)
    assert torch.equal(shifted.ne(0), decide(logits - 1, SHARPNESS).ne(0))
    assert torch.equal(shifted[shifted > 0], torch.sigmoid(1.2 * logits[shifted > 0]))


def test_equal_gates_go_in_their_order_and_some_can_be_made_to_stay() -> None:
    logits = torch.full((1, 4), SHIFT)
    assert decide(logits, SHARPNESS)[0].ne(0).tolist() == [False, False, True, True]
    assert decide(torch.full((2, 5), -9.0), SHARPNESS).count_nonzero() == 0
    assert decide(torch.full((2, 5), -9.0), SHARPNESS, least=1).count_nonzero() == 2
    logits = torch.linspace(-4, 4, 20).unsqueeze(0)
    assert decide(logits, SHARPNESS).count_nonzero() == 14
    aligned = decide(logits, SHARPNESS, multiple=8)
    assert aligned.count_nonzero() == 16
    assert (aligned[0, 4:] > 0).all()
    assert decide(logits, SHARPNESS, multiple=32).count_nonzero() == 20
    assert decide(torch.full((1, 20), -9.0), SHARPNESS, multiple=8).count_nonzero() == 0
    assert math.isclose(LIMIT, 4.60517, abs_tol=1e-5)

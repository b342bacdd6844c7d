"""Keeping the best state of a run: what is rated when, ties, what does not count, and a break in between."""

from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.training.trainer import train
from tests.training.test_training import rows, run_of
from tests.zoo import tiny_model


def trained(
    folder: Path, scores: list[float | None], stop_at: float = 2.0, **extra: Any
) -> tuple[Any, list[Any]]:
    """A model trained for 15 steps, rated every 3 of them (5 times) with these scores; its states then."""
    model, states = tiny_model("bert"), []
    run = run_of(folder, rows(), evaluate_every=3, **extra)

    def score() -> float | None:
        assert run.score is not None
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return scores[len(states) - 1]

    def progress(_what: str, share: float) -> None:
        if share > stop_at:
            raise KeyboardInterrupt

    run.score, run.progress = score, progress
    train(model, run)
    return model, states


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.5, 0.3, 0.2, 0.4], 1),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 4),
        ([None, 0.5, 0.5, None, 0.5], 1),
        ([-3.0, -2.0, None, -2.5, -9.0], 1),
        ([None, None, None, None, None], 4),
    ],
)
def test_the_first_of_the_best_states_is_the_one_that_stays(
    scores: list[float | None], best: int, tmp_path: Path
) -> None:
    model, states = trained(tmp_path, scores)
    assert len(states) == 5
    assert not same(states[0], states[1])
    assert same(model.state_dict(), states[best])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rating_does_not_disturb_the_training_nor_does_a_break(accumulation: int, tmp_path: Path) -> None:
    extra = {"gradient_accumulation": accumulation}
    alone = tiny_model("bert")
    train(alone, run_of(tmp_path / "alone", rows(), **extra))
    rising, falling = [0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.9, 0.3, 0.4, 0.5]
    last, _ = trained(tmp_path / "last", rising, **extra)
    assert same(alone.state_dict(), last.state_dict())
    whole, states = trained(tmp_path / "whole", falling, **extra)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", falling, stop_at=0.7, **extra)
    again, more = trained(tmp_path / "broken", falling[3:] + [None] * 3, **extra)
    assert len(more) < len(states)
    assert same(whole.state_dict(), again.state_dict())


def test_a_share_of_the_steps(tmp_path: Path) -> None:
    assert run_of(tmp_path, rows(), evaluate_every=0.2).evaluate_every == 3
    assert run_of(tmp_path, rows(), evaluate_every=0.001).evaluate_every == 1
    assert run_of(tmp_path, rows()).evaluate_every == 0

"""LAMB by hand, and in a training run with its schedule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compressor.schema import TrainingKeys, json_of
from compressor.training.lamb import Lamb
from compressor.training.trainer import _Trainer, train
from tests.training.test_training import rows, run_of
from tests.zoo import tiny_model


def test_two_steps_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([3.0, -4.0]))
    optimizer = Lamb([weight], lr=0.1, weight_decay=0.5)
    by_hand = weight.detach().double().clone()
    first, second = torch.zeros(2).double(), torch.zeros(2).double()
    for grad in ([1.0, 2.0], [-0.5, 0.1]):
        weight.grad = torch.tensor(grad)
        optimizer.step()
        g = weight.grad.double()
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        update = first / (second.sqrt() + 1e-8) + 0.5 * by_hand
        by_hand = by_hand - 0.1 * by_hand.norm() / (update.norm() + 1e-8) * update
        torch.testing.assert_close(weight.detach().double(), by_hand, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("start", "moved"), [(0.0, 1.0), (3.0, 3.0), (300.0, 10.0)])
def test_a_step_is_as_long_as_the_weights_up_to_ten(start: float, moved: float) -> None:
    """From zero it is Adam's own first step, 0.1 / sqrt(0.001)."""
    weight = nn.Parameter(torch.tensor([start]))
    weight.grad = torch.tensor([7.0])
    Lamb([weight], lr=0.1).step()
    expected = 0.1 * (moved if start else 0.1 / 0.001**0.5)
    assert start - weight.item() == pytest.approx(expected, rel=1e-4)


def test_a_group_can_climb() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    weight.grad = torch.tensor([1.0])
    Lamb([{"params": [weight], "maximize": True}], lr=0.1).step()
    assert weight.item() == pytest.approx(3.3, rel=1e-5)


def test_it_trains_with_a_cosine_that_ends_at_a_share(tmp_path: Path) -> None:
    features = rows()
    run = run_of(
        tmp_path,
        features,
        optimizer="lamb",
        schedule="cosine",
        final_rate=0.1,
        warmup=5,
        learning_rate=0.01,
        epochs=20,
    )
    losses = [row["loss"] for row in train(tiny_model("bert"), run)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    trainer = _Trainer(tiny_model("bert"), run_of(tmp_path / "2", features, **_given(run.keys)))
    trainer.hook.remove()
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, Lamb)
    scheduler = trainer.create_scheduler(100, optimizer)
    rates: list[float] = []
    for _ in range(100):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates[4] == pytest.approx(0.01)
    assert rates[51] == pytest.approx(0.0055, rel=0.03)
    assert rates[-1] == pytest.approx(0.001)


def _given(keys: TrainingKeys) -> dict[str, Any]:
    return {name: getattr(keys, name) for name in keys.model_fields_set}


def test_trainings_of_before_keep_what_identifies_them() -> None:
    assert not {"optimizer", "final_rate"} & set(json_of(TrainingKeys()))
    assert json_of(TrainingKeys(optimizer="lamb"))["optimizer"] == "lamb"


def test_a_final_rate_is_for_the_cosine() -> None:
    with pytest.raises(ValidationError, match="is for schedule cosine"):
        TrainingKeys(final_rate=0.1)

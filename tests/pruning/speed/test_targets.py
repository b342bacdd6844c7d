"""Targets other than a time in fp32: a loss, int8, whichever precision loses less; and speeds in several steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compressor.errors import GateError, UserError
from compressor.models.structure import Structure
from compressor.pruning.speed.bounded import NEAR, Bounded
from compressor.pruning.target import Target
from tests.pruning.speed.stand_in import StandIn, Table
from tests.pruning.speed.test_speed import keys, pruned

TRAINING = {"epochs": 1.0, "learning_rate": 1e-4}


def speedup(structure: Structure, precision: str = "fp32", over: str = "fp32") -> float:
    return Table(precision=over).dense_ms / Table(precision=precision).time(structure)


class Losses:
    """Loses `slope` for every unit of speed above 1; a search saves `saved` of it."""

    def __init__(self, allowed: float, slope: float = 0.01, saved: float = 0.0) -> None:
        self.slope, self.saved = slope, saved
        self.search = Bounded(allowed, self.choose, lambda speed: np.zeros(1), self.drop)

    def choose(self, speed: float, coefficients: Any) -> Any:
        return {"speed": speed, "searched": coefficients[0] == 0}

    def drop(self, choice: Any) -> float:
        return self.slope * (choice["speed"] - 1) * (1 - self.saved * choice["searched"])


@pytest.mark.parametrize("allowed", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("saved", [-0.5, 0.0, 0.05])
def test_it_is_the_highest_speed_that_loses_so_little(allowed: float, saved: float) -> None:
    losses = Losses(allowed, saved=saved)
    found = losses.search.furthest(np.ones(1), 12.0)
    assert losses.drop(found) <= allowed
    exact = 1 + allowed / 0.01
    assert exact / NEAR <= found["speed"]
    tried = {row["speedup"]: row["drop"] for row in losses.search.tried}
    assert min(loss for speed, loss in tried.items() if speed > found["speed"]) > allowed


def test_where_every_speed_is_within_it_is_the_highest() -> None:
    assert Losses(1.0).search.furthest(np.ones(1), 12.0)["speed"] >= 12.0 / NEAR


def test_a_loss_that_cannot_be_met_shows_the_curve() -> None:
    losses = Losses(0.0)
    with pytest.raises(
        GateError, match=r"cannot be met without training: on the selection split .* points at 1\.0"
    ):
        losses.search.furthest(np.ones(1), 12.0)


def test_the_fastest_model_within_a_loss(tmp_path: Path) -> None:
    context = StandIn(tmp_path, max_metric_drop=[0.02, 0.1])
    context.harm = lambda structure, _: 0.03 * (speedup(structure) - 1)
    family = pruned(context)
    assert [one.member for one in family] == ["d2", "d10"]
    for one, allowed in zip(family, (0.02, 0.1), strict=True):
        assert context.harm(one.structure, "fp32") <= allowed
        exact = 1 + allowed / 0.03
        assert exact / (NEAR * 1.05) <= one.report["measured"]["speedup"] <= exact
        assert len(one.report["tried"]) >= 5


@pytest.mark.parametrize(("relative", "over"), [("dense-fp32", "fp32"), ("same-precision", "int8")])
def test_a_speedup_of_int8(relative: str, over: str, tmp_path: Path) -> None:
    context = StandIn(tmp_path, speedup=2.5, at={"precision": "int8", "relative_to": relative})
    (one,) = pruned(context)
    assert one.report["precision"] == "int8"
    assert 2.5 <= speedup(one.structure, "int8", over) <= 2.6
    assert one.report["measured"]["speedup"] == pytest.approx(speedup(one.structure, "int8", over))


@pytest.mark.parametrize("better", ["fp32", "int8"])
def test_structure_and_precision_are_chosen_together(better: str, tmp_path: Path) -> None:
    context = StandIn(tmp_path, speedup=3.0, at={"precision": "auto"})
    context.harm = lambda _, precision: 0.01 if precision == better else 0.02
    (one,) = pruned(context)
    assert one.report["precision"] == better
    assert 3.0 <= speedup(one.structure, better) <= 3.1
    (other,) = one.report["others"].values()
    assert one.report["compared"] == pytest.approx(other + 0.01)


def test_a_speed_that_one_precision_cannot_reach_is_reached_in_the_other(tmp_path: Path) -> None:
    fastest = Table().dense_ms / (Table.base_ms + min(Table().attention.at(1), Table().ffn.at(4)))
    context = StandIn(tmp_path, speedup=0.98 * fastest, at={"precision": "auto"})
    (one,) = pruned(context)
    assert one.report["precision"] == "fp32"
    with pytest.raises(UserError, match="cannot be reached"):
        pruned(StandIn(tmp_path, speedup=1.1 * fastest, at={"precision": "auto"}))


def test_of_two_precisions_within_a_loss_the_faster_is_taken(tmp_path: Path) -> None:
    context = StandIn(tmp_path, max_metric_drop=0.05, at={"precision": "auto"})
    context.harm = lambda structure, _: 0.02 * (speedup(structure) - 1)
    (one,) = pruned(context)
    assert one.report["measured"]["speedup"] == pytest.approx(speedup(one.structure, one.report["precision"]))
    assert one.report["measured"]["speedup"] >= 0.95 * (1 + 0.05 / 0.02)


def test_precisions_are_compared_by_one_dense_model() -> None:
    with pytest.raises(ValidationError, match="over dense-fp32"):
        Target(speedup=2.0, at={"precision": "auto", "relative_to": "same-precision"})


def test_steps_go_to_a_speed_by_way_of_lower_ones(tmp_path: Path) -> None:
    context = StandIn(tmp_path, speedup=4.0)
    (one,) = pruned(context, steps=3, **TRAINING)
    between = [speedup(structure) for structure in context.trained]
    assert between == pytest.approx([4 ** (1 / 3), 4 ** (2 / 3)], rel=0.05)
    first, second = context.trained
    assert second.within(first)
    assert one.structure.within(second)
    assert 4.0 <= speedup(one.structure) <= 4.25


def test_a_step_that_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    first, second = StandIn(tmp_path, speedup=3.0), StandIn(tmp_path, speedup=3.0)
    (one,), (two,) = (pruned(context, steps=2, **TRAINING) for context in (first, second))
    assert len(first.trained) == 1
    assert not second.trained
    assert one.structure == two.structure


def test_nothing_is_trained_in_one_step() -> None:
    assert keys().training is None
    with pytest.raises(ValidationError, match=r"`epochs` is for training between `steps`"):
        keys(epochs=2.0)
    made = keys(steps=3, **TRAINING)
    assert made.training is not None
    assert made.training.learning_rate == 1e-4


def test_steps_do_not_go_to_a_loss() -> None:
    with pytest.raises(UserError, match="steps"):
        keys(steps=2).check_target(None, Target(max_metric_drop=0.01))  # type: ignore[arg-type]

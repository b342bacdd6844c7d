"""The method as a whole on tiny models: exactness, targets, families of targets, one database, every score."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compressor.errors import GateError, UserError
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.pruning.speed import Speed
from compressor.pruning.speed.divergence import Probe
from compressor.pruning.speed.scores import ORDERS
from tests.pruning.speed.stand_in import StandIn, Table
from tests.zoo import HEAD_CLASSES, TIMED, logits, padded_batch


def keys(**given: Any) -> Speed:
    return Speed(**({"method": "speed", "search": 4} | given))


def pruned(context: StandIn, **given: Any) -> list[Any]:
    """All members, each with a copy of its weights: they are made in the same model."""
    found = []
    for one in keys(**given).prune(context.model(), context):
        one.state = {name: value.clone() for name, value in one.model.state_dict().items()}
        found.append(one)
    return found


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *((family, "text-classification") for family in TIMED),
        *(("bert", task) for task in list(HEAD_CLASSES)[1:]),
    ],
)
def test_it_is_as_fast_as_asked_and_slices_exactly(family: str, task: str, tmp_path: Path) -> None:
    context = StandIn(tmp_path, family, task)
    (one,) = keys().prune(context.model(), context)
    assert 2 <= Table().dense_ms / Table().time(one.structure) <= 2.1
    inputs = padded_batch(family, 5, 17, seed=7)
    with Gates(one.model, one.structure):
        expected = logits(one.model, inputs)
    small = slice_model(one.model, one.structure)
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=0)
    assert one.report["divergence"] > 0
    assert one.report["measured"]["reach"] >= 1


def test_a_table_that_is_wrong_is_corrected_by_measuring(tmp_path: Path) -> None:
    context = StandIn(tmp_path, slower=1.25)
    (one,) = pruned(context)
    assert one.report["measured"]["reach"] >= 1
    assert len(one.report["attempts"]) > 1
    assert len(context.measured) == 1 + len(one.report["attempts"])  # the last one twice


def test_one_database_serves_every_target(tmp_path: Path) -> None:
    context = StandIn(tmp_path, speedup=[1.3, 2.0, 3.0])
    family = pruned(context)
    assert [one.member for one in family] == ["1.3x", "2x", "3x"]
    times = [Table().time(one.structure) for one in family]
    assert times == sorted(times, reverse=True)
    losses = [one.report["divergence"] for one in family]
    assert losses == sorted(losses)
    assert context.told.count("calibrate") == 1
    other = StandIn(tmp_path, speedup=2.0)
    (again,) = pruned(other)
    assert "calibrate" not in other.told
    assert again.structure == family[1].structure
    assert all(torch.equal(value, family[1].state[name]) for name, value in again.state.items())


def test_milliseconds(tmp_path: Path) -> None:
    (one,) = pruned(StandIn(tmp_path, latency_ms=9.0))
    assert 8.7 <= Table().time(one.structure) <= 9.0


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    (one,), (two,) = pruned(StandIn(first)), pruned(StandIn(second))
    assert one.structure == two.structure
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())


def test_what_cannot_be_reached_says_how_far_it_can_go(tmp_path: Path) -> None:
    curve = r"The furthest is 11\.6x; 1\.\d+x with 50% of every sub-layer, .*x with 10% of every sub-layer"
    with pytest.raises(UserError, match=rf"target.speedup 40 cannot be reached.*{curve}"):
        pruned(StandIn(tmp_path, speedup=[2.0, 40.0]))
    with pytest.raises(UserError, match=r"target.latency_ms 0.5 cannot be reached.*The furthest is 1\.9 ms"):
        pruned(StandIn(tmp_path, latency_ms=0.5))


def test_what_was_measured_short_of_the_target_is_no_success(tmp_path: Path) -> None:
    context = StandIn(tmp_path, speedup=8.0, slower=2.0)
    with pytest.raises(
        GateError,
        match=r"target.speedup 8 was not reached: \d fp32 models .*x instead of .*measures",
    ):
        pruned(context)


@pytest.mark.parametrize("score", ORDERS)
def test_every_score(score: str, tmp_path: Path) -> None:
    (one,) = pruned(StandIn(tmp_path), score=score)
    assert Table().dense_ms / Table().time(one.structure) >= 2


def test_second_order_loses_less_than_chance(tmp_path: Path) -> None:
    losses = {}
    for score in ("second-order", "random"):
        (one,) = pruned(StandIn(tmp_path), score=score, recover=False)
        losses[score] = one.report["divergence"]
    assert losses["second-order"] < losses["random"]


def test_recovery_never_makes_it_worse(tmp_path: Path) -> None:
    (plain,) = pruned(StandIn(tmp_path), recover=False)
    context = StandIn(tmp_path)
    (one,) = keys().prune(context.model(), context)
    probe = Probe(context.model(), context.sample("selection", 1, 1))
    probe.model = one.model
    with Gates(one.model, one.structure):
        found = probe.loss()
    assert found <= plain.report["divergence"] + 1e-9
    assert found == pytest.approx(min(one.report["divergence"], one.report["recovered"]), rel=1e-4)


def test_a_model_that_was_cut_before_is_pruned_further(tmp_path: Path) -> None:
    context = StandIn(tmp_path)
    (first,) = keys().prune(context.model(), context)
    small = slice_model(first.model, first.structure)
    again = tmp_path / "again"
    again.mkdir()
    context = StandIn(again, speedup=4.0)
    context.model = lambda: slice_model(first.model, first.structure)  # type: ignore[method-assign]
    (second,) = keys().prune(small, context)
    assert second.structure.within(first.structure)
    assert Table().dense_ms / Table().time(second.structure) >= 4


@pytest.mark.parametrize("given", [{"score": "size"}, {"search": -1}, {"calibration": 0}, {"probes": 1.5}])
def test_keys_that_make_no_sense(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        keys(**given)

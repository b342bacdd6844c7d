"""What is timed on the way: moments in which the machine is slower than it has been are waited out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.stages import clock
from compressor.stages.clock import TRIES, Clock


class Still(Clock):
    """A clock that asks no machine."""

    _where = ()


def undisturbed(dense_ms: list[float], folder: Path) -> tuple[float, int]:
    """Of measurements beside which the dense model takes so long: which is taken, and how many were made."""
    work: Any = SimpleNamespace(kept=lambda *_: folder)
    made = iter(dense_ms)
    found = Still(work, None)._undisturbed(lambda: {"p50_ms": {"dense": next(made)}}, "fp32")
    return found["p50_ms"]["dense"], len(dense_ms) - len(list(made))


def test_the_first_is_taken_as_there_is_nothing_to_compare_it_with(tmp_path: Path) -> None:
    assert undisturbed([11.0, 8.0, 8.0], tmp_path) == (11.0, 1)


@pytest.mark.parametrize(
    ("dense_ms", "taken"),
    [
        ([8.2, 8.0, 8.0], (8.2, 1)),
        ([11.0, 8.1, 8.0], (8.1, 2)),
        ([11.0, 9.0, 8.0], (9.0, TRIES)),
        ([10.0, 11.0, 8.0], (10.0, TRIES)),
        ([7.0, 8.0, 8.0], (7.0, 1)),
    ],
)
def test_a_slower_machine_is_asked_again_a_few_times(
    dense_ms: list[float], taken: tuple[float, int], tmp_path: Path
) -> None:
    undisturbed([8.0], tmp_path)
    assert undisturbed(dense_ms, tmp_path) == taken
    assert clock.read_json(tmp_path / "best.json") == min(8.0, taken[0])

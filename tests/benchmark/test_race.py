"""The race: who drops out, when it ends, and that pairs are compared only where they ran together."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.benchmark import race as module
from compressor.benchmark.race import ROUNDS, Race
from compressor.benchmark.samples import Samples
from compressor.cell import Cell

CELL = Cell("cpu", 1, 1, 16)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The files of every round; a file's name begins with its milliseconds."""
    ran: list[tuple[str, ...]] = []

    def measure(files: Mapping[str, Path], cells: Any, *, processes: int, seed: int, **_: Any) -> Any:
        ran.append(tuple(files))
        dice = np.random.default_rng(seed)
        times = [float(name.split("-")[0]) for name in files]
        ms = [np.array(times) * np.exp(dice.normal(0, 0.03, (6, len(times)))) for _ in range(processes)]
        cold = np.zeros((processes, len(times)))
        samples = Samples(cells[0], tuple(files), ms, [np.zeros(6, int)] * processes, cold)
        return SimpleNamespace(samples=[samples])

    monkeypatch.setattr(module, "measure", measure)
    return ran


def run(*names: str) -> Race:
    race = Race(CELL, "10-fp32", {name: Path(name) for name in ("10-fp32", *names)})
    race.run(names)
    return race


def test_the_surely_slower_drop_out_and_a_clear_leader_ends_it(rounds: list[tuple[str, ...]]) -> None:
    race = run("5-fast", "9-slow", "20-slower")
    assert rounds == [("10-fp32", "5-fast", "9-slow", "20-slower")]
    assert race.speedup("5-fast").value == pytest.approx(2, rel=0.05)
    assert race.speedup("20-slower").high < 1


def test_a_close_race_goes_on_without_those_that_lost(rounds: list[tuple[str, ...]]) -> None:
    race = run("5.0-a", "4.95-b", "8-slow")
    assert "8-slow" in rounds[0]
    assert len(rounds) > 1
    assert all(set(later) == {"10-fp32", "5.0-a", "4.95-b"} for later in rounds[1:])
    assert race.speedup("5.0-a", "4.95-b").value == pytest.approx(0.99, abs=0.03)
    assert race.speedup("8-slow", "5.0-a").value == pytest.approx(0.625, rel=0.05)


def test_a_tie_is_no_reason_to_go_on(rounds: list[tuple[str, ...]]) -> None:
    run("5-a", "5-b", "5-c")
    assert 1 <= len(rounds) <= ROUNDS


def test_what_may_be_as_fast_as_the_reference_is_timed_as_long_as_may_be(
    rounds: list[tuple[str, ...]],
) -> None:
    run("10-same")
    assert 1 <= len(rounds) <= ROUNDS


def test_files_that_never_ran_together_cannot_be_compared(rounds: list[tuple[str, ...]]) -> None:
    race = run("5-a")
    race.files["6-b"] = Path("6-b")
    race.run(["6-b"])
    assert race.speedup("6-b").value == pytest.approx(1.67, rel=0.05)
    with pytest.raises(ValueError, match="two processes"):
        race.speedup("6-b", "5-a")

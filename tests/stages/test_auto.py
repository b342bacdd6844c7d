"""`quantize: {mode: auto}`: which scheme it takes for given speeds and losses."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.benchmark.statistics import Interval
from compressor.onnx.products import Group
from compressor.onnx.quantize import Scheme
from compressor.stages import auto
from compressor.stages.auto import Search, without
from compressor.stages.quantize import Quantize
from compressor.stages.release import GateKeys
from compressor.stages.selection import Loss
from compressor.stages.trials import Trials, label

DYNAMIC, PER_TENSOR = "dynamic-per-channel", "dynamic-per-tensor"
MINMAX, PERCENTILE = "static-per-channel-minmax-asymmetric", "static-per-channel-percentile-asymmetric"
SYMMETRIC = "static-per-channel-minmax-symmetric"
GROUPS = [Group(str(number), (f"node{number}",)) for number in range(8)]
Speeds = dict[str, tuple[float, float]]


@dataclass
class Told:
    """Trials that are told speeds (lower end, value) and drops by label; the rest is slow and loses nothing."""

    speeds: Speeds
    drops: dict[str, float]
    allowed: float = 0.01
    slow: list[Group] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    losses: dict[Scheme, Loss] = field(default_factory=dict)
    timed: Counter[str] = field(default_factory=Counter)
    later: Speeds = field(default_factory=dict)  # from the second timing on
    provider: str = "cpu"

    @property
    def work(self) -> Any:
        cell = SimpleNamespace(provider=self.provider)
        return SimpleNamespace(benchmark=SimpleNamespace(cells=lambda: [cell]))

    def time(self, schemes: Iterable[Scheme]) -> None:
        self.timed.update(speed_label(scheme) for scheme in schemes)

    def speedup(self, scheme: Scheme, over: Scheme | None = None) -> Interval:
        if not self.timed[speed_label(scheme)]:
            raise ValueError("not timed")
        low, value = self.speeds.get(speed_label(scheme), (0.5, 0.6))
        if self.timed[speed_label(scheme)] > 1:
            low, value = self.later.get(speed_label(scheme), (low, value))
        if over:
            return Interval(value / self.speeds[speed_label(over)][1], 0.0, 9.0)
        return Interval(value, low, 9.0)

    def loss(self, scheme: Scheme) -> Loss:
        if scheme not in self.losses:
            self.scored.append(label(scheme))
            drop = self.drops.get(label(scheme), 0.0)
            self.losses[scheme] = Loss(drop, drop, drop, 0.9, 0.9 - drop, 250)
        return self.losses[scheme]

    def not_faster(self, _: Scheme) -> list[Group]:
        return self.slow

    def groups(self, *_: Any) -> list[Group]:
        return GROUPS

    def worst_first(self, _: Scheme) -> list[Group]:
        return GROUPS


def speed_label(scheme: Scheme) -> str:
    return label(scheme).replace("percentile", "minmax")


def search(told: Told, minutes: float = 30.0) -> tuple[str, list[dict[str, Any]]]:
    """The label of what is taken, and the table."""
    trials: Any = told
    made = Search(trials, Scheme(), minutes)
    taken = made.run()
    return (label(taken) if taken else "fp32"), made.table(taken)


FAST = {DYNAMIC: (1.5, 1.6), PER_TENSOR: (1.7, 1.8), MINMAX: (1.9, 2.0)}
SLOW_KINDS = {DYNAMIC: (1.5, 1.6), PER_TENSOR: (1.5, 1.61), MINMAX: (1.5, 1.62)}
CASES = {
    "the fastest, if it is accurate": (FAST, {}, MINMAX, [MINMAX]),
    "a static one that loses gets another calibration": (FAST, {MINMAX: 0.1}, PERCENTILE, [MINMAX, PERCENTILE]),
    "then comes the next kind": (
        SLOW_KINDS, {MINMAX: 0.1, PERCENTILE: 0.1}, PER_TENSOR, [MINMAX, PERCENTILE, PER_TENSOR],
    ),
    "what is surely no faster is not even scored": (
        FAST | {MINMAX: (0.99, 2.0)}, {}, PER_TENSOR, [PER_TENSOR],
    ),
    "nothing, if nothing is faster": (dict.fromkeys(FAST, (0.5, 0.6)), {}, "fp32", []),
}  # fmt: skip


@pytest.mark.parametrize(("speeds", "drops", "taken", "scored"), CASES.values(), ids=list(CASES))
def test_it_takes(speeds: Speeds, drops: dict[str, float], taken: str, scored: list[str]) -> None:
    told = Told(speeds, drops)
    found, table = search(told)
    assert found == taken
    assert told.scored == scored
    assert [row["scheme"] for row in table if row["admitted"]] == [taken]
    assert {row["scheme"] for row in table} >= {"fp32", DYNAMIC, PER_TENSOR, MINMAX, SYMMETRIC, *scored}
    assert all(row["why"] for row in table if not row["admitted"])
    assert table[0]["metric"] == (0.9 if scored else None)


@pytest.mark.parametrize(("allowed", "taken"), [(0.05, MINMAX), (0.02, PER_TENSOR)])
def test_the_metric_gate_says_what_may_be_lost(allowed: float, taken: str) -> None:
    assert search(Told(SLOW_KINDS, {MINMAX: 0.03, PERCENTILE: 0.03}, allowed))[0] == taken


def lossy(kind: str, until: int) -> dict[str, float]:
    """Drops of a kind that is accurate once `until` of its nodes are left out."""
    return {kind: 0.1} | {f"{kind}-without-{n}-nodes": 0.1 for n in range(1, until)}


def test_as_few_operators_as_it_takes_stay_in_fp32() -> None:
    fast = {PER_TENSOR: (1.9, 2.0), DYNAMIC: (1.2, 1.3)}
    repaired = f"{PER_TENSOR}-without-3-nodes"
    told = Told(fast | {repaired: (1.6, 1.7)}, lossy(PER_TENSOR, 3))
    found, table = search(told)
    assert found == repaired
    assert told.scored == [PER_TENSOR, DYNAMIC, *(f"{PER_TENSOR}-without-{n}-nodes" for n in (2, 3))]
    fates = {row["scheme"]: row["why"] for row in table}
    assert fates[DYNAMIC] == f"slower than {repaired}"
    assert fates[PER_TENSOR] == fates[f"{PER_TENSOR}-without-2-nodes"] == "loses more than 0.01"


def test_what_gained_nothing_by_it_is_not_taken() -> None:
    repaired = f"{PER_TENSOR}-without-3-nodes"
    fast = {PER_TENSOR: (1.9, 2.0), DYNAMIC: (1.6, 1.7), repaired: (1.5, 1.6)}
    found, table = search(Told(fast, lossy(PER_TENSOR, 3)))
    assert found == DYNAMIC
    assert {row["scheme"]: row["why"] for row in table}[repaired] == f"no faster than {DYNAMIC}"


def test_fp32_if_half_of_the_operators_are_not_enough() -> None:
    found, table = search(Told({DYNAMIC: (1.9, 2.0)}, lossy(DYNAMIC, 6)))
    assert found == "fp32"
    assert "even with half" in {row["scheme"]: row["why"] for row in table}[DYNAMIC]


def test_products_that_int8_does_not_speed_up_stay_in_fp32() -> None:
    trimmed = f"{DYNAMIC}-without-2-nodes"
    speeds = {DYNAMIC: (1.1, 1.2), trimmed: (1.3, 1.4)}
    assert search(Told(speeds, {}, slow=GROUPS[:2]))[0] == trimmed
    assert search(Told(speeds | {trimmed: (1.0, 1.1)}, {}, slow=GROUPS[:2]))[0] == DYNAMIC
    assert search(Told(speeds, {}, slow=GROUPS))[0] == DYNAMIC  # that would be fp32


def test_what_dropped_out_early_is_timed_again_before_it_is_called_slow() -> None:
    speeds = {MINMAX: (2.0, 2.1), DYNAMIC: (0.9, 2.0)}
    drops = {MINMAX: 0.1, PERCENTILE: 0.1, f"{DYNAMIC}-without-1-nodes": 0.1}
    told = Told(speeds, drops, later={DYNAMIC: (1.9, 2.08)})
    assert search(told)[0] == DYNAMIC
    assert told.timed[DYNAMIC] == 2


def test_nothing_is_tried_when_the_time_is_over() -> None:
    told = Told(FAST, {})
    found, table = search(told, minutes=1e-9)
    assert (found, told.scored) == ("fp32", [])
    assert "no time left" in [row["why"] for row in table]


def test_a_gpu_is_offered_half_precision() -> None:
    assert search(Told({"fp16": (1.9, 2.0)}, {}, provider="cuda"))[0] == "fp16"


def test_a_resumed_run_decides_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.onnx.graph.matching_nodes", lambda *_: [])
    asked = []

    def trials(*_: Any) -> Told:
        asked.append(1)
        return Told(FAST, {})

    monkeypatch.setattr(auto, "Trials", trials)
    work: Any = SimpleNamespace(scratch=tmp_path, source=tmp_path, gates=GateKeys(max_metric_drop=0.02))
    choice = auto.choose(work, Quantize(mode="auto"))
    assert auto.choose(work, Quantize(mode="auto")) == choice
    assert asked == [1]
    assert label(Scheme(**choice["scheme"])) == MINMAX


def test_names_tell_apart_what_was_left_out() -> None:
    trials: Any = Trials(None, None)  # type: ignore[arg-type]
    names = {trials._name(without(Scheme(), [group])) for group in GROUPS}
    assert len(names) == len(GROUPS)

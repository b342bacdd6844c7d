"""Which variants gates judge, how, and where that leaves the artifacts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor import results as results_module
from compressor.display import Display
from compressor.errors import GateError
from compressor.pruning.target import At, Target
from compressor.results import _package, handed_over
from compressor.stages.release import GateKeys, Limit, final_of, judge, judged

CELL = {"provider": "cpu", "threads": 2, "batch_size": 1, "sequence_length": 128, "part": "forward"}
SPEEDUPS = {
    "pruned_fp32": [1.4, 1.5, 1.6],
    "dense_int8": [1.5, 1.6, 1.7],
    "pruned_int8": [2.1, 2.2, 2.3],
}
VARIANTS = ["dense_fp32", *SPEEDUPS]


def variant(name: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "metric": {"name": "accuracy", "value": 0.9, "higher_is_better": True},
        "file_bytes": 10_000_000 if name.endswith("int8") else 40_000_000,
        "parity": {"max_abs_error": 1e-6, "agreement": 0.99 if name.endswith("int8") else None},
        "latency": [CELL | {"p50_ms": 10.0, "p50_ci95": [9.0, 11.0]}],
    }
    if name in SPEEDUPS:
        low, value, high = SPEEDUPS[name]
        made["speedup"] = [CELL | {"value": value, "ci95": [low, high]}]
        made["metric_drop"] = {"value": 0.01, "ci95": [0.0, 0.02]}
    return made


def results(final: str = "pruned_int8") -> dict[str, Any]:
    return {"baseline": "dense_fp32", "final": final, "variants": {name: variant(name) for name in VARIANTS}}


def state(gate: dict[str, Any]) -> str:
    return "inconclusive" if gate["inconclusive"] else "passed" if gate["passed"] else "failed"


def verdicts(gates: GateKeys, release: str = "final") -> dict[tuple[str, str], str]:
    return {(g["name"], g["variant"]): state(g) for g in judge(gates, release, results())}


def test_gates_judge_what_is_released() -> None:
    gates = GateKeys(min_speedup=2.0, max_file_mb=20)
    exports = {("max_parity_error", name): "passed" for name in ("dense_fp32", "pruned_fp32")}
    final = {("min_speedup", "pruned_int8"): "passed", ("max_file_mb", "pruned_int8"): "passed"}
    assert verdicts(gates) == final | exports
    other = {("min_speedup", "pruned_fp32"): "failed", ("max_file_mb", "pruned_fp32"): "failed"}
    assert verdicts(gates, "pruned_fp32") == other | exports
    assert len(verdicts(gates, "all")) == 3 + 4 + 2  # the baseline has no speedup


def test_a_gate_may_name_its_variant() -> None:
    for name, found in (("pruned_fp32", ["pruned_fp32"]), ("final", ["pruned_int8"]), ("all", [*SPEEDUPS])):
        gates = GateKeys(min_speedup=Limit(value=2, variant=name))
        assert judged(gates, "dense_int8", "pruned_int8", VARIANTS)["min_speedup"] == found


def test_gates_that_have_nothing_to_say() -> None:
    gates = GateKeys(min_speedup=2.0, min_agreement=0.9)
    found = judged(gates, "dense_fp32", "pruned_int8", VARIANTS)
    assert (found["min_speedup"], found["min_agreement"]) == ([], [])


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ({"max_metric_drop": 0.01}, "passed"),  # by its value, not by its interval
        ({"max_metric_drop": 0.009}, "failed"),
        ({"max_metric_drop_relative": 0.0112}, "passed"),
        ({"max_metric_drop_relative": 0.011}, "failed"),
        ({"min_metric": 0.9}, "passed"),
        ({"min_metric": 0.91}, "failed"),
        ({"min_speedup": 2.1}, "passed"),
        ({"min_speedup": 2.15}, "inconclusive"),
        ({"min_speedup": 2.31}, "failed"),
        ({"max_latency_ms": 11}, "passed"),
        ({"max_latency_ms": Limit(value=10, batch_size=1)}, "inconclusive"),
        ({"max_latency_ms": 8.9}, "failed"),
        ({"max_file_mb": 10}, "passed"),
        ({"max_file_mb": 9.9}, "failed"),
        ({"min_agreement": 0.99}, "passed"),
        ({"min_agreement": 0.991}, "failed"),
    ],
)
def test_limits(gates: dict[str, Any], expected: str) -> None:
    assert verdicts(GateKeys(**gates))[next(iter(gates)), "pruned_int8"] == expected


def test_a_lower_metric_may_be_the_better_one() -> None:
    found = results()
    for made in found["variants"].values():
        made["metric"] |= {"value": 23.0, "higher_is_better": False}
    gates = GateKeys(min_metric=25)
    assert state(judge(gates, "final", found)[0]) == "passed"


def test_a_verdict_says_where_it_was_measured() -> None:
    (speed, *_) = judge(GateKeys(min_speedup=2), "final", results())
    assert (speed["value"], speed["ci95"]) == (2.2, [2.1, 2.3])
    assert speed["detail"] == "cpu, 2 threads, batch 1, 128 tokens"


def over_fp32(*interval: float, precision: str = "int8") -> dict[str, Any]:
    """Results in which the final variant has this speedup (low, value, high) over the same model in fp32."""
    low, value, high = interval
    found = results()
    quantization = {"speedup": [CELL | {"value": value, "ci95": [low, high]}]}
    found["variants"]["pruned_int8"] |= {"precision": precision, "quantization": quantization}
    return found


@pytest.mark.parametrize(
    ("asked", "at", "expected"),
    [
        ({"speedup": 2.2}, {}, {"pruned_int8": "passed"}),
        ({"speedup": 2.4}, {}, {"pruned_int8": "passed"}),  # 2.3 at the fast end is within 5 %
        ({"speedup": 2.5}, {}, {"pruned_int8": "failed"}),
        ({"latency_ms": 9.5}, {}, {"pruned_int8": "passed"}),
        ({"latency_ms": 8.5}, {}, {"pruned_int8": "failed"}),
        ({"speedup": 2.5}, {"precision": "int8"}, {"pruned_int8": "failed"}),
        ({"speedup": 2.5}, {"precision": "int8", "relative_to": "same-precision"}, {}),
        ({"speedup": 2.5}, {"batch_size": 8}, {"pruned_int8": "failed"}),  # not measured
        ({"sparsity": 0.5}, {}, {}),
    ],
)
def test_what_was_pruned_to_a_speed_has_it_in_the_end(
    asked: dict[str, Any], at: dict[str, Any], expected: dict[str, str]
) -> None:
    found = judge(GateKeys(), "final", results(), Target(**asked, at=At(**at)))
    assert {g["variant"]: state(g) for g in found if g["name"] == "max_target_miss"} == expected
    off = judge(GateKeys(max_target_miss=None), "final", results(), Target(**asked, at=At(**at)))
    assert "max_target_miss" not in {g["name"] for g in off}


def test_every_member_of_a_family_is_held_to_its_own_speed() -> None:
    found = results()
    for name, speed in (("1.5x", 1.5), ("3x", 2.0)):
        made = variant("pruned_fp32") | {
            "speedup": [CELL | {"value": speed, "ci95": [speed - 0.1, speed + 0.1]}]
        }
        found["variants"][f"{name}_fp32"] = made
    gates = judge(GateKeys(), "all", found, Target(speedup=[1.5, 3]))
    (fast, slow) = [g for g in gates if g["name"] == "max_target_miss"]
    assert (fast["variant"], state(fast), fast["value"]) == ("1.5x_fp32", "passed", 0.0)
    assert (slow["variant"], state(slow), slow["value"]) == ("3x_fp32", "failed", 0.5)
    assert slow["ci95"] == pytest.approx([3 / 2.1 - 1, 3 / 1.9 - 1])


def test_what_quantization_slowed_down_is_not_final() -> None:
    def final(found: dict[str, Any]) -> str:
        return final_of(found["final"], found["variants"], GateKeys(min_speedup=1.5))

    assert final(results()) == "pruned_int8"
    assert final(over_fp32(0.9, 0.95, 0.99)) == "pruned_fp32"
    assert final(over_fp32(0.9, 0.95, 1.01)) == "pruned_int8"
    assert (
        final(over_fp32(0.9, 0.95, 0.99, precision="fp32")) == "pruned_int8"
    )  # auto kept fp32: the same file


def test_the_baseline_is_not_final_where_a_speedup_is_asked_for() -> None:
    found = over_fp32(0.9, 0.95, 0.99)
    found["variants"]["dense_int8"] = found["variants"]["pruned_int8"]
    assert final_of("dense_int8", found["variants"], GateKeys()) == "dense_fp32"
    gates = GateKeys(min_speedup=1.5)
    assert final_of("dense_int8", found["variants"], gates) == "dense_int8"
    failed = [g["name"] for g in judge(gates, "dense_int8", found) if not g["passed"]]
    assert "min_speedup_over_fp32" in failed


def test_nor_is_it_released_where_it_is_asked_for_by_name() -> None:
    for release in ("pruned_int8", "all"):
        for interval, expected in (((0.9, 0.95, 0.99), "failed"), ((0.9, 0.95, 1.01), "passed")):
            gates = judge(GateKeys(), release, over_fp32(*interval))
            (made,) = [g for g in gates if g["name"] == "min_speedup_over_fp32"]
            assert (made["variant"], state(made)) == ("pruned_int8", expected)
            assert made["detail"] == "cpu, 2 threads, batch 1, 128 tokens"


Packaged = Callable[..., dict[str, list[str]]]


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    """Packages variants that are empty folders; what lies where, and where the user is sent."""

    def package(_results: Any, name: str, _source: Path, target: Path, *_: Any) -> None:
        target.mkdir(parents=True)
        (target / name).touch()

    def run(gates: GateKeys, release: str = "final", verify: Any = lambda _: None) -> dict[str, list[str]]:
        monkeypatch.setattr(results_module, "package", package)
        monkeypatch.setattr(results_module, "verify", verify)
        found = results()
        found["gates"] = judge(gates, release, found)
        recipe = SimpleNamespace(gates=gates, release=release, model=None)
        chain = SimpleNamespace(variants=dict.fromkeys(VARIANTS, "node"), final=found["final"])
        project: Any = SimpleNamespace(
            output=tmp_path, recipe=recipe, chain=chain, display=Display(quiet=True), data=None
        )
        _package(project, found)
        assert handed_over(project, found).is_dir()
        return {folder.name: sorted(p.name for p in folder.iterdir()) for folder in tmp_path.iterdir()}

    return run


def test_the_released_variant_is_copied(packaged: Packaged) -> None:
    assert packaged(GateKeys()) == {"artifacts": sorted(VARIANTS), "artifact": ["pruned_int8"]}


def test_another_one_may_be_released(packaged: Packaged) -> None:
    assert packaged(GateKeys(), "pruned_fp32")["artifact"] == ["pruned_fp32"]


def test_all_are_released_where_they_lie(packaged: Packaged) -> None:
    assert packaged(GateKeys(), "all") == {"artifacts": sorted(VARIANTS)}


def test_what_missed_a_gate_is_refused_and_nothing_else(packaged: Packaged) -> None:
    missed = GateKeys(min_speedup=Limit(value=2, variant="pruned_fp32"))
    good = ["dense_fp32", "dense_int8", "pruned_int8"]
    assert packaged(missed) == {"artifacts": good, "rejected": ["pruned_fp32"]}


def test_every_released_variant_can_be_refused(packaged: Packaged) -> None:
    slow = ["dense_int8", "pruned_fp32"]
    assert packaged(GateKeys(min_speedup=2), "all") == {
        "artifacts": ["dense_fp32", "pruned_int8"],
        "rejected": slow,
    }


def test_a_warned_noise_refuses_nothing(packaged: Packaged) -> None:
    assert "rejected" not in packaged(GateKeys(min_speedup=2.15, on_noise="warn"))


def test_noise_refuses(packaged: Packaged) -> None:
    assert packaged(GateKeys(min_speedup=2.15))["rejected"] == ["pruned_int8"]


def test_an_artifact_appears_when_it_is_whole(packaged: Packaged, tmp_path: Path) -> None:
    def verify(folder: Path) -> None:
        if folder.parent == tmp_path:
            raise GateError("differs")

    with pytest.raises(GateError):
        packaged(GateKeys(), verify=verify)
    assert [p.name for p in tmp_path.iterdir()] == ["artifacts"]

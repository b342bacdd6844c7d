"""`quantize: {mode: auto}`: which scheme it takes for given speeds and scores."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.onnx.quantize import Scheme
from compressor.stages.auto import Search, label
from compressor.stages.quantize import Quantize
from compressor.stages.release import GateKeys

DYNAMIC, PER_TENSOR = "dynamic-per-channel", "dynamic-per-tensor"
STATIC = [f"static-per-channel-{method}-asymmetric" for method in ("percentile", "minmax", "entropy")]


class Told(Search):
    """A search that is told speeds and scores."""

    speeds: dict[str, tuple[float, float]]
    scores: dict[str, float]
    asked: list[str]

    def _time(self, kinds: list[Scheme]) -> dict[Scheme, Any]:
        return {
            k: {"value": self.speeds[label(k)][1], "ci95": [self.speeds[label(k)][0], 9.0]} for k in kinds
        }

    def _metric(self, file: Path, name: str) -> float:
        self.asked.append(name)
        return self.scores.get(name, 0.9)

    def _file(self, scheme: Scheme) -> Path:
        return Path(label(scheme))


def search(
    folder: Path, speeds: dict[str, tuple[float, float]], scores: dict[str, float], **gates: Any
) -> Told:
    task = SimpleNamespace(primary="accuracy", higher_is_better=lambda _: True)
    work: Any = SimpleNamespace(
        scratch=folder, source=folder, gates=GateKeys(**gates), data=SimpleNamespace(task=task)
    )
    keys = Quantize(mode="auto")
    made = Told(work, keys)
    made.speeds, made.scores, made.asked = speeds, scores, []
    return made


FAST = {DYNAMIC: (1.5, 1.6), PER_TENSOR: (1.7, 1.8), STATIC[0]: (1.9, 2.0)}
CASES = {
    "the fastest, if it is accurate": (FAST, {}, STATIC[0], ["fp32", STATIC[0]]),
    "a static one that loses gets other calibrations": (
        FAST, {STATIC[0]: 0.8}, STATIC[1], ["fp32", *STATIC[:2]],
    ),
    "then comes the next kind": (
        FAST, dict.fromkeys(STATIC, 0.8), PER_TENSOR, ["fp32", *STATIC, PER_TENSOR],
    ),
    "what is surely no faster is not even scored": (
        FAST | {STATIC[0]: (0.99, 2.0)}, {}, PER_TENSOR, ["fp32", PER_TENSOR],
    ),
    "nothing, if nothing is accurate": (
        FAST, dict.fromkeys([*STATIC, DYNAMIC, PER_TENSOR], 0.5), None, ["fp32", *STATIC, PER_TENSOR, DYNAMIC],
    ),
    "nothing, if nothing is faster": (dict.fromkeys(FAST, (0.5, 0.6)), {}, None, ["fp32"]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.onnx.graph.matching_nodes", lambda *_: [])


@pytest.mark.parametrize(("speeds", "scores", "chosen", "asked"), CASES.values(), ids=list(CASES))
def test_it_takes(
    speeds: dict[str, Any], scores: dict[str, float], chosen: str | None, asked: list[str], tmp_path: Path
) -> None:
    made = search(tmp_path, speeds, scores)
    choice = made.choose()
    assert (label(Scheme(**choice["scheme"])) if choice["scheme"] else None) == chosen
    assert made.asked == asked
    assert {row["scheme"] for row in choice["tried"]} >= set(asked)
    assert [row["scheme"] for row in choice["tried"] if row["admitted"]] == [chosen or "fp32"]
    again = search(tmp_path, {}, {})  # a resumed run knows no speeds, and asks for none
    assert again.choose() == choice


@pytest.mark.parametrize(("allowed", "chosen"), [(0.05, STATIC[0]), (0.02, PER_TENSOR)])
def test_the_metric_gate_says_what_may_be_lost(allowed: float, chosen: str, tmp_path: Path) -> None:
    made = search(tmp_path, FAST, dict.fromkeys(STATIC, 0.87), max_metric_drop=allowed)
    assert label(Scheme(**made.choose()["scheme"])) == chosen

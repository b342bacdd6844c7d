"""What `mode: auto` measures, on a real graph, task and timing: a small model that nobody trained."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compressor.benchmark import race
from compressor.onnx.graph import describe_graph
from compressor.onnx.quantize import Scheme
from compressor.onnx.runtime import OnnxModel
from compressor.project import Project
from compressor.recipe import load_recipe
from compressor.stages import auto
from compressor.stages.auto import without
from compressor.stages.base import Work
from compressor.stages.quantize import Quantize
from compressor.stages.release import GateKeys
from compressor.stages.trials import FP32, Trials
from tests.pipeline.tiny import write_recipe

STAGES = """stages:
  - export: {}
  - quantize: {mode: auto, calibration: {examples: 5}}
benchmark: {threads: [1], sequence_lengths: [16], seconds: 0.05, processes: 3}
"""
KEYS = Quantize.model_validate({"mode": "auto", "calibration": {"examples": 5}})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Work]:
    """What the quantize stage of a recipe gets, each time with a new scratch folder."""
    folder = tmp_path_factory.mktemp("trials")
    path = write_recipe(folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("stages:")] + STAGES, encoding="utf-8")
    project = Project(load_recipe(path), folder / "run")
    *before, last = project.chain.nodes
    for node in before:
        (project.output / node.name).mkdir(parents=True)
        node.stage.run(project.work(node, project.output / node.name, lambda *_: None))

    def work() -> Work:
        scratch = tmp_path_factory.mktemp("scratch")
        return replace(project.work(last, scratch, lambda *_: None), scratch=scratch)

    return work


def test_ranges_outlive_what_is_left_out(exported: Callable[[], Work]) -> None:
    trials = Trials(exported(), KEYS)
    scheme = Scheme("static", reduce_range=True)
    whole = trials.file(scheme)
    first, *_ = trials.groups(scheme, ("MatMul",))
    part = trials.file(without(scheme, [first]))
    assert whole != part
    assert len(list(trials.work.scratch.glob("*.json"))) == 1
    counts = [describe_graph(file)["operators"]["DequantizeLinear"] for file in (whole, part)]
    assert counts[1] < counts[0]
    rough = trials.file(scheme, rough=True)
    assert rough != whole
    assert describe_graph(rough)["operators"] == describe_graph(whole)["operators"]


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_every_group_is_ranked_by_its_error(mode, exported: Callable[[], Work]) -> None:
    trials = Trials(exported(), KEYS)
    scheme = Scheme(mode, ("MatMul",))
    worst = trials.worst_first(scheme)
    assert set(worst) == set(trials.groups(scheme, ("MatMul",)))
    errors = []
    for group in (worst[0], worst[-1]):
        alone = without(scheme, [other for other in worst if other != group])
        errors.append(trials._selection.error(trials.source, trials.file(alone)))
    assert errors[0] >= errors[1]
    assert errors[0] > 0


def test_losses_are_against_fp32(exported: Callable[[], Work]) -> None:
    trials = Trials(exported(), KEYS)
    loss = trials.loss(Scheme())
    assert loss.examples == len(trials.work.data.task.examples.selection)
    assert loss.value == pytest.approx(loss.dense - loss.metric)
    assert loss.low <= loss.value <= loss.high
    assert trials.loss(Scheme()) is loss


def test_gates_judge_the_loss_against_the_dense_model(exported: Callable[[], Work], tmp_path: Path) -> None:
    for name in ("dense", "pruned"):
        shutil.copytree(exported().source, tmp_path / name)
    work = replace(exported(), source=tmp_path / "pruned")
    dense, own = (tmp_path / name / "model.onnx" for name in ("dense", "pruned"))
    assert Trials(work, KEYS).judge == (own, 0.01)
    assert Trials(replace(work, gates=GateKeys(max_metric_drop=0.03)), KEYS).judge == (dense, 0.03)
    against, allowed = Trials(replace(work, gates=GateKeys(max_metric_drop_relative=0.1)), KEYS).judge
    assert against == dense
    assert 0 < allowed < 0.1  # a tenth of the dense model's metric
    dense.unlink()
    assert Trials(replace(work, gates=GateKeys(max_metric_drop=0.03)), KEYS).judge == (own, 0.03)


def test_the_whole_search(exported: Callable[[], Work], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "ROUNDS", 1)
    monkeypatch.setattr(race, "PROCESSES", 2)
    monkeypatch.setattr(race, "SECONDS", 0.05)
    work = exported()
    choice = auto.choose(work, KEYS)
    rows = {row["scheme"]: row for row in choice["tried"]}
    assert {FP32, "dynamic-per-channel", "dynamic-per-tensor", "static-per-channel-minmax-symmetric"} <= set(
        rows
    )
    (taken,) = [row for row in choice["tried"] if row["admitted"]]
    target = work.scratch / "target.onnx"
    scheme = auto.write(work, KEYS, choice, target)
    assert (scheme is None) == (taken["scheme"] == FP32)
    inputs = {name: np.ones((1, 8), dtype=np.int64) for name in OnnxModel(target).inputs}
    apart = OnnxModel(target)(inputs)["logits"] - OnnxModel(Trials(work, KEYS).source)(inputs)["logits"]
    assert np.abs(apart).max() < 0.5
    assert taken["scheme"] == FP32 or taken["ci95"][0] > 1

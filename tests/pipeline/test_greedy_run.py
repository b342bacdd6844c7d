"""Greedy layer pruning in whole runs: another target, other executors, and a search that is killed."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import UserError
from compressor.files import read_json
from compressor.pipeline import locked, run_recipe, run_stage
from compressor.project import Project
from compressor.recipe import RecipeError, load_recipe
from compressor.stages.base import Work
from compressor.stages.context import TaskContext
from tests.pipeline.tiny import finish, kill, outcome, start, write_recipe

STAGES = """stages:
  - finetune: {id: dense, epochs: 1, learning_rate: 3.0e-3, batch_size: 16}
  - prune: {method: greedy, from: model, drop: 2, epochs: 1, learning_rate: 3.0e-3, batch_size: 16}
  - slice: {}
  - finetune: {epochs: 1, learning_rate: 3.0e-3, batch_size: 16}
  - export: {}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with three layers and this chain."""
    path = write_recipe(tmp_path_factory.mktemp("recipe"), rows=160)
    text = path.read_text(encoding="utf-8").replace("num_hidden_layers: 2", "num_hidden_layers: 3")
    begin, end = text.index("stages:"), text.index("benchmark:")
    text = text[:begin] + STAGES + text[end:]
    path.write_text(text.replace("gates: {max_metric_drop: 0.5}", "gates: {}"), encoding="utf-8")
    return path


def searched(recipe: Path, output: Path, *overrides: str) -> dict[str, Any]:
    """Run the recipe up to its `prune`; what that tells of its members."""
    project = Project(load_recipe(recipe, overrides), output)
    with locked(output):
        for name in ("model", "prune"):
            record = run_stage(project, project.chain.node(name))
    members: dict[str, Any] = record["info"]["members"]
    return members


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Names of the trainings, as they begin."""
    names: list[str | None] = []
    train = TaskContext.train

    def remember(self: TaskContext, model: Any, keys: Any, part: Any = None, name: str | None = None) -> None:
        names.append(name)
        train(self, model, keys, part, name)

    monkeypatch.setattr(TaskContext, "train", remember)
    return names


def test_another_target_or_number_searches_and_times_nothing_again(
    recipe: Path, tmp_path: Path, trained: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[list[str]] = []

    def told(work: Any, cell: Any, models: Any) -> dict[str, Any]:
        timed.append(list(models))
        return {"p50_ms": {"0": 3.0, "1": 2.2, "2": 1.0}}

    monkeypatch.setattr("compressor.stages.clock.time_models", told)
    first = searched(recipe, tmp_path / "run", "target.max_metric_drop=0.99")["pruned"]
    assert trained[:2] == ["without-none", "without-0"]
    assert len(trained) == 1 + 3 + 2
    assert len(first["dropped"]) == 2
    trained.clear()
    fewer = searched(recipe, tmp_path / "run", "stages.prune.drop=1")["pruned"]
    assert fewer["order"] == first["order"][:1]
    fast = searched(recipe, tmp_path / "run", "target.speedup=1.05")["pruned"]
    assert fast["latency_ms"] == {"0": 3.0, "1": 2.2, "2": 1.0}
    assert fast["order"] == first["order"][:1]
    family = searched(recipe, tmp_path / "run", "target.speedup=[1.01, 1.5]", "stages.prune.workers=2")
    assert {name: len(member["dropped"]) for name, member in family.items()} == {"1.01x": 1, "1.5x": 2}
    assert (trained, timed) == ([], [["0", "1", "2"]])


def test_a_target_that_cannot_be_met_is_refused_before_the_search(
    recipe: Path, tmp_path: Path, trained: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"target.speedup asks for 50"):
        searched(recipe, tmp_path / "run", "target.speedup=50")
    assert trained == []
    monkeypatch.setattr("compressor.stages.clock.time_models", lambda *_: pytest.fail("timed again"))
    member = searched(recipe, tmp_path / "run", "target.speedup=1.01", "stages.prune.drop=1")["pruned"]
    assert sorted(member["latency_ms"]) == ["0", "1", "2"]


def test_a_search_sees_no_validation_row(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    features = Work.features

    def remember(self: Work, split: str) -> Any:
        asked.add(split)
        return features(self, split)

    monkeypatch.setattr(Work, "features", remember)
    searched(recipe, tmp_path / "run")
    assert asked == {"train", "selection"}
    examples = Project(load_recipe(recipe), tmp_path / "run").data.task.examples
    assert not set(examples.train["id"]) & set(examples.selection["id"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("target.at={threads: 7}", "target.at: no such cell is timed; see `benchmark`"),
        ("target.at={precision: int8}", "greedy times models in fp32 only"),
        ("stages.prune.executor=slurm", "should be 'local' or 'ray'"),
        ("stages.prune.workers=0", "greater than 0"),
    ],
)
def test_what_a_recipe_may_not_say(recipe: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(recipe, ["target.speedup=2", override])


def test_layers_to_freeze_must_be_there(recipe: Path, tmp_path: Path) -> None:
    project = Project(load_recipe(recipe, ["stages.dense.freeze_layers=[1, 3]"]), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"stages.dense.freeze_layers: no layer 3; this model.s encoder has 0 to 2"
    ):
        run_recipe(project)
    assert not (tmp_path / "run").exists()


def test_where_candidates_are_tried_changes_no_key(recipe: Path, tmp_path: Path) -> None:
    def keys(*overrides: str) -> dict[str, str]:
        return Project(load_recipe(recipe, overrides), tmp_path).keys

    assert keys() == keys("stages.prune.workers=3", "stages.prune.executor=ray")
    assert keys()["prune"] != keys("stages.prune.drop=1")["prune"]
    assert keys()["prune"] != keys("task.metric=f1")["prune"]
    assert keys()["dense"] == keys("task.metric=f1")["dense"]


def test_side_by_side_and_spread_out_do_not_go_together(recipe: Path, tmp_path: Path) -> None:
    project = Project(load_recipe(recipe, ["stages.prune.workers=2"]), tmp_path / "run", processes=2)
    with pytest.raises(UserError, match="use one of the two"):
        run_recipe(project)


@pytest.mark.slow
@pytest.mark.parametrize("search", ["full", "screened"])
def test_results_do_not_depend_on_executors_or_breaks(search: str, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'compressor[ray]'")
    option = ["--set", f"stages.prune.search={search}"]
    finish(start(recipe, tmp_path / "whole", *option))
    expected = outcome(tmp_path / "whole")
    info = read_json(tmp_path / "whole" / "prune" / "stage.json")["info"]
    for name in ("workers=2", "executor=ray"):
        output = tmp_path / name
        process = start(recipe, output, *option, "--set", f"stages.prune.{name}")
        while not any(
            len(json.loads(p.read_text())) > 1 for p in output.glob("work/greedy-*/candidates.json")
        ):
            time.sleep(0.05)
            assert process.poll() is None
        kill(process)
        finish(start(recipe, output, *option, "--set", f"stages.prune.{name}"))
        assert read_json(output / "prune" / "stage.json")["info"]["members"] == info["members"]
        assert outcome(output) == expected


@pytest.mark.slow
def test_a_search_on_two_processes_a_training(recipe: Path, tmp_path: Path) -> None:
    finish(start(recipe, tmp_path / "run", "--nproc", "2", "--set", "stages.prune.search=screened"))
    (member,) = read_json(tmp_path / "run" / "prune" / "stage.json")["info"]["members"].values()
    assert len(member["order"]) == 2

"""What a stage's result depends on, and what results say of how they were made."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.project import Project
from compressor.recipe import load_recipe
from compressor.results import _command, _git_revision
from compressor.stages import evaluate

RECIPE = """
name: tiny
model: {config: {model_type: bert, hidden_size: 8, num_attention_heads: 2}, tokenizer: ./words}
task:
  type: text-classification
  dataset: {train: data.csv, validation: data.csv}
stages:
  - finetune: {id: teacher}
  - finetune: {distill: {teacher: {model: ./other}}}
  - export: {}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text,label\na,b\n", encoding="utf-8")
    for name in ("words", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("one", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def keys(recipe: Path) -> dict[str, str]:
    return Project(load_recipe(recipe), recipe.parent / "run").keys


def changed(recipe: Path, folder: str) -> set[str]:
    """The stages that another content of `folder` makes anew."""
    before = keys(recipe)
    assert keys(recipe) == before
    (recipe.parent / folder / "file").write_text("two", encoding="utf-8")
    after = keys(recipe)
    return {name for name in before if before[name] != after[name]}


def test_a_teacher_from_outside_counts_by_its_content(recipe: Path) -> None:
    assert changed(recipe, "other") == {"finetune-2", "export/tuned"}


def test_a_new_model_counts_by_the_content_of_its_tokenizer(recipe: Path) -> None:
    assert changed(recipe, "words") == set(keys(recipe))


def test_a_folder_that_is_not_there_is_left_to_the_checks(recipe: Path) -> None:
    shutil.rmtree(recipe.parent / "other")
    assert len(keys(recipe)) == 5


def test_the_command_makes_the_same_run_again(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["seed=7"])
    assert _command(Project(loaded, Path("runs/tiny"))) == f"compressor run {recipe} --set seed=7"
    project = Project(loaded, Path("else"), processes=2)
    assert _command(project) == f"compressor run {recipe} --set seed=7 --output else --nproc 2"


def committed(folder: Path) -> str:
    """The revision of a new repository in `folder`."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run([git, "-C", str(folder), *words], check=True)
    found = subprocess.run([git, "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, check=True)
    return found.stdout.decode().strip()


def test_the_revision_of_the_tools_own_checkout(tmp_path: Path) -> None:
    revision = committed(tmp_path)
    assert revision.startswith(_git_revision(tmp_path) or "nothing")


def test_the_revision_of_a_repository_around_it_is_not_its_own(tmp_path: Path) -> None:
    committed(tmp_path)
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    packages.mkdir(parents=True)
    assert _git_revision(packages) is None


def test_without_git_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _git_revision(tmp_path) is None


def test_metrics_never_stand_beside_other_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.json").write_text('{"key": "old"}', encoding="utf-8")

    def killed(*_: Any) -> None:
        assert not (tmp_path / "metrics.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_onnx", killed)
    data: Any = SimpleNamespace()
    with pytest.raises(KeyboardInterrupt):
        evaluate.measure_accuracy(data, tmp_path, tmp_path, "new", lambda *_: None)


def test_what_a_finished_stage_worked_with_is_removed_under_earlier_keys_too(recipe: Path) -> None:
    project = Project(load_recipe(recipe), recipe.parent / "run")
    work = project.output / "work"
    node = project.chain.node("export/tuned")
    now = f"export.tuned-{project.keys[node.name][:12]}"
    others = ["export.dense-" + 12 * "a", "export.tuned-2-" + 12 * "a"]
    for name in (now, "export.tuned-" + 12 * "0", *others):
        (work / name).mkdir(parents=True)
    project.forget(node)
    assert sorted(path.name for path in work.iterdir()) == sorted(others)


WRITING = """
name: tiny
model: {config: {model_type: bart, d_model: 8}, tokenizer: ./words}
task:
  type: summarization
  dataset: {train: data.jsonl, validation: data.jsonl}
  generation: {beams: BEAMS}
stages:
  - finetune: {id: teacher}
  - finetune: {evaluate_every: 0.5}
  - export: {}
"""


def test_how_text_is_written_matters_where_texts_are(recipe: Path) -> None:
    (recipe.parent / "data.jsonl").write_text('{"text": "a", "summary": "b"}\n', encoding="utf-8")
    made = []
    for beams in ("1", "4"):
        recipe.write_text(WRITING.replace("BEAMS", beams), encoding="utf-8")
        made.append(keys(recipe))
    assert {name for name in made[0] if made[0][name] != made[1][name]} == {
        "finetune-2",
        "export/dense",
        "export/tuned",
    }


def test_the_metric_matters_where_it_chooses(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8").replace(
        "finetune: {distill", "finetune: {evaluate_every: 0.5, distill"
    )
    made = []
    for metric in ("accuracy", "f1"):
        recipe.write_text(text.replace("  dataset", f"  metric: {metric}\n  dataset"), encoding="utf-8")
        made.append(keys(recipe))
    assert {name for name in made[0] if made[0][name] != made[1][name]} == {"finetune-2", "export/tuned"}

"""`new` writes recipes that `validate` accepts, out of options or of what is answered on a terminal."""

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import typer

from compressor.errors import UserError
from compressor.pruning.base import METHODS
from compressor.recipe import load_recipe
from compressor.tasks.schema import MAX_LENGTH, UNLABELLED
from compressor.views.new import TASKS, Answers, ask, recipe_text
from tests.cli.refusals import Call, refused


@pytest.mark.parametrize(("task", "method"), product(TASKS, METHODS))
def test_every_task_with_every_method_is_valid(call: Call, tmp_path: Path, task: str, method: str) -> None:
    target = tmp_path / "mine.yaml"
    said = call("new", target, "--model", "./m", "--task", task, "--method", method)
    assert said.code == 0, said.err
    made = load_recipe(target).recipe
    assert (made.task.type, made.task.max_length) == (task, MAX_LENGTH[task])
    verbs = [stage.verb for stage in made.stages]
    place = verbs.index("prune")
    assert verbs[place + 1] == "slice"
    assert (verbs[0] == "finetune") is (task not in UNLABELLED)
    assert made.stages[place].pruner.method == method  # type: ignore[attr-defined]
    assert call("validate", target).code == 0


def test_the_recipe_says_what_its_method_is_and_fits_a_screen(tmp_path: Path) -> None:
    text = recipe_text(Answers("./m", "text-classification", "greedy"), tmp_path / "a.yaml")
    assert "  # Greedy-layer pruning (Peer, Stabinger" in text
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) < 50


def test_one_s_own_files(call: Call, tmp_path: Path) -> None:
    files = ["--train", "my data.csv", "--validation", "dev.csv"]
    said = call("new", tmp_path / "a.yaml", "--model", "./m", "--task", "text-classification", *files)
    assert said.code == 0
    dataset = load_recipe(tmp_path / "a.yaml").recipe.task.dataset
    assert (dataset.train, dataset.validation) == ("my data.csv", "dev.csv")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "question-answering", "train": "a.csv", "validation": "b.csv"}, "cannot be read from csv"),
        ({"task": "question-answering", "train": "a.json"}, "--train and --validation go together"),
        ({"task": "question-answerin"}, "did you mean 'question-answering'?"),
        ({"task": "qa"}, "known: text-classification"),
        ({"method": "moevment"}, "did you mean 'movement'?"),
        ({"model": "bert base"}, "'bert base' is neither a hub id"),
    ],
)
def test_what_it_refuses(call: Call, tmp_path: Path, options: dict[str, str], words: str) -> None:
    given = {"model": "./m", "task": "text-classification"} | options
    arguments = [word for key, value in given.items() for word in (f"--{key}", value)]
    refused(call, tmp_path, ["new", tmp_path / "a.yaml", *arguments], words)


def test_without_a_terminal_it_says_what_it_must_know(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    refused(call, tmp_path, ["new", tmp_path / "a.yaml"], "say --model and --task: there is no terminal")


@pytest.mark.parametrize(
    ("file", "name"), [("my run #1.yaml", "my-run-1"), ("007.yaml", "007"), ("_.yaml", "recipe")]
)
def test_new_keeps_odd_names_of_files_and_folders(call: Call, tmp_path: Path, file: str, name: str) -> None:
    assert call("new", "--model", "./a: #b", "--task", "question-answering", tmp_path / file).code == 0
    made = load_recipe(tmp_path / file).recipe
    assert (made.model, made.name) == ("./a: #b", name)


def test_new_never_overwrites(call: Call, tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine", encoding="utf-8")
    said = call("new", "--model", "bert-base-uncased", "--task", "question-answering", target)
    assert (said.code, target.read_text(encoding="utf-8")) == (2, "mine")
    assert f"{target} exists" in said.err


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A prompt that answers in order, Enter where the answer is empty; all must be asked for."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    left: list[Iterator[str]] = []

    def prepare(*answers: str) -> Any:
        left.append(iter(answers))

        def prompt(question: str, default: str | None = None) -> str:
            answer = next(left[-1])
            return answer or default or ""

        return prompt

    yield prepare
    assert [list(answers) for answers in left] == [[] for _ in left]


def given(**known: str) -> dict[str, str | None]:
    return {"model": None, "task": None, "method": None, "train": None, "validation": None} | known


def test_it_asks_for_everything_where_nothing_is_given(answered: Any) -> None:
    assert ask(given(), answered("", "", "", "")) == Answers("bert-base-uncased", "text-classification")
    all_of_it = ["./m", "question-answering", "greedy", "a.json", "b.json"]
    assert ask(given(), answered(*all_of_it)) == Answers(*all_of_it)


def test_it_asks_again_after_a_mistake(answered: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(given(model="./m"), answered("qa", "question-answering", "heads", ""))
    assert found == Answers("./m", "question-answering", "heads")
    assert "--task qa: unknown" in capsys.readouterr().err


def test_it_asks_nothing_where_model_and_task_are_given(answered: Any) -> None:
    assert ask(given(model="a/b", task="question-answering"), answered()).method == "movement"


def test_files_that_do_not_fit_are_refused_after_asking_too(answered: Any) -> None:
    with pytest.raises(UserError, match="cannot be read from csv"):
        ask(given(), answered("./m", "question-answering", "", "a.csv", "b.csv"))


def test_the_prompt_is_the_terminal_s(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prompt(question: str, default: str = "") -> str:
        asked.append(question)
        return default

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "prompt", prompt)
    assert call("new", tmp_path / "a.yaml").code == 0
    assert len(asked) == 4
    assert load_recipe(tmp_path / "a.yaml").recipe.model == "bert-base-uncased"

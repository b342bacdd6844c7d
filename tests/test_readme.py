"""What the README says is what the files say."""

import json
import re
from pathlib import Path

import pytest

from bench import table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_files() -> None:
    for path, make in table.PARTS:
        document = path.read_text(encoding="utf-8")
        assert len(make().splitlines()) > 5
        assert table.written(document, make()) == document


def test_the_bag_of_words_it_names_is_the_measured_one() -> None:
    quickstart = json.loads((ROOT / "bench" / "results" / "quickstart.json").read_text(encoding="utf-8"))
    bag = quickstart["task"]["reference_points"]["bag_of_words"]
    assert f"a bag of words does there ({100 * bag:.2f} %)" in " ".join(README.split())


def test_the_run_folder_it_names_is_that_of_the_new_recipe(tmp_path: Path) -> None:
    from compressor.views.new import Answers, recipe_text

    words = re.search(r"^compressor new --model (\S+) --task (\S+) (\S+)", README, flags=re.MULTILINE)
    assert words is not None
    model, task, file = words.groups()
    name = re.search(r"^name: (\S+)$", recipe_text(Answers(model, task), Path(file)), flags=re.MULTILINE)
    assert name is not None
    assert f"compressor verify runs/{name.group(1)}/artifact" in README


def test_every_verb_it_names_exists() -> None:
    from compressor.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"^compressor (\w+)", README, flags=re.MULTILINE))
    assert named
    assert named <= verbs


@pytest.mark.parametrize("document", ["README.md", "bench/README.md"])
def test_every_file_it_links_to_exists(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert all((path.parent / link).exists() for link in links)

"""What the README says is what the files say."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_files() -> None:
    spec = importlib.util.spec_from_file_location("bench_table", ROOT / "bench" / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.written(README, module.table()) == README


def test_every_verb_it_names_exists() -> None:
    from compressor.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"^compressor (\w+)", README, flags=re.MULTILINE))
    assert named
    assert named <= verbs


def test_every_file_it_links_to_exists() -> None:
    assert all((ROOT / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", README))

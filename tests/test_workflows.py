"""What runs on others' machines is fixed to the commit, asks for no more than it needs, and runs no caller's code."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / ".github"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yml"))
FILES = [*WORKFLOWS, *sorted((FOLDER / "actions").glob("*/action.yml"))]


def read(path: Path) -> dict[Any, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    data = read(path)
    for job in data["jobs"].values() if "jobs" in data else [data["runs"]]:
        yield from job.get("steps", [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_action_is_fixed_to_a_commit_with_its_version_beside_it(path: Path) -> None:
    used = re.findall(r"^\s*(?:- )?uses: (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert used
    for line in used:
        assert line.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+){2}", line), line


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_script_holds_what_a_caller_can_write(path: Path) -> None:
    """An expression inside a script is code of whoever filled it in; variables of the environment are not."""
    for step in steps(path):
        assert "${{" not in step.get("run", ""), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_job_ends_and_may_only_read_unless_it_says_so(path: Path) -> None:
    data = read(path)
    assert data["permissions"] == {"contents": "read"}
    for job in data["jobs"].values():
        assert "timeout-minutes" in job
        assert "latest" not in job["runs-on"]


def test_a_release_is_attested_before_it_is_published() -> None:
    names = [step.get("uses", step.get("name", "")) for step in steps(FOLDER / "workflows" / "release.yml")]
    order = ["compress", "attest-build-provenance", "Publish"]
    places = [next(n for n, name in enumerate(names) if word in name) for word in order]
    assert places == sorted(places)

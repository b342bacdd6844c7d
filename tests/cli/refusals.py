"""What every refusal must be: the right exit code, one clear message, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Said

Call = Callable[..., Said]


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """All files with their content, hidden ones too; folders with None."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() or p.is_dir()]
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def lines_of(said: Said, code: int) -> list[str]:
    """The lines of the one message of a call that must have ended with `code`."""
    assert said.code == code, said
    assert said.err.startswith("error: "), said.err
    assert said.err.count("error: ") == 1, said.err
    assert "Traceback" not in said.err
    return said.err.removeprefix("error: ").splitlines()


def refused(call: Call, folder: Path, arguments: list[object], *phrases: str, code: int = 2) -> None:
    """A call that must end with `code` and one line that holds `phrases`, with `folder` as it was before."""
    before = everything_in(folder)
    said = call(*arguments)
    lines = lines_of(said, code)
    assert len(lines) == 1, said.err
    missing = [phrase for phrase in phrases if phrase not in lines[0]]
    assert not missing, lines[0]
    assert everything_in(folder) == before

"""`compare`: finished runs side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from compressor.errors import UserError
from compressor.files import read_json, write_text
from compressor.report.compare import write_comparison
from compressor.report.console import compare_table
from compressor.report.side_by_side import comparison_rows
from compressor.report.summary import markdown_summary
from compressor.results import SCHEMA_VERSION
from compressor.stages.base import RESULTS


def compare_runs(runs: Sequence[Path], output: Path, markdown: Path | None) -> list[RenderableType]:
    """One table of all `runs`; the page with the plot goes to `output`, a summary to `markdown`.

    Raises:
        UserError: a folder without readable results, or a file to write that is a folder.
    """
    for option, path, name in (("output", output, "comparison.html"), ("markdown", markdown, "summary.md")):
        if path and path.is_dir():
            raise UserError(f"--{option} {path} is a folder; name a file, such as {path / name}")
    found = _told_apart(runs, [read_results(folder) for folder in runs])
    page = write_comparison(found, output)
    if markdown:
        write_text(markdown, markdown_summary(found))
    return [compare_table(found), "", f"page: {escape(str(page))}"]


def read_results(folder: Path) -> dict[str, Any]:
    """What the run in `folder` left.

    Raises:
        UserError: no finished run there, or its results are damaged or of another version.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(
            f"no results in {folder}: it has no {RESULTS} (is it a run's folder? did the run end?)"
        )
    try:
        results: dict[str, Any] = read_json(path)
        version = results["schema_version"]
        if version == SCHEMA_VERSION:
            comparison_rows([results])  # reads all that a comparison needs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); run the recipe again"
        ) from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version}, this program reads version {SCHEMA_VERSION}")
    return results


def _told_apart(folders: Sequence[Path], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, those of one recipe named by their folders too."""
    times = Counter(run["name"] for run in runs)
    return [
        run if times[run["name"]] == 1 else run | {"name": f"{run['name']} ({folder})"}
        for folder, run in zip(folders, runs, strict=True)
    ]

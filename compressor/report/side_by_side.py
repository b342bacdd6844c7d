"""Several runs side by side: rows of one table, and what limits the comparison."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from compressor.cell import Cell
from compressor.report.fields import Results, cells, main_cell
from compressor.report.rows import VariantRow, variant_row
from compressor.report.verdict import overall_state


class ComparisonRow(NamedTuple):
    """A variant of a run; `run` and `state` (of its gates) are filled on the run's first row only."""

    run: str
    variant: VariantRow
    state: str


def common_cell(runs: Sequence[Results]) -> Cell | None:
    """The first cell that every run was timed in."""
    others = [set(cells(results)) for results in runs]
    return next((cell for cell in cells(runs[0]) if all(cell in other for other in others)), None)


def comparison_rows(runs: Sequence[Results]) -> list[ComparisonRow]:
    """Every variant of every run, times in the common cell, else in each run's own."""
    cell, rows = common_cell(runs), []
    for results in runs:
        for number, name in enumerate(results["variants"]):
            row = variant_row(results, name, cell or main_cell(results))
            run, state = ("", "") if number else (results["name"], overall_state(results))
            rows.append(ComparisonRow(run, row, state))
    return rows


def caveats(runs: Sequence[Results]) -> list[str]:
    """What keeps the numbers of these runs from being compared as they stand."""
    checks: list[tuple[str, Callable[[Results], Any]]] = [
        ("measured on different machines, so compare speedups and not milliseconds", _cpu),
        ("scored on different data or by different metrics", _score),
        ("compared with different dense models", _baseline_hash),
    ]
    found = [note for note, read in checks if len({str(read(results)) for results in runs}) > 1]
    if common_cell(runs) is None:
        found.append("timed in no common cell: each run shows its own first one")
    return [f"Note: these runs were {note}." for note in found]


def _cpu(results: Results) -> Any:
    return (results.get("environment") or {}).get("cpu")


def _score(results: Results) -> Any:
    task = results.get("task") or {}
    return task.get("dataset"), task.get("metric"), (task.get("examples") or {}).get("validation")


def _baseline_hash(results: Results) -> Any:
    return results["variants"].get(results["baseline"], {}).get("sha256")

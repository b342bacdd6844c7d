"""Many runs on one page."""

from collections.abc import Sequence
from pathlib import Path

from compressor.files import write_text
from compressor.report.fields import Results, better_corner, listed
from compressor.report.plots import runs_against_latency
from compressor.report.render import render
from compressor.report.rows import drop_header, metric_header
from compressor.report.side_by_side import caveats, common_cell, comparison_rows
from compressor.report.verdict import overall_state, verdict


def write_comparison(runs: Sequence[Results], target: Path) -> Path:
    """Write the self-contained page that compares `runs` (at least one) to `target`, and return it."""
    cell = common_cell(runs)
    page = render(
        "compare.html.j2",
        title=f"Comparison of {len(runs)} runs",
        names=listed(results["name"] for results in runs),
        cell=cell,
        verdicts=[(results["name"], verdict(results), overall_state(results)) for results in runs],
        rows=comparison_rows(runs),
        metric_header=metric_header(runs[0]),
        drop_header=drop_header(runs[0]),
        caveats=caveats(runs),
        better=better_corner(runs[0]),
        plot=runs_against_latency(list(runs), cell),
    )
    write_text(target, page)
    return target

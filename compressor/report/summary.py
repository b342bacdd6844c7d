"""Finished runs in Markdown: for a pull request, a release page, a job's summary."""

from collections.abc import Sequence

from compressor.report.fields import Results, main_cell
from compressor.report.markdown import plain
from compressor.report.rows import drop_header, gate_rows, metric_header, variant_rows
from compressor.report.verdict import overall_state, verdict

STATES = {"passed": "✅", "failed": "❌", "inconclusive": "❔"}


def markdown_summary(runs: Sequence[Results]) -> str:
    """A section a run: what came of it in a sentence, its variants, and its gates."""
    return "\n\n".join(_section(results) for results in runs) + "\n"


def _section(results: Results) -> str:
    mark = STATES.get(overall_state(results), "")
    cell = main_cell(results)
    parts = [
        f"### {mark} {plain(results['name'])}".replace("  ", " "),
        plain(verdict(results)),
        _variants(results),
    ]
    if cell:
        parts.append(f"Latency and speedup: {plain(cell)}. Brackets are 95 % intervals.")
    rows = gate_rows(results)
    if rows:
        table = [[STATES.get(row.state, ""), row.name, row.variant, row.value, row.limit] for row in rows]
        parts.append(_table(["", "gate", "variant", "measured", "limit"], table))
    return "\n\n".join(parts)


def _variants(results: Results) -> str:
    header = ["variant", metric_header(results), drop_header(results), "speedup", "p50", "file"]
    rows = [
        [row.name, row.metric, row.drop, row.speedup + " (noisy)" * row.noisy, row.p50, row.size]
        for row in variant_rows(results)
    ]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(plain(text) for text in line)} |" for line in lines)

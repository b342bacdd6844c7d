"""Latency tables as a page: what every width costs, drawn and in numbers, and how well it fits whole models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compressor.cell import Cell
from compressor.files import write_text
from compressor.report.fields import percent, significant
from compressor.report.render import render
from compressor.report.svg import ACCENT, INK, MUTED, blank, figure

Table = Mapping[str, Any]
"""A latency table as plain data."""
KINDS = {"attention": "attention, by heads", "ffn": "FFN, by neurons"}


def write_latency_tables(tables: Sequence[Table], target: Path) -> Path:
    """Write the self-contained page of `tables` to `target`, and return it."""
    sections = [
        {
            "title": title_of(table),
            "summary": summary_of(table),
            "plot": table_picture(table),
            "rows": {title: width_rows(table, kind) for kind, title in KINDS.items()},
            "probes": probe_rows(table),
        }
        for table in tables
    ]
    write_text(target, render("latency_table.html.j2", title="Latency tables", sections=sections))
    return target


def title_of(table: Table) -> str:
    """The encoder and the conditions: `bert, 6 layers of 384: int8, cpu, 2 threads, batch 1, 128 tokens`."""
    shape, setting = table["shape"], table["setting"]
    encoder = f"{shape['family']}, {shape['layers']} layers of {shape['hidden']}"
    return f"{encoder}: {setting['precision']}, {Cell(**setting['cell'])}"


def summary_of(table: Table) -> list[tuple[str, str]]:
    """What the table says in a few numbers, and what of it."""
    check, shape = table["check"], table["shape"]
    dense = next(row for row in check["probes"] if row["name"] == "probe-dense")
    layer = table["attention"]["ms"][-1] + table["ffn"]["ms"][-1]
    worst = max(check["probes"], key=lambda row: abs(row["error"]))
    rows = [
        ("dense model", f"{_ms(dense['predicted_ms'])} predicted, {_ms(dense['measured_ms'])} measured"),
        ("a dense layer", f"{_ms(layer)}, {shape['layers']} of them; {_ms(table['base_ms'])} without layers"),
        ("worst of the check", f"{_signed(worst['error'])} ({len(check['probes'])} whole models)"),
        (
            "machine",
            f"{table['setting']['machine']['cpu']}, onnxruntime {table['setting']['machine']['onnxruntime']}",
        ),
    ]
    return rows + [("meanwhile", check["disturbance"])] * bool(check["disturbance"])


def width_rows(table: Table, kind: str) -> list[tuple[str, str, str, str]]:
    """Units kept, milliseconds, share of the dense sub-layer and what is special; the widest first."""
    curve = table[kind]
    slow = {int(units): ms for units, ms in curve["slow"].items()}
    times = dict(zip(curve["widths"], curve["ms"], strict=True)) | slow
    dense = curve["ms"][-1] or 1.0
    rows = [
        (str(units), _ms(times[units]), percent(times[units] / dense, 0), _note(units, slow, curve["noisy"]))
        for units in sorted(times, reverse=True)
    ]
    constant = (
        "nothing",
        _ms(curve["constant"]),
        percent(curve["constant"] / dense, 0),
        "bias, residual and norm stay",
    )
    return [*rows, constant, ("absent", _ms(0.0), percent(0.0, 0), "")]


def probe_rows(table: Table) -> list[tuple[str, str, str, str]]:
    """Whole models: name, predicted, measured, error."""
    return [
        (
            row["name"].removeprefix("probe-"),
            _ms(row["predicted_ms"]),
            f"{_ms(row['measured_ms'])} ± {percent(row['uncertain'], 0)}",
            _signed(row["error"]),
        )
        for row in table["check"]["probes"]
    ]


@figure("Time of a sub-layer by what it keeps, and whole models as predicted and as measured")
def table_picture(table: Table) -> Figure | None:
    """Three panels: attention, FFN, and the check."""
    made = blank(2.3)
    attention, ffn, check = made.subplots(1, 3)
    for axes, kind, unit in ((attention, "attention", "heads"), (ffn, "ffn", "neurons")):
        _draw_curve(axes, table[kind])
        axes.set_title("FFN" if kind == "ffn" else kind)
        axes.set_xlabel(f"{unit} kept")
    attention.set_ylabel("ms")
    _draw_check(check, table["check"]["probes"])
    return made


def _draw_curve(axes: Axes, curve: Mapping[str, Any]) -> None:
    """The line with its measured widths; slow ones are crosses, uncertain ones hollow."""
    widths, ms = curve["widths"], curve["ms"]
    axes.plot(widths, ms, color=ACCENT, linewidth=1.2)
    for noisy in (False, True):
        points = [(w, t) for w, t in zip(widths, ms, strict=True) if (w in curve["noisy"]) == noisy]
        face = "none" if noisy else ACCENT
        axes.plot(
            *zip(*points, strict=True) if points else ((), ()), "o", color=ACCENT, markerfacecolor=face, ms=3
        )
    slow = {int(units): ms for units, ms in curve["slow"].items()}
    axes.plot(list(slow), list(slow.values()), "x", color=INK, ms=5)
    axes.plot([0], [curve["constant"]], "_", color=MUTED, ms=6)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def _draw_check(axes: Axes, probes: Sequence[Mapping[str, Any]]) -> None:
    measured = [row["measured_ms"] for row in probes]
    axes.plot([0, max(measured)], [0, max(measured)], color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    errors = [row["measured_ms"] * row["uncertain"] for row in probes]
    axes.errorbar(
        [row["predicted_ms"] for row in probes],
        measured,
        yerr=errors,
        fmt="o",
        color=ACCENT,
        ms=3,
        elinewidth=0.8,
    )
    axes.set_title("whole models")
    axes.set_xlabel("predicted (ms)")
    axes.set_ylabel("measured (ms)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def _note(units: int, slow: Mapping[int, float], noisy: Sequence[int]) -> str:
    words = ["slow: avoid it"] * (units in slow) + ["uncertain"] * (units in noisy)
    return ", ".join(words)


def _ms(value: float) -> str:
    return f"{significant(value)} ms"


def _signed(error: float) -> str:
    return ("+" if round(error, 3) > 0 else "") + percent(error)

"""The figures of the report, each `results -> SVG text`, empty where the results hold nothing to draw."""

from collections import defaultdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from compressor.cell import Cell
from compressor.report.fields import (
    Results,
    cells,
    entry_at,
    is_fraction,
    main_cell,
    member_of,
    metric_label,
    metric_of,
)
from compressor.report.points import Point, points_of, scatter
from compressor.report.shares import shares
from compressor.report.svg import ACCENT, INK, MUTED, bare, blank, figure


@figure("Metric against latency of every variant")
def accuracy_against_latency(results: Results) -> Figure | None:
    """Every variant at its p50 latency and metric in the main cell, with 95 % intervals."""
    points = points_of(results, main_cell(results))
    if len(points) < 2:
        return None
    return scatter(points, _metric_axis(results))


@figure("Metric against latency of several runs")
def runs_against_latency(runs: list[Results], cell: Cell | None) -> Figure | None:
    """The variants of several runs in one plot; every run has its own mark, its final variant its name."""
    if len({(metric_of(results) or {}).get("name") for results in runs}) > 1:
        return None  # one axis cannot hold an accuracy and a perplexity
    points: list[Point] = []
    for number, results in enumerate(runs):
        points += points_of(results, cell or main_cell(results), run=number)
    return scatter(points, _metric_axis(runs[0])) if points else None


def _metric_axis(results: Results) -> str:
    name = (metric_of(results) or {}).get("name", "metric")
    return f"{metric_label(name)} (%)" if is_fraction(name) else metric_label(name)


@figure("Latency of every variant by sequence length or batch size")
def latency_curves(results: Results) -> Figure | None:
    """p50 latency with its interval along the lengths (or batch sizes), a panel for each other condition."""
    axis, panels = _curve_panels(cells(results))
    if not panels:
        return None
    rows = (len(panels) + 1) // 2
    made = blank(2.1 * rows + 0.5)
    grid = list(made.subplots(rows, 2, squeeze=False).flat)
    for axes, (title, along) in zip(grid, panels.items(), strict=False):
        _latency_panel(axes, results, along, axis)
        axes.set_title(title)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    lines = {line.get_label(): line for axes in grid for line in axes.get_lines()}
    made.legend(handles=list(lines.values()), loc="outside upper left", ncols=4)
    return made


def _curve_panels(found: list[Cell]) -> tuple[str, dict[str, list[Cell]]]:
    """The field that varies along the x axis, and its cells by everything else that is held."""
    found = [cell for cell in found if isinstance(cell.sequence_length, int)]
    for axis in ("sequence_length", "batch_size", "threads"):
        panels: dict[str, list[Cell]] = defaultdict(list)
        for cell in found:
            panels[_held(cell, axis)].append(cell)
        curves = {title: along for title, along in panels.items() if len(along) > 1}
        if curves:
            return axis, curves
    return "", {}


def _held(cell: Cell, axis: str) -> str:
    words = {
        "threads": f"{cell.threads} thread" + "s" * (cell.threads != 1),
        "batch_size": f"batch {cell.batch_size}",
        "sequence_length": f"{cell.sequence_length} tokens",
    }
    part = [] if cell.part == "forward" else [cell.part]
    return ", ".join([cell.provider, *(word for key, word in words.items() if key != axis), *part])


def _latency_panel(axes: Axes, results: Results, along: list[Cell], axis: str) -> None:
    along = sorted(along, key=lambda cell: getattr(cell, axis))
    for name, variant in results["variants"].items():
        entries = [(getattr(c, axis), entry_at(variant.get("latency"), c)) for c in along]
        measured = [(x, entry) for x, entry in entries if entry]
        if measured:
            xs = [x for x, _ in measured]
            axes.plot(xs, [e["p50_ms"] for _, e in measured], label=name, **line_style(results, name))
            low, high = zip(*(e.get("p50_ci95") or [e["p50_ms"]] * 2 for _, e in measured), strict=True)
            axes.fill_between(xs, low, high, color=MUTED, alpha=0.2, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xticks(_spread([getattr(cell, axis) for cell in along]))
    axes.set_xlabel(axis.replace("_", " "))
    axes.set_ylabel("p50 (ms)")


def _spread(ticks: list[int]) -> list[int]:
    """The ticks whose labels have room, the largest first."""
    kept = ticks[-1:]
    for tick in reversed(ticks):
        if kept[-1] - tick >= 0.14 * (ticks[-1] - ticks[0]):
            kept.append(tick)
    return kept


def line_style(results: Results, name: str) -> dict[str, Any]:
    """Grey for dense, tints of the accent for the members in order; dashed where quantized."""
    members = list(dict.fromkeys(member_of(n)[0] for n in results["variants"]))
    pruned = [m for m in members if m != "dense"]
    member, precision = member_of(name)
    tint = 1.0 if member not in pruned else 0.4 + 0.6 * (pruned.index(member) + 1) / len(pruned)
    return {
        "color": ACCENT if member in pruned else MUTED,
        "alpha": tint,
        "linestyle": "-" if precision == "fp32" else (0, (3, 1.5)),
        "linewidth": 1.4,
        "marker": "o",
        "markersize": 3.5,
    }


@figure("Speedup of pruning alone, quantization alone, and both")
def share_bars(results: Results) -> Figure | None:
    """For every pruned and quantized variant: what each half gives alone, and both together."""
    found = shares(results)
    if not found:
        return None
    made = blank(0.75 * len(found) + 0.25)
    axes: Axes = made.subplots()
    bare(axes)
    ticks = []
    for number, share in enumerate(found):
        bars = {
            "pruning alone": share.pruning,
            "quantization alone": share.quantization,
            share.variant: share.both,
        }
        for row, (label, value) in enumerate(bars.items()):
            y = number * 4 + row
            last = row == 2
            axes.barh(y, value, height=0.72, color=ACCENT if last else MUTED, alpha=1 if last else 0.55)
            axes.annotate(f"{value:.2f}x", (value, y), (4, 0), textcoords="offset points", va="center")
            ticks.append((y, label))
    axes.plot([1, 1], [-0.6, number * 4 + 2.5], color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.text(1, -0.75, "dense", ha="center", va="bottom", color=MUTED, fontsize=7.5)
    axes.set_yticks([y for y, _ in ticks], [label for _, label in ticks])
    axes.set_ylim(number * 4 + 2.6, -1.4)
    axes.set_xlim(0, max(share.both for share in found) * 1.15)
    return made


@figure("Training loss, and what pruning leaves, by step; a panel a stage")
def training_curves(results: Results) -> Figure | None:
    """What each training stage logged by optimiser step: its losses and, beside them, densities."""
    panels = []
    for stage in results.get("training") or []:
        panels.append((stage["stage"], _series(stage["log"], ("loss",))))
        panels.append((f"{stage['stage']}, what is left", _series(stage["log"], ("density", "sparsity"))))
    panels = [(title, series) for title, series in panels if series]
    if not panels:
        return None
    styles = _line_styles(list(dict.fromkeys(key for _, series in panels for key in series)))
    rows = (len(panels) + 1) // 2
    made = blank(1.9 * rows + 0.3)
    grid = list(made.subplots(rows, 2, squeeze=False).flat)
    for axes, (title, series) in zip(grid, panels, strict=False):
        for key, values in series.items():
            xs, ys = zip(*values, strict=True)
            axes.plot(xs, ys, marker="o" if len(xs) < 12 else None, markersize=3, **styles[key])
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    lines = [Line2D([], [], label=key, **style) for key, style in styles.items()]
    made.legend(handles=lines, loc="outside upper left", ncols=3)
    return made


def _line_styles(keys: list[str]) -> dict[str, dict[str, Any]]:
    """The first in the accent, the others grey with ever longer dashes."""
    styles: dict[str, dict[str, Any]] = {}
    for number, key in enumerate(keys):
        dash = (0, (2 * number, 1)) if number > 1 else "-"
        styles[key] = {"color": MUTED if number else ACCENT, "linestyle": dash, "linewidth": 1.2}
    return styles


def _series(log: list[dict[str, Any]], words: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    """Step and value of every logged figure whose name holds one of `words`, the plain loss first."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in log:
        for key, value in entry.items():
            if "step" in entry and any(word in key for word in words):
                series[key].append((entry["step"], value))
    return dict(sorted(series.items(), key=lambda item: item[0] != "loss"))

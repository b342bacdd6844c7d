"""Variants as points of metric against latency, with their intervals and with labels that keep apart."""

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from compressor.cell import Cell
from compressor.report.fields import Results, entry_at, is_fraction, member_of
from compressor.report.svg import ACCENT, INK, MUTED, RULE, SURFACE, blank

MARKS = "osD^vPXh"
OFFSETS = (
    *((7, 0), (-7, 0), (0, 7), (0, -7), (7, 7), (7, -7), (-7, 7), (-7, -7), (0, 14), (0, -14)),
    *(
        (12, 20),
        (-12, 20),
        (12, -20),
        (-12, -20),
        (0, 28),
        (0, -28),
        (16, 32),
        (-16, 32),
        (16, -32),
        (-16, -32),
    ),
)
FAR = 14
"""Points; a label further off is tied to its mark by a line."""


class Point(NamedTuple):
    """A variant's p50 (ms) and metric, each with its interval; `role` is `baseline`, `final` or empty.

    `family` is the precision of a pruned variant: those of one run and family are one model in several sizes.
    """

    label: str
    role: str
    run: int
    x: float
    x_range: tuple[float, float]
    y: float
    y_range: tuple[float, float]
    family: str = ""


def points_of(results: Results, cell: Cell | None, run: int | None = None) -> list[Point]:
    """A point for every variant with a metric and a time in `cell`.

    With `run`, a number that tells runs apart, only the final variant is labelled, by its run's name.
    """
    found = []
    for name, variant in results["variants"].items():
        latency, metric = entry_at(variant.get("latency"), cell), variant.get("metric")
        if latency is None or metric is None:
            continue
        p50, scale = latency["p50_ms"], 100 if is_fraction(metric["name"]) else 1
        role = "baseline" if name == results["baseline"] else "final" if name == results["final"] else ""
        label = name if run is None else results["name"] if role == "final" else ""
        low, high = latency.get("p50_ci95") or (p50, p50)
        y = scale * metric["value"]
        member, precision = member_of(name)
        family = "" if member == "dense" else precision
        y_range = _metric_range(variant, y, scale)
        found.append(Point(label, role, run or 0, p50, (low, high), y, y_range, family))
    return found


def _metric_range(variant: dict[str, Any], y: float, scale: float) -> tuple[float, float]:
    """The metric's interval, from that of its drop: the baseline's own noise cancels in the pairing."""
    drop = variant.get("metric_drop") or {}
    if not drop.get("ci95"):
        return y, y
    harm = -1 if variant["metric"].get("higher_is_better", True) else 1
    ends = [y + harm * scale * (bound - drop["value"]) for bound in drop["ci95"]]
    return min(ends), max(ends)


def scatter(points: list[Point], metric: str) -> Figure:
    """Draw points: the baseline hollow, the final variant in the accent, times from zero."""
    made = blank(3.1)
    axes: Axes = made.subplots()
    _join_families(axes, points)
    for point in points:
        accent = point.role == "final"
        colour = ACCENT if accent else MUTED
        axes.plot(point.x_range, [point.y] * 2, color=colour, linewidth=1.1, alpha=0.7)
        axes.plot([point.x] * 2, point.y_range, color=colour, linewidth=1.1, alpha=0.7)
        axes.plot(
            point.x,
            point.y,
            marker=MARKS[point.run % len(MARKS)],
            markersize=7 if accent else 5.5,
            color=SURFACE if point.role == "baseline" else colour,
            markeredgecolor=colour,
            markeredgewidth=1.2,
            zorder=3,
        )
    for baseline in (p for p in points if p.role == "baseline"):
        axes.axhline(baseline.y, color=RULE, linewidth=1, linestyle=(0, (3, 2)))
    axes.set_xlim(0, 1.12 * max(p.x_range[1] for p in points))
    axes.margins(y=0.14)
    if metric.endswith("(%)"):
        _end_at_hundred(axes)
    axes.set_xlabel("p50 latency (ms)")
    axes.set_ylabel(metric)
    _label(made, axes, points)
    return made


def _join_families(axes: Axes, points: list[Point]) -> None:
    """A thin line through the sizes of one model, dashed where they are quantized."""
    for run, family in dict.fromkeys((p.run, p.family) for p in points if p.family):
        sizes = sorted((p.x, p.y) for p in points if (p.run, p.family) == (run, family))
        if len(sizes) > 1:
            dash = "-" if family == "fp32" else (0, (3, 1.5))
            axes.plot(*zip(*sizes, strict=True), color=MUTED, linewidth=0.8, linestyle=dash, alpha=0.6)


def _end_at_hundred(axes: Axes) -> None:
    """No tick above 100 %, and little room."""
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= 100]
    axes.set_yticks(ticks)
    axes.set_ylim(low, min(high, 100 + 0.15 * (100 - low)))


def _label(made: Figure, axes: Axes, points: list[Point]) -> None:
    """Write each label at the first offset where it covers no other label, no mark and no interval."""
    made.draw_without_rendering()
    made.set_layout_engine("none")  # positions are final from here on
    taken = [box for point in points for box in _covered(axes, point)]
    for point in sorted((p for p in points if p.label), key=lambda p: p.role != "final"):
        taken.append(_place(axes, point, taken))


def _place(axes: Axes, point: Point, taken: list[Bbox]) -> Bbox:
    colour = ACCENT if point.role == "final" else INK
    text = axes.annotate(point.label, (point.x, point.y), (0, 0), textcoords="offset points", color=colour)
    for dx, dy in (*OFFSETS, OFFSETS[0]):  # the first again, where all are taken
        text.set_position((dx, dy))
        text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
        text.set_verticalalignment("bottom" if dy > 0 else "top" if dy < 0 else "center")
        box = text.get_window_extent()
        if _contains(axes.bbox, box) and not any(box.overlaps(other) for other in taken):
            break
    if max(abs(dx), abs(dy)) > FAR:
        tie = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        axes.annotate("", (point.x, point.y), (dx, dy), textcoords="offset points", arrowprops=tie)
    return box


def _covered(axes: Axes, point: Point) -> list[Bbox]:
    """Where the mark and the two intervals of `point` are drawn."""
    spans = (
        ((point.x, point.x), (point.y, point.y), 4),
        (point.x_range, (point.y, point.y), 1),
        ((point.x, point.x), point.y_range, 1),
    )
    corners = [(axes.transData.transform(list(zip(xs, ys, strict=True))), pad) for xs, ys, pad in spans]
    return [Bbox([low - pad, high + pad]) for (low, high), pad in corners]


def _contains(outer: Bbox, box: Bbox) -> bool:
    return outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1

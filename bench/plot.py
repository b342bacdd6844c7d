"""Plots of what benches measured: losses against speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

SETTINGS = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
}
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#767676")
"""Told apart by the colour-blind."""
MARKS = "osD^v"
Estimate = Mapping[str, float | Sequence[float]]
"""A `value` with its interval `ci95`."""


def save_plot(
    series: Mapping[str, Sequence[tuple[Estimate, Estimate]]], title: str, across: str, up: str, path: Path
) -> None:
    """Draw every series' points, (across, up) each with its interval, in a line."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        for (name, pairs), colour, mark in zip(series.items(), COLOURS, MARKS, strict=False):
            x, y = (
                np.array([[one["value"], *one["ci95"]] for one in axis]) for axis in zip(*pairs, strict=True)
            )  # type: ignore[misc]
            order = np.argsort(x[:, 0])
            axes.errorbar(
                x[order, 0],
                y[order, 0],
                xerr=_lengths(x[order]),
                yerr=_lengths(y[order]),
                fmt=f"{mark}-",
                color=colour,
                label=name,
                markersize=5,
                linewidth=1,
            )
        axes.axhline(0, color="#767676", linewidth=1)
        axes.set_title(title)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        figure.legend(loc="outside lower center", ncols=len(series), frameon=False)
        figure.savefig(path, metadata={"Date": None})


def _lengths(rows: np.ndarray) -> np.ndarray:
    """How far intervals reach below and above, from rows of value, low and high."""
    return np.abs(rows[:, 1:] - rows[:, :1]).T

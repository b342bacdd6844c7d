"""Matplotlib figures as inline SVG that follows the page: its font, and its colours in light and dark.

Figures are drawn in marker colours; in the SVG text these become CSS variables of the page (`currentColor`,
`var(--accent)`, ...), so one drawing serves both colour schemes and print.
"""

import functools
import hashlib
import io
import re
from collections.abc import Callable
from html import escape
from typing import ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT, SURFACE = "#010101", "#020202", "#030303", "#040404", "#050505"
CSS = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    SURFACE: "var(--surface)",
}
WIDTH = 4.8  # inches; scaled by the page, so that 9 pt text is readable on a phone

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "compressor",
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
}

P = ParamSpec("P")


def figure(label: str) -> Callable[[Callable[P, Figure | None]], Callable[P, str]]:
    """Turn a function that draws a figure into one that returns it as SVG text, `label` read to the blind.

    A function that has nothing to draw returns `None`; its SVG text is then empty.
    """

    def wrap(draw: Callable[P, Figure | None]) -> Callable[P, str]:
        @functools.wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
            with matplotlib.rc_context(SETTINGS):
                result = draw(*args, **kwargs)
                return "" if result is None else _svg(result, label)

        return drawn

    return wrap


def blank(height: float) -> Figure:
    """An empty figure of the page's width and `height` inches, without pyplot's global state."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(made)
    return made


def bare(axes: Axes) -> None:
    """Leave out the frame, ticks and grid of `axes`."""
    axes.grid(False)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6)


def _svg(made: Figure, label: str) -> str:
    buffer = io.StringIO()
    # No date, creator or format: the same results give the same bytes.
    made.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->\n?|<metadata>.*?</metadata>\n?", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)
    prefix = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]  # several figures share a page
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, css in CSS.items():
        text = text.replace(colour, css)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = f'<svg class="plot" role="img" aria-label="{escape(label)}" {view.group()}>'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)

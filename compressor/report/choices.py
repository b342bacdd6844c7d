"""How a method came to its choice: what was asked and measured on the way, the order in which layers went."""

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from compressor.report.fields import MISSING, Results, pruned_with
from compressor.report.svg import ACCENT, MUTED, blank, figure

ASKED: dict[str, Callable[[float], str]] = {
    "speedup": lambda value: f"{value:g}x",
    "latency_ms": lambda value: f"{value:g} ms",
    "max_metric_drop": lambda value: f"at most {100 * value:g} points lost",
}
"""How a goal is written."""


def aim_rows(results: Results) -> list[list[str]]:
    """A row a model that aimed at something: asked, reached while pruning, precision, loss, models exported."""
    rows = []
    for member, found in pruned_with(results, "asked"):
        ((goal, value),) = found["asked"].items()
        measured = found["measured"]
        reached = f"{measured['speedup']:.2f}x, {measured['ms']:.3g} ms"
        losses = [found[key] for key in ("divergence", "recovered") if key in found]
        loss = f"{min(losses):.2g}" if losses else MISSING
        tries = str(len(found.get("attempts") or found.get("tried") or []))
        rows.append([member, ASKED[goal](value), reached, found.get("precision", "fp32"), loss, tries])
    return rows


def search_rows(results: Results) -> list[list[str]]:
    """A row a round of a search for layers: which layer went, and the score on the selection split without it."""
    longest = max(
        (found for _, found in pruned_with(results, "order")), key=lambda f: len(f["order"]), default=None
    )
    if longest is None:
        return []
    pairs = zip(longest["order"], longest["scores"], strict=True)
    return [[str(number), str(layer), f"{score:.3f}"] for number, (layer, score) in enumerate(pairs, start=1)]


@figure(
    "What the search expects to lose, by speedup; losses on the selection split where they were looked for"
)
def aim_curves(results: Results) -> Figure | None:
    """The summed divergence of the sizes chosen at every speed and, beside it, drops that were measured."""
    found = [one for _, one in pruned_with(results, "asked")]
    if not found or not found[0].get("curve"):
        return None
    tried = sorted((row["speedup"], row["drop"]) for one in found for row in one.get("tried") or [])
    made = blank(2.2)
    grid = made.subplots(1, 2 if tried else 1, squeeze=False)[0]
    curve = found[0]["curve"]
    grid[0].plot(
        [r["speedup"] for r in curve], [r["cost"] for r in curve], color=ACCENT, marker="o", markersize=3
    )
    grid[0].set_yscale("log")
    grid[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # powers as text, not as mathematics
    grid[0].yaxis.set_minor_formatter(NullFormatter())
    grid[0].set_ylabel("expected divergence")
    if tried:
        grid[1].plot(
            *zip(*[(s, 100 * d) for s, d in tried], strict=True), color=ACCENT, marker="o", markersize=3
        )
        grid[1].axhline(0, color=MUTED, linewidth=0.6)
        grid[1].set_ylabel("points lost, selection split")
    for axes in grid:
        axes.set_xlabel("speedup by the latency table")
    return made

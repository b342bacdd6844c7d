"""What page, card and console share: where a number lies in `results.json`, and how it is written."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from compressor.cell import Cell

Results = dict[str, Any]

MISSING = "–"
UNBOUNDED = ("perplexity", "bits", "loss")  # every other metric is a fraction


def cells(results: Results) -> list[Cell]:
    """Every cell that any variant was timed in, in the order measured, the baseline's first."""
    names = [results["baseline"], *results["variants"]]
    entries = (e for name in names for e in results["variants"].get(name, {}).get("latency") or [])
    return list(dict.fromkeys(Cell.of(entry) for entry in entries))


def main_cell(results: Results) -> Cell | None:
    """The cell of every single-number claim: the first of the benchmark."""
    return next(iter(cells(results)), None)


def entry_at(entries: list[dict[str, Any]] | None, cell: Cell | None) -> dict[str, Any] | None:
    """The entry of `latency` or `speedup` measured in `cell`."""
    return next((entry for entry in entries or [] if Cell.of(entry) == cell), None)


def pruned_with(results: Results, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What methods reported of the models they made, by name, of those that report `key`."""
    for stage in results.get("pruning") or []:
        yield from ((member, found) for member, found in stage["members"].items() if key in found)


def metric_of(results: Results) -> dict[str, Any] | None:
    """The final variant's primary metric."""
    metric: dict[str, Any] | None = results["variants"].get(results["final"], {}).get("metric")
    return metric


def better_corner(results: Results) -> str:
    """Where in a plot of metric against latency a variant should lie."""
    higher = (metric_of(results) or {}).get("higher_is_better", True)
    return "top left" if higher else "bottom left"


def is_fraction(name: str) -> bool:
    """Whether a metric lies between 0 and 1 and is shown in percent."""
    return not any(word in name.lower() for word in UNBOUNDED)


def metric_label(name: str) -> str:
    """A metric's name for people: `exact match`, `F1`."""
    names = {"f1": "F1", "cosine": "cosine with the dense model's"}
    return names.get(name, name.replace("_", " "))


def fixed(value: float, digits: int = 2) -> str:
    """A number with fixed decimals, a true minus sign, and no negative zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def significant(value: float, digits: int = 3) -> str:
    """A positive quantity with that many significant digits and no exponent: 401, 18.4, 0.42."""
    if not value:
        return "0"
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def interval(bounds: Sequence[float] | None, digits: int = 2, scale: float = 1.0) -> str:
    """` [lo, hi]` with a leading space, or nothing where there is no interval."""
    if not bounds:
        return ""
    low, high = (fixed(bound * scale, digits) for bound in bounds)
    return f" [{low}, {high}]"


def metric_text(name: str, value: float | None) -> str:
    """A metric's value: `91.17 %`, or `23.41` for perplexity and its like."""
    if value is None:
        return MISSING
    return f"{fixed(100 * value)} %" if is_fraction(name) else fixed(value)


def drop_text(name: str, drop: dict[str, Any] | None, digits: int = 2) -> str:
    """A drop with its interval, in points for fractions and in the metric's unit otherwise."""
    if drop is None or drop.get("value") is None:
        return MISSING
    scale = 100 if is_fraction(name) else 1
    return fixed(scale * drop["value"], digits) + interval(drop.get("ci95"), digits, scale)


def speedup_text(entry: dict[str, Any] | None) -> str:
    """`2.31x [2.25, 2.38]`, from ten on with one decimal."""
    if entry is None:
        return MISSING
    return ratio_text(entry["value"]) + interval(entry.get("ci95"), ratio_digits(entry["value"]))


def ratio_text(value: float) -> str:
    """`2.31x`."""
    return f"{fixed(value, ratio_digits(value))}x"


def ratio_digits(value: float) -> int:
    """Decimals that a ratio is worth."""
    return 1 if value >= 10 else 2


def ms_text(entry: dict[str, Any] | None, key: str = "p50_ms") -> str:
    """A latency entry's time, `18.4 ms`."""
    return MISSING if entry is None or entry.get(key) is None else f"{significant(entry[key])} ms"


def ms_interval(entry: dict[str, Any]) -> str:
    """The interval of a latency entry's p50, `[7.85, 8.13]`, or nothing."""
    bounds = entry.get("p50_ci95")
    return f"[{significant(bounds[0])}, {significant(bounds[1])}]" if bounds else ""


def megabytes(size: float | None) -> str:
    """`86.4 MB`, of a million bytes each."""
    return MISSING if size is None else f"{fixed(size / 1e6, 1)} MB"


def count_text(count: float | None) -> str:
    """A number of parameters, `22.7 M`."""
    if count is None:
        return MISSING
    return f"{fixed(count / 1e6, 1)} M" if count >= 1e6 else f"{count:,.0f}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """`54.2 %`."""
    return MISSING if fraction is None else f"{fixed(100 * fraction, digits)} %"


def duration(seconds: float) -> str:
    """`2 h 14 min`, `3 min 20 s`, `3.2 s`."""
    if seconds < 60:
        return f"{fixed(seconds, 1)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listed(words: Iterable[object]) -> str:
    """Words joined by commas."""
    return ", ".join(str(word) for word in words)


def member_of(variant: str) -> tuple[str, str]:
    """The family member and the precision in a variant's name: `2x_int8` is `2x`, `int8`."""
    member, _, precision = variant.rpartition("_")
    return member or variant, precision

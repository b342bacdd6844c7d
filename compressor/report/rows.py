"""The rows of the tables, as text: variants and gates."""

from typing import Any, NamedTuple

from compressor.cell import Cell
from compressor.report.fields import (
    MISSING,
    Results,
    count_text,
    drop_text,
    entry_at,
    fixed,
    interval,
    is_fraction,
    main_cell,
    megabytes,
    metric_label,
    metric_of,
    metric_text,
    ms_text,
    percent,
    significant,
    speedup_text,
)


class VariantRow(NamedTuple):
    """A variant's numbers as text; `role` is `baseline`, `final` or empty."""

    name: str
    role: str
    metric: str
    drop: str
    speedup: str
    noisy: bool
    p50: str
    size: str
    parameters: str
    sliced: str
    nonzero: str


def variant_row(results: Results, name: str, cell: Cell | None) -> VariantRow:
    """The row of variant `name`, its times taken in `cell`."""
    variant = results["variants"][name]
    metric = variant.get("metric")
    is_baseline = name == results["baseline"]
    speedup = entry_at(variant.get("speedup"), cell)
    return VariantRow(
        name=name,
        role="baseline" if is_baseline else "final" if name == results["final"] else "",
        metric=metric_text(metric["name"], metric["value"]) if metric else MISSING,
        drop=drop_text(metric["name"], variant.get("metric_drop")) if metric and not is_baseline else MISSING,
        speedup=MISSING if is_baseline else speedup_text(speedup),
        noisy=bool(speedup and speedup.get("noisy")),
        p50=ms_text(entry_at(variant.get("latency"), cell)),
        size=megabytes(variant.get("file_bytes")),
        parameters=count_text(variant.get("parameters")),
        sliced=percent(variant.get("sliced_density")),
        nonzero=percent(variant.get("nonzero_density")),
    )


def variant_rows(results: Results) -> list[VariantRow]:
    """A row for every variant, in the order of the results, times in the main cell."""
    cell = main_cell(results)
    return [variant_row(results, name, cell) for name in results["variants"]]


def headline(results: Results) -> list[tuple[str, str, str]]:
    """What became of the dense model: label, number of the final variant and of the dense one, where measured."""
    if results["final"] == results["baseline"] or results["final"] not in results["variants"]:
        return []
    cell = main_cell(results)
    now, before = (variant_row(results, results[role], cell) for role in ("final", "baseline"))
    pairs = [
        (metric_header(results), now.metric, before.metric),
        ("p50 latency", now.p50, before.p50),
        ("file", now.size, before.size),
    ]
    return [pair for pair in pairs if MISSING not in pair]


def metric_header(results: Results) -> str:
    """The primary metric's name as a column title: `accuracy`, `exact match`."""
    metric = metric_of(results)
    return metric_label(metric["name"]) if metric else "metric"


def drop_header(results: Results) -> str:
    """The title of the column of drops: `drop (points)` for fractions, `added perplexity`."""
    metric = metric_of(results)
    if metric is None or is_fraction(metric["name"]):
        return "drop (points)"
    return "drop" if metric["higher_is_better"] else f"added {metric_label(metric['name'])}"


class GateRow(NamedTuple):
    """A gate as text; `state` is `passed`, `failed` or `inconclusive`."""

    name: str
    limit: str
    value: str
    state: str
    variant: str
    detail: str


def gate_rows(results: Results) -> list[GateRow]:
    """A row for every gate, in the order of the results."""
    return [_gate_row(results, gate) for gate in results.get("gates") or []]


def _gate_row(results: Results, gate: dict[str, Any]) -> GateRow:
    variant = gate.get("variant") or results["final"]
    metric = (results["variants"].get(variant, {}).get("metric") or {}).get("name", "")
    bound = "≤" if gate["name"].startswith("max_") else "≥"
    return GateRow(
        name=gate["name"],
        limit=f"{bound} {_gate_number(gate['name'], metric, gate['limit'])}",
        value=_gate_number(gate["name"], metric, gate.get("value"), gate.get("ci95")),
        state=gate_state(gate),
        variant=variant,
        detail=gate.get("detail") or "",
    )


def gate_state(gate: dict[str, Any]) -> str:
    """`inconclusive` wins over `passed`: with `on_noise: warn` a noisy gate lets the run through."""
    if gate.get("inconclusive"):
        return "inconclusive"
    return "passed" if gate["passed"] else "failed"


def _gate_number(name: str, metric: str, value: float | None, ci95: list[float] | None = None) -> str:
    if value is None:
        return "not measured"
    scale, unit, digits = _gate_unit(name, metric)
    if name == "max_parity_error":
        return f"{value:.1e}"
    number = significant(value) if name == "max_latency_ms" else fixed(scale * value, digits)
    return number + unit + interval(ci95, digits, scale)


def _gate_unit(name: str, metric: str) -> tuple[float, str, int]:
    """Scale, unit and decimals of a gate's numbers."""
    fraction = is_fraction(metric)
    units: dict[str, tuple[float, str, int]] = {
        "max_metric_drop": (100, " points", 2) if fraction else (1, "", 2),
        "max_metric_drop_relative": (100, " %", 2),
        "min_metric": (100, " %", 2) if fraction else (1, "", 2),
        "min_speedup": (1, "x", 2),
        "min_speedup_over_fp32": (1, "x", 2),
        "max_latency_ms": (1, " ms", 2),
        "max_target_miss": (100, " %", 1),
        "max_file_mb": (1, " MB", 1),
        "min_agreement": (100, " %", 2),
    }
    return units.get(name, (1, "", 2))

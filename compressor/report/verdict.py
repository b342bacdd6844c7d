"""A run in a sentence."""

from typing import Any

from compressor.report.fields import (
    Results,
    entry_at,
    fixed,
    interval,
    is_fraction,
    listed,
    main_cell,
    metric_text,
    ratio_digits,
    ratio_text,
    speedup_text,
)
from compressor.report.rows import gate_rows, metric_header


def verdict(results: Results) -> str:
    """The run in a sentence: how much faster, at what loss, and what the gates say."""
    return f"{claim(results, results['final'])}; {_gates_claim(results)}"


def claim(results: Results, name: str) -> str:
    """How much faster variant `name` is than dense, and at what loss, both with their intervals."""
    variant = results["variants"].get(name, {})
    metric = variant.get("metric")
    if name == results["baseline"]:
        score = f", {metric_header(results)} {metric_text(metric['name'], metric['value'])}" if metric else ""
        return f"Dense model only{score}: nothing to compare with"
    speed = entry_at(variant.get("speedup"), main_cell(results))
    loss = _loss(variant, metric_header(results))
    if speed is None:
        return f"{loss[0].upper()}{loss[1:]} than dense, speed not measured"
    value, bounds = speed["value"], speed.get("ci95")
    low, high = bounds or (value, value)
    if low > 1:
        return f"{ratio_text(value)} faster{interval(bounds, ratio_digits(value))} than dense at {loss}"
    if high < 1:
        return f"Slower than dense, {speedup_text(speed)} its speed, at {loss}"
    return f"No faster than dense beyond noise, {speedup_text(speed)}, at {loss}"


def _loss(variant: dict[str, Any], metric: str) -> str:
    drop = variant.get("metric_drop")
    if not drop or drop.get("value") is None:
        return f"an unmeasured change of {metric}"
    fraction = is_fraction(metric)
    higher = variant["metric"].get("higher_is_better", True)
    worse, better = ("less", "more") if higher else ("more", "less")
    scale, unit, digits = (100, " points", 1) if fraction else (1, "", 2)
    size = fixed(abs(scale * drop["value"]), digits)
    if float(size) == 0:
        return f"the same {metric}{_signed_interval(drop, scale, digits)}"
    word, sign = (worse, 1) if drop["value"] > 0 else (better, -1)
    return f"{size}{unit} {word} {metric}{_signed_interval(drop, sign * scale, digits)}"


def _signed_interval(drop: dict[str, Any], scale: float, digits: int) -> str:
    return interval(sorted(bound * scale for bound in drop.get("ci95") or []), digits)


def _gates_claim(results: Results) -> str:
    rows = gate_rows(results)
    if not rows:
        return "no gates were set"
    claims = [
        f"{state}: {listed(dict.fromkeys(row.name for row in rows if row.state == state))}"
        for state in ("failed", "inconclusive")
        if any(row.state == state for row in rows)
    ]
    return "; ".join(claims) or "all gates passed"


def overall_state(results: Results) -> str:
    """`passed`, `failed`, `inconclusive`, or `none` without gates: the worst gate's state."""
    states = {row.state for row in gate_rows(results)}
    return next((state for state in ("failed", "inconclusive", "passed") if state in states), "none")

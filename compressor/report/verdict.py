"""A run in a sentence."""

import math
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
    pruned_with,
    ratio_digits,
    ratio_text,
    speedup_text,
)
from compressor.report.rows import gate_rows, metric_header

STEADY = 1.1
"""A machine on which the same model takes so many times as long, or as short, is not the same one."""


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


def drift(results: Results) -> str | None:
    """That the machine was another one while models were aimed at a speed, by what the dense model took; if so.

    What stands beside a virtual machine, or two threads that share a core, cannot be seen from inside.
    """
    at = ((results.get("recipe") or {}).get("target") or {}).get("at") or {}
    now = entry_at(results["variants"][results["baseline"]].get("latency"), main_cell(results))
    then = [
        found["measured"]["ms"] * found["measured"]["speedup"] for _, found in pruned_with(results, "asked")
    ]
    if set(at) - {"precision"} or not now or not then:
        return None
    farthest = max(then, key=lambda ms: abs(math.log(now["p50_ms"] / ms)))
    if 1 / STEADY < now["p50_ms"] / farthest < STEADY:
        return None
    return (
        f"The dense model took {farthest:.3g} ms while speeds were aimed at, {now['p50_ms']:.3g} ms when all was "
        "timed: the machine was in another state, and small models feel it more. Time again, or aim again, when it "
        "is quiet."
    )


def notes(results: Results) -> list[str]:
    """What a reader of the figures should know besides."""
    return [note for note in (drift(results), shared(results), gentler(results)) if note]


def shared(results: Results) -> str | None:
    """That something else had its share of the machine while variants were timed, if so."""
    conditions = results.get("conditions") or []
    aside, counted = (sum(one.get(key, 0) for one in conditions) for key in ("set_aside", "processes"))
    if not aside:
        return None
    return (
        f"{aside} of {aside + counted} measuring processes were set aside: everything took longer in them, as where "
        "something else shares the machine. A server that shares it all the time is slower than shown here."
    )


def gentler(results: Results) -> str | None:
    """What to try where a model that was pruned to a speed at once loses more than its gate allows."""
    lost = {
        gate["variant"].rpartition("_")[0]
        for gate in results.get("gates") or []
        if gate["name"].startswith("max_metric_drop") and not gate["passed"]
    }
    recipe = results.get("recipe") or {}
    prunes = [keys for stage in recipe.get("stages") or [] for keys in stage.values() if keys]
    at_once = [
        keys.get("id", "prune")
        for keys in prunes
        if keys.get("method") == "speed" and keys.get("steps", 1) == 1
    ]
    if not at_once or not any(member in lost for member, _ in pruned_with(results, "asked")):
        return None
    return (
        "More was lost than the gate allows. The method's paper goes to high speeds in several steps, with training "
        f"between them: --set stages.{at_once[0]}.steps=3 --set stages.{at_once[0]}.epochs=1."
    )


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

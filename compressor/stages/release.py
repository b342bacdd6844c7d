"""Gates: what a run must show before its artifact is released."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from compressor.cell import Cell
from compressor.pruning.target import Target, members_of
from compressor.schema import Keys

Positive = Annotated[float, Field(gt=0)]
BASELINE = "dense_fp32"
"""The variant that speedups and drops are measured from."""
OVER_FP32 = "min_speedup_over_fp32"
"""A gate that no recipe has to ask for: what is quantized must not be slower than the same model in fp32."""
TARGET = "max_target_miss"
"""Another one: what aimed at a speed must have it when it is measured for the report."""


class Limit(Keys):
    """A limit for one benchmark cell (default: the first) and one variant (default: what is released)."""

    value: Positive
    provider: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    sequence_length: int | None = None
    part: str | None = None
    variant: str | None = None


class GateKeys(Keys):
    """Metrics are fractions; drops are harm in the primary metric; speedups are against the dense fp32 model.

    `max_target_miss`: what was pruned to a speedup or a latency may be slower than that by this share.
    """

    max_metric_drop: Annotated[float, Field(ge=0)] | None = None
    max_metric_drop_relative: Annotated[float, Field(ge=0)] | None = None
    min_metric: float | None = None
    min_speedup: Positive | Limit | None = None
    max_latency_ms: Positive | Limit | None = None
    max_file_mb: Positive | None = None
    max_parity_error: Positive = 1e-4
    max_target_miss: Annotated[float, Field(ge=0)] | None = 0.05
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    on_noise: Literal["fail", "warn"] = "fail"


UNJUDGED = {
    "min_speedup": f"{BASELINE} is what speedups are measured from: name another variant, or leave it out",
    "min_agreement": "compares quantized with fp32 predictions, and nothing that is released is quantized",
}
"""What to say of gates that may have nothing to judge."""


class Reading(NamedTuple):
    """What a gate judges: a value, its 95 % interval where there is one, and where it was measured."""

    value: float | None
    interval: Sequence[float] | None = None
    detail: str = ""


def stands_for(name: str, final: str, variants: Iterable[str]) -> list[str]:
    """The variants that `release` or a gate's `variant` names: `final`, `all` or one."""
    return list(variants) if name == "all" else [final if name == "final" else name]


def fp32_of(variant: str) -> str:
    """The variant that is the same model in fp32."""
    return f"{variant.rpartition('_')[0]}_fp32"


def final_of(chosen: str, variants: Mapping[str, dict[str, Any]], gates: GateKeys) -> str:
    """The final variant: `chosen`, or the same model in fp32 where quantization has surely made it slower.

    The baseline takes no one's place where a speedup is asked for: it has none to be judged.
    """
    row, fp32 = _over_fp32(variants[chosen]), fp32_of(chosen)
    stays = row is None or row["ci95"][1] >= 1 or (fp32 == BASELINE and gates.min_speedup is not None)
    return chosen if stays else fp32


def _over_fp32(variant: dict[str, Any]) -> dict[str, Any] | None:
    """Speedup of a quantized variant over the same model in fp32, in the first benchmark cell."""
    if variant.get("precision") == "fp32":  # what `auto` may have kept
        return None
    return next(iter(variant.get("quantization", {}).get("speedup", ())), None)


def judged(gates: GateKeys, release: str, final: str, variants: Iterable[str]) -> dict[str, list[str]]:
    """The variants that every gate judges: the one that it names, else all that are released.

    So nothing is released unjudged. Every exported file is held to `max_parity_error`, released or not.
    """
    found = {}
    for gate in GateKeys.model_fields:
        limit = getattr(gates, gate)
        if gate not in ("on_noise", TARGET) and limit is not None:
            named = limit.variant if isinstance(limit, Limit) else None
            names = "all" if gate == "max_parity_error" else named or release
            found[gate] = [name for name in stands_for(names, final, variants) if _says_of(gate, name)]
    return found


def _says_of(gate: str, variant: str) -> bool:
    """Whether a gate has anything to say of a variant."""
    if gate == "min_speedup":
        return variant != BASELINE
    is_fp32 = variant.endswith("_fp32")
    return {"max_parity_error": is_fp32, "min_agreement": not is_fp32}.get(gate, True)


def judge(
    gates: GateKeys, release: str, results: dict[str, Any], target: Target | None = None
) -> list[dict[str, Any]]:
    """Every gate's verdict on every variant that it judges, in the form of results.json.

    Speed and latency are judged by the whole 95 % interval: passed when all of it meets the limit, failed when
    none of it does, else inconclusive. Everything else is judged by its value. What is released quantized is
    also held to the speed of the same model in fp32, and what was pruned to a speed to the `target`: it fails where
    it is surely slower.
    """
    final, variants = results["final"], results["variants"]
    asked = [
        _verdict(gate, getattr(gates, gate), name, results)
        for gate, names in judged(gates, release, final, variants).items()
        for name in names
    ]
    released = stands_for(release, final, variants)
    asked += [_pays(name, row) for name in released if (row := _over_fp32(variants[name]))]
    if target is None or not target.timed or gates.max_target_miss is None:
        return asked
    goals = {
        name: members_of(target).get(name.rpartition("_")[0]) for name in released if _aims(target, name)
    }
    return asked + [
        _meets(gates.max_target_miss, name, goal, variants[name], target)
        for name, goal in goals.items()
        if goal
    ]


def _pays(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Whether quantization did not slow a variant down: it fails where the whole interval is below 1."""
    return {
        "name": OVER_FP32,
        "limit": 1.0,
        "value": row["value"],
        "ci95": row["ci95"],
        "passed": row["ci95"][1] >= 1,
        "inconclusive": False,
        "variant": name,
        "detail": str(Cell.of(row)),
    }


def _aims(target: Target, variant: str) -> bool:
    """Whether a variant's speedup or latency in the results is one that a target speaks of."""
    if target.at.relative_to == "same-precision" and not variant.endswith("_fp32"):
        return False
    return target.at.precision == "fp32" or variant.endswith(f"_{target.at.precision}")


def _meets(most: float, name: str, goal: float, variant: dict[str, Any], target: Target) -> dict[str, Any]:
    """By what share a variant is slower than its target asks: it fails where that is surely above `most`."""
    where = Limit(value=1, **target.at.model_dump(exclude={"precision", "relative_to"}))
    read = _timed("max_latency_ms" if target.latency_ms else "min_speedup", where, variant)
    made = {
        "name": TARGET,
        "limit": most,
        "value": None,
        "ci95": None,
        "passed": False,
        "inconclusive": False,
    }
    made |= {"variant": name, "detail": read.detail}
    if read.value is None or read.interval is None:
        return made
    ends = (read.value, *read.interval)
    value, *interval = (end / goal - 1 if target.latency_ms else goal / end - 1 for end in ends)
    return made | {"value": value, "ci95": sorted(interval), "passed": min(interval) <= most}


def let_through(gate: dict[str, Any], on_noise: str) -> bool:
    """Whether a verdict stands in no one's way: passed, or inconclusive where noise is only warned about."""
    return bool(gate["passed"] or (gate["inconclusive"] and on_noise == "warn"))


def _verdict(gate: str, limit: float | Limit, name: str, results: dict[str, Any]) -> dict[str, Any]:
    bound = limit.value if isinstance(limit, Limit) else limit
    timed = gate in ("min_speedup", "max_latency_ms")
    read = _timed(gate, limit, results["variants"][name]) if timed else _read(gate, name, results)
    at_least = gate.startswith("min_")
    if gate == "min_metric" and not results["variants"][name]["metric"]["higher_is_better"]:
        at_least = False
    ends = [] if read.value is None else read.interval if timed and read.interval else [read.value]
    met = [end >= bound - 1e-12 if at_least else end <= bound + 1e-12 for end in ends]
    return {
        "name": gate,
        "limit": bound,
        "value": read.value,
        "ci95": read.interval,
        "passed": bool(met) and all(met),
        "inconclusive": any(met) and not all(met),
        "variant": name,
        "detail": read.detail,
    }


def _read(gate: str, name: str, results: dict[str, Any]) -> Reading:
    """What was measured of a variant that a gate without a benchmark cell judges."""
    variant = results["variants"][name]
    drop = variant.get("metric_drop", {"value": 0.0, "ci95": None})
    dense = abs(results["variants"][results["baseline"]]["metric"]["value"])
    readings = {
        "max_metric_drop": Reading(drop["value"], drop["ci95"]),
        "max_metric_drop_relative": Reading(drop["value"] / dense if dense else drop["value"]),
        "min_metric": Reading(variant["metric"]["value"]),
        "max_file_mb": Reading(variant["file_bytes"] / 1e6),
        "max_parity_error": Reading(variant["parity"]["max_abs_error"]),
        "min_agreement": Reading(variant["parity"]["agreement"]),
    }
    return readings[gate]


def _timed(gate: str, limit: float | Limit, variant: dict[str, Any]) -> Reading:
    """The speedup or latency of a variant in the cell that the limit speaks of."""
    table, value, interval = {
        "min_speedup": ("speedup", "value", "ci95"),
        "max_latency_ms": ("latency", "p50_ms", "p50_ci95"),
    }[gate]
    row = cell_of(variant.get(table, []), limit if isinstance(limit, Limit) else Limit(value=limit))
    return (
        Reading(row[value], row[interval], str(Cell.of(row))) if row else Reading(None, detail="not measured")
    )


def cell_of(rows: Sequence[dict[str, Any]], limit: Limit) -> dict[str, Any] | None:
    """The first row of a benchmark that a limit speaks of, if any."""
    asked = limit.model_dump(exclude={"value", "variant"}, exclude_none=True)
    return next((row for row in rows if all(row[key] == wanted for key, wanted in asked.items())), None)

"""Gates: what a run must show before its artifact is released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from compressor.schema import Keys

Positive = Annotated[float, Field(gt=0)]


class Limit(Keys):
    """A limit for one benchmark cell (default: the first) and one variant (default: final)."""

    value: Positive
    provider: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    sequence_length: int | None = None
    part: str | None = None
    variant: str = "final"


class GateKeys(Keys):
    """Metrics are fractions; drops are harm in the primary metric; speedups are against the dense fp32 model."""

    max_metric_drop: Annotated[float, Field(ge=0)] | None = None
    max_metric_drop_relative: Annotated[float, Field(ge=0)] | None = None
    min_metric: float | None = None
    min_speedup: Positive | Limit | None = None
    max_latency_ms: Positive | Limit | None = None
    max_file_mb: Positive | None = None
    max_parity_error: Positive = 1e-4
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    on_noise: Literal["fail", "warn"] = "fail"


def judge(gates: GateKeys, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every gate's verdict, in the form of results.json.

    Speed and latency are judged by the whole 95 % interval: passed when all of it meets the limit, failed when
    none of it does, else inconclusive. Metrics are judged by their value.
    """
    verdicts: list[dict[str, Any]] = []
    final = results["final"]
    variant = results["variants"][final]
    metric, drop = variant["metric"], variant.get("metric_drop")
    dense = results["variants"][results["baseline"]]["metric"]["value"]

    def at_most(name: str, value: float | None, limit: float | None, interval: Any = None) -> None:
        if limit is not None:
            passed = value is not None and value <= limit + 1e-12
            verdicts.append(_verdict(name, limit, value, passed, False, final, interval))

    lost, interval = (drop["value"], drop["ci95"]) if drop else (0.0, None)
    at_most("max_metric_drop", lost, gates.max_metric_drop, interval)
    at_most("max_metric_drop_relative", lost / abs(dense) if dense else lost, gates.max_metric_drop_relative)
    if gates.min_metric is not None:
        worse = (
            metric["value"] < gates.min_metric
            if metric["higher_is_better"]
            else metric["value"] > gates.min_metric
        )
        verdicts.append(_verdict("min_metric", gates.min_metric, metric["value"], not worse, False, final))
    if gates.min_speedup is not None:
        verdicts.append(
            _timed("min_speedup", gates.min_speedup, results, "speedup", "value", "ci95", at_least=True)
        )
    if gates.max_latency_ms is not None:
        verdicts.append(
            _timed(
                "max_latency_ms",
                gates.max_latency_ms,
                results,
                "latency",
                "p50_ms",
                "p50_ci95",
                at_least=False,
            )
        )
    at_most("max_file_mb", variant["file_bytes"] / 1e6, gates.max_file_mb)
    for name, other in results["variants"].items():
        if other["precision"] == "fp32":
            error = other["parity"]["max_abs_error"]
            passed = error <= gates.max_parity_error
            verdicts.append(_verdict("max_parity_error", gates.max_parity_error, error, passed, False, name))
        elif gates.min_agreement is not None and name == final:
            share = other["parity"]["agreement"]
            passed = share >= gates.min_agreement
            verdicts.append(_verdict("min_agreement", gates.min_agreement, share, passed, False, name))
    return verdicts


def _timed(
    name: str,
    gate: float | Limit,
    results: dict[str, Any],
    table: str,
    value: str,
    interval: str,
    *,
    at_least: bool,
) -> dict[str, Any]:
    limit = gate if isinstance(gate, Limit) else Limit(value=gate)
    variant = results["final"] if limit.variant == "final" else limit.variant
    row = cell_of(results["variants"][variant].get(table, []), limit)
    if row is None:
        where = {
            k: v for k, v in limit.model_dump().items() if v is not None and k not in ("value", "variant")
        }
        detail = f"not measured for {variant} at {where or 'the first benchmark cell'}"
        return _verdict(name, limit.value, None, False, False, variant, detail=detail)
    low, high = row[interval]
    all_good = low >= limit.value if at_least else high <= limit.value
    none_good = high < limit.value if at_least else low > limit.value
    return _verdict(
        name,
        limit.value,
        row[value],
        all_good,
        not all_good and not none_good,
        variant,
        [low, high],
        _where(row),
    )


def cell_of(rows: Sequence[dict[str, Any]], limit: Limit) -> dict[str, Any] | None:
    """The first row of a benchmark that a limit speaks of, if any."""
    asked = {
        key: getattr(limit, key)
        for key in ("provider", "threads", "batch_size", "sequence_length", "part")
        if getattr(limit, key) is not None
    }
    return next((row for row in rows if all(row[key] == wanted for key, wanted in asked.items())), None)


def _where(row: dict[str, Any]) -> str:
    return f"{row['provider']}, {row['threads']} threads, batch {row['batch_size']} x {row['sequence_length']} tokens"


def _verdict(
    name: str,
    limit: float,
    value: float | None,
    passed: bool,
    inconclusive: bool,
    variant: str,
    interval: Any = None,
    detail: str = "",
) -> dict[str, Any]:
    return {
        "name": name,
        "limit": limit,
        "value": value,
        "ci95": interval,
        "passed": passed,
        "inconclusive": inconclusive,
        "variant": variant,
        "detail": detail,
    }

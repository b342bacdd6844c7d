"""From timings to a latency table: a line through the widths, and whole models to set its scale and to judge it.

A width's time is (its stack - the stack without the sub-layer) / copies. One factor and one constant then bring sums
of widths to the time of whole models; a table that still misses these is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from compressor.benchmark.encoder_graph import EncoderShape, Widths
from compressor.benchmark.latency_plan import (
    ALONE,
    COPIES,
    PROBE,
    REFERENCE,
    Candidate,
    level_name,
    levels_of,
    plan,
)
from compressor.benchmark.latency_setting import Setting
from compressor.benchmark.latency_smooth import rising_line
from compressor.benchmark.latency_table import Curve, LatencyTable
from compressor.benchmark.statistics import NOISY_WIDTH, Interval
from compressor.errors import GateError

TOLERANCE = 0.05
"""A whole model may take so much more or less than a table says."""
SLOW = 0.05
"""A width that costs so much more than those around it say runs slow."""


NORMAL_95 = 1.96
"""Standard deviations in half a 95 % interval."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of the reference, how many times that each other model takes, and what ran beside."""

    reference_ms: float
    multiples: Mapping[str, Interval]
    disturbance: str | None = None


def fit(setting: Setting, timing: Timing) -> LatencyTable:
    """The table of what was timed (every candidate that `plan` needs; others where there are)."""
    shape = setting.shape
    raw = {kind: _curve(shape, kind, timing) for kind in ("attention", "ffn")}
    models = [one for one in plan(shape)[0] if one.name == ALONE or one.name.startswith(PROBE)]
    # A model of one head tells what is left without layers; whole models, how their layers compare with stacks'.
    points = [(_sum(raw, one.layers), _ms(timing, one.name)) for one in models]
    rows = np.array([[1 / measured, body / measured] for body, measured in points])
    (base, factor), _ = nnls(rows, np.ones(len(rows)))
    curves = {kind: curve.scaled(float(factor)) for kind, curve in raw.items()}
    check = _check(models[1:], curves, float(base), timing) | {"factor": float(factor)}
    return LatencyTable(shape, float(base), **curves, setting=setting.to_json(), check=check)


def missed(table: LatencyTable) -> list[str]:
    """The whole models that take more or less than the table says: their times or the table's are wrong."""
    return [row["name"] for row in table.check["probes"] if abs(row["error"]) > TOLERANCE]


def refuse_misfit(setting: Setting, table: LatencyTable) -> None:
    """Raise GateError where a whole model does not take what the table says.

    Its own time may be wrong by as much as it is uncertain, up to another `TOLERANCE`: a clear miss is refused, and
    what is too uncertain to tell. Whoever aims at a time measures what comes of it in any case.
    """
    check = table.check
    worst = max(check["probes"], key=lambda row: abs(row["error"]) - min(row["uncertain"], TOLERANCE))
    if abs(worst["error"]) <= TOLERANCE + min(worst["uncertain"], TOLERANCE):
        return
    why = "sub-layers' times do not add up to whole models' here"
    if worst["uncertain"] > TOLERANCE or check["disturbance"]:
        why = f"the machine was not quiet: that time is uncertain by {worst['uncertain']:.0%}"
        why += f"; {check['disturbance']}" if check["disturbance"] else ""
    raise GateError(
        f"the latency table of a {setting.shape.family} in {setting.precision} on {setting.cell} is refused: a whole "
        f"model that it says takes {worst['predicted_ms']:.3g} ms took {worst['measured_ms']:.3g} ms "
        f"({abs(worst['error']):.0%} off, {TOLERANCE:.0%} allowed). {why[0].upper()}{why[1:]}. Stop what else "
        "runs here and try again; `compressor bench --table` with more --seconds and --processes measures it with "
        "more care, for all runs to come"
    )


def _curve(shape: EncoderShape, kind: str, timing: Timing) -> Curve:
    """The line through the widths that were measured of one kind of sub-layer."""
    absent = _ms(timing, level_name(kind, None))
    whole = shape.heads if kind == "attention" else shape.ffn
    names = {units: level_name(kind, units) for units in [0, *levels_of(shape)[kind]]} | {whole: REFERENCE}
    had = {units: name for units, name in names.items() if name == REFERENCE or name in timing.multiples}
    each = {units: (_ms(timing, name) - absent) / COPIES for units, name in had.items()}
    spread = {
        units: timing.multiples[name].half_width * _ms(timing, name) / COPIES
        for units, name in had.items()
        if name != REFERENCE
    }
    constant = max(0.0, each.pop(0))
    slow = _slow(each, spread)
    widths = [units for units in sorted(each) if units not in slow]
    below = widths[:-1]  # the whole may be a slow width, and nobody can avoid that by a width next to it
    line = rising_line(
        below, [each[units] for units in below], [spread[units] / NORMAL_95 for units in below]
    )
    line = np.maximum([*line, max([*line[-1:], each[whole]])], constant)
    noisy = tuple(
        units
        for units, name in had.items()
        if name != REFERENCE and timing.multiples[name].half_width > NOISY_WIDTH
    )
    return Curve(tuple(widths), tuple(line.tolist()), constant, slow, noisy)


def _slow(each: Mapping[int, float], spread: Mapping[int, float]) -> dict[int, float]:
    """Widths that cost more than those next to them say, beyond doubt; the ends are always on the line."""
    slow: dict[int, float] = {}
    widths = sorted(each)
    for number, units in enumerate(widths[1:-1], 1):
        below = next(width for width in reversed(widths[:number]) if width not in slow)
        above = widths[number + 1]
        said = float(np.interp(units, [below, above], [each[below], each[above]]))
        doubt = spread[units] + max(spread.get(below, 0.0), spread.get(above, 0.0))
        if each[units] > (1 + SLOW) * said + doubt:
            slow[units] = each[units]
    return slow


def _ms(timing: Timing, name: str) -> float:
    return timing.reference_ms * (1.0 if name == REFERENCE else timing.multiples[name].value)


def _sum(curves: Mapping[str, Curve], layers: Iterable[Widths]) -> float:
    return sum(curves["attention"].at(heads) + curves["ffn"].at(ffn) for heads, ffn in layers)


def _check(
    probed: Sequence[Candidate], curves: Mapping[str, Curve], base: float, timing: Timing
) -> dict[str, Any]:
    """What whole models took beside what the table says of them."""
    rows = []
    for one in probed:
        predicted, measured = base + _sum(curves, one.layers), _ms(timing, one.name)
        rows.append(
            {
                "name": one.name,
                "layers": [list(widths) for widths in one.layers],
                "predicted_ms": predicted,
                "measured_ms": measured,
                "error": predicted / measured - 1,
                "uncertain": timing.multiples[one.name].half_width,
            }
        )
    return {"tolerance": TOLERANCE, "probes": rows, "disturbance": timing.disturbance}

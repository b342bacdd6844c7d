"""What `bench/quantization.py` measured, as Markdown."""

from typing import Any

from compressor.report.fields import MISSING, fixed, ratio_text, speedup_text

Json = dict[str, Any]
FP32, AUTO = "fp32", "auto"


def table(state: Json) -> str:
    """What `auto` took beside the grid's best, then a row for everything in the grid."""
    columns = ["model", "metric", "fp32", "best of the grid", "auto", "auto over best"]
    columns += ["search", "grid", "share"]
    rows = [line(columns), "|---" * len(columns) + "|"]
    details = [line(["model", "scheme", "speedup", "p50 (ms)", "metric", "drop (points)"]), "|---" * 6 + "|"]
    for key, row in state["models"].items():
        if timing := row.get("timing"):
            rows.append(line(summary(key, row, timing)))
            details += [line(detail(key, row, timing, name)) for name in (*timing["drop"], AUTO)]
    return "\n".join([*rows, "", *details])


def summary(key: str, row: Json, timing: Json) -> list[str]:
    search, whole = row[AUTO]["seconds"], grid_seconds(row)
    ours = row[AUTO]["label"]
    return [
        key,
        row["metric"],
        fixed(100 * row[FP32]["value"]),
        f"{timing['best']} {speed(timing, timing['best'])}",
        f"{ours} {speed(timing, AUTO)}",
        speedup_text(timing["auto_over_best"]),
        f"{search:.0f} s",
        f"{whole:.0f} s",
        ratio_text(search / whole),
    ]


def detail(key: str, row: Json, timing: Json, name: str) -> list[str]:
    taken: Json = next((one for one in row[AUTO]["tried"] if one["admitted"]), {}) if name == AUTO else {}
    value, drop = (
        (taken.get("metric"), taken.get("drop", 0.0))
        if taken
        else (
            row[name]["value"],
            timing["drop"][name],
        )
    )
    shown = f"auto: {row[AUTO]['label']}" if name == AUTO else name
    p50 = fixed(timing["latency"][name]["p50_ms"])
    return [
        key,
        shown,
        speed(timing, name),
        p50,
        *(MISSING if v is None else fixed(100 * v) for v in (value, drop)),
    ]


def grid_seconds(row: Json) -> float:
    """What it takes to make, score and time the grid alone."""
    timing = row["timing"]
    made = sum(piece["seconds"] for piece in row.values() if isinstance(piece, dict) and "value" in piece)
    return float(made + timing["seconds"] * (timing["files"] - 1) / timing["files"])


def speed(timing: Json, name: str) -> str:
    return "1" if name == FP32 else speedup_text(timing["speedup"][name])


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""`plan`: what a run would do and need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from compressor.benchmark.machine import usable_cores
from compressor.estimate import free_disk
from compressor.models.structure import Sizes
from compressor.report.anatomy import SHARED
from compressor.report.fields import count_text, listed
from compressor.tables import facts, table

UNKNOWN = "unknown until downloaded"


def plan_view(plan: dict[str, Any]) -> list[RenderableType]:
    """The stages and the needs of a run, as `compressor.plan.plan` found them."""
    title = Text.assemble((plan["name"], "bold"), f" in {plan['output']}")
    return [title, "", _stages(plan["stages"]), "", facts(_needs(plan))]


def _stages(stages: list[dict[str, Any]]) -> Table:
    made = table("stage", "from", "state", "time")
    for row in stages:
        state = Text("cached", style="green") if row["cached"] else Text("to run")
        time = "–" if row["cached"] else _time(row["seconds"])
        made.add_row(Text(row["id"]), Text(listed(dict.fromkeys(row["from"])) or "–"), state, Text(time))
    return made


def _time(seconds: float | None) -> str:
    """A rough time in words; stages that do not train take seconds."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return "under a minute"
    return f"about {seconds / 60:.0f} min" if seconds < 3600 else f"about {seconds / 3600:.1f} h"


def _needs(plan: dict[str, Any]) -> list[tuple[str, object]]:
    rows, seconds = plan["rows"], [row["seconds"] for row in plan["stages"] if not row["cached"]]
    left = None if None in seconds else sum(seconds)
    how = "" if left is None else f" on {usable_cores()} cores; measuring comes on top"
    faster = "; `precision: bf16` in stages that train is faster on this CPU" if plan["bf16"] else ""
    return [
        ("model", _shapes(plan["sizes"])),
        ("parameters", UNKNOWN if plan["parameters"] is None else count_text(plan["parameters"])),
        ("rows", listed(f"{name} {count:,}" for name, count in rows.items()) if rows else UNKNOWN),
        ("baseline", plan["baseline"]),
        ("measured", listed(plan["variants"])),
        ("training", _time(left) + how + faster),
        ("disk", _room(plan["disk_bytes"], free_disk(Path(plan["output"]).absolute()), "")),
        ("memory", _room(plan["memory_bytes"], psutil.virtual_memory().available, " and activations")),
    ]


def _shapes(sizes: Sizes | None) -> str:
    if sizes is None:
        return UNKNOWN
    stacks = []
    for name, counts in sizes.stacks.items():
        units = [
            f"FFN {count:,}" if part == "ffn" else f"{count} {part.replace('_', ' ')} heads"
            for part, count in counts.items()
            if part != "layers"
        ]
        note = f" ({SHARED})" if name in sizes.shared else ""
        stacks.append(f"{name} of {counts['layers']} layers, each {listed(units)}{note}")
    return f"{'; '.join(stacks)}; hidden width {sizes.hidden:,}"


def _room(needed: int | None, free: int, beside: str) -> Text:
    """What is needed, what is there, and in red where that is too little."""
    if needed is None:
        return Text(UNKNOWN)
    text = f"about {_gigabytes(needed)}{beside} ({_gigabytes(free)} free)"
    return Text(text, style="" if needed <= free else "bold red")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"

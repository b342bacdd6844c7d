"""`bench --table`: what every width of a model's sub-layers costs on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from compressor.benchmark.harness import check_possible
from compressor.benchmark.latency_measuring import harness_timer
from compressor.benchmark.machine import fingerprint
from compressor.benchmark.schema import BenchmarkKeys
from compressor.display import Display
from compressor.errors import UserError
from compressor.files import remove, write_json
from compressor.report.latency_table import (
    KINDS,
    probe_rows,
    summary_of,
    title_of,
    width_rows,
    write_latency_tables,
)
from compressor.stages.latency import Precision, latency_table, setting_of, tables_folder
from compressor.tables import facts, table
from compressor.views.folders import has_config, not_a_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SCHEMA_VERSION = 1


def bench_table(
    model: Path,
    grid: BenchmarkKeys,
    precision: Precision,
    budget: float,
    page: Path,
    fresh: bool = False,
    json_to: Path | None = None,
) -> list[RenderableType]:
    """The latency table of `model`'s encoder at every cell of `grid`; the page with plots goes to `page`.

    `model` is a model folder or its `config.json`; weights do not matter. Tables of earlier calls are shown
    again, unless `fresh`. `budget`: seconds a table may take, about. `json_to` gets all of it as data.

    Raises:
        UserError: no such model, or none that tables can be made of; providers or threads not to be had.
        GateError: a table does not fit whole models.
    """
    for option, path in (("--page", page), ("--json", json_to)):
        if path and path.is_dir():
            raise UserError(f"{option} {path} is a folder; name the file to write")
    config, cells = _config(model), grid.cells()
    check_possible({}, cells)
    settings = [setting_of(config, cell, precision) for cell in cells]
    if fresh:
        for setting in settings:
            remove(tables_folder() / setting.file_name)
    tables = []
    with Display().stage("bench") as progress:
        for cell in cells:
            timer = harness_timer(cell, grid.seconds, grid.processes)
            made = latency_table(config, cell, precision, timer=timer, budget=budget, progress=progress)
            tables.append(made.to_json())
    write_latency_tables(tables, page)
    shown = [part for made in tables for part in _shown(made)]
    shown.append(f"page: {escape(str(page))}; tables: {escape(str(tables_folder()))}")
    if json_to:
        command = shlex.join(["compressor", *sys.argv[1:]])
        environment = {"command": command, "environment": fingerprint()}
        write_json(json_to, {"schema_version": SCHEMA_VERSION, **environment, "tables": tables})
        shown.append(f"figures: {escape(str(json_to))}")
    return shown


def _config(model: Path) -> PretrainedConfig:
    from compressor.models.checkpoint import read_config

    folder = model.parent if model.name == "config.json" else model
    if not has_config(folder):
        raise not_a_model(model, "a model folder or its config.json")
    return read_config(folder)


def _shown(made: dict[str, Any]) -> list[RenderableType]:
    """The title, a few numbers, a table a kind of sub-layer, and the whole models."""
    shown: list[RenderableType] = ["", Text(title_of(made), style="bold"), facts(summary_of(made))]
    for kind, title in KINDS.items():
        rows = table(title, "time", "of dense", "", numbers=True)
        for row in width_rows(made, kind):
            rows.add_row(*map(Text, row))
        shown += ["", rows]
    check = table("whole models", "predicted", "measured", "error", numbers=True)
    for row in probe_rows(made):
        check.add_row(*map(Text, row))
    return [*shown, "", check, ""]

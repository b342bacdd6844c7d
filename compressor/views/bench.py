"""`bench`: the latency harness alone, on any ONNX model."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from compressor.benchmark.harness import Measurement, Rows, measure
from compressor.benchmark.inputs import parse_input_shapes
from compressor.benchmark.machine import fingerprint, usable_cores
from compressor.benchmark.schema import BenchmarkKeys
from compressor.benchmark.throughput import measure_throughput
from compressor.cell import DATA, Cell, Provider
from compressor.display import Display
from compressor.errors import UserError
from compressor.files import sha256, write_json
from compressor.parts import graphs_of, parts_of
from compressor.recipe import Loaded
from compressor.report.fields import listed, ms_interval, ms_text, significant, speedup_text
from compressor.schema import suggest
from compressor.stages.base import Data
from compressor.tables import table
from compressor.views.folders import onnx_file, tokenizer_beside

SCHEMA_VERSION = 1
MODEL, BASELINE = "model", "baseline"
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
DEFAULT_THREADS = 2
"""As in recipes, so that figures of `bench` and `run` compare; fewer where there are fewer cores."""


def parse_grid(
    batch: str, seq: str, threads: str, provider: str, seconds: float, processes: int
) -> BenchmarkKeys:
    """The grid behind comma lists of the command line; no `threads` means two, or one where that is all.

    Raises:
        UserError: what is no list of such numbers or names.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--seconds {seconds}: give a number above zero")
    providers = _split("--provider", provider)
    for name in providers:
        if name not in PROVIDERS:
            raise UserError(
                f"--provider {name}: unknown{suggest(name, PROVIDERS)} (known: {', '.join(PROVIDERS)})"
            )
    return BenchmarkKeys(
        providers=cast(list[Provider], providers),
        batch_sizes=_numbers("--batch", batch, "1,8"),
        sequence_lengths=_numbers("--seq", seq, "128,384"),
        threads=_numbers("--threads", threads or str(min(DEFAULT_THREADS, usable_cores())), "1,2"),
        seconds=seconds,
        processes=processes,
    )


def bench_models(
    model: Path,
    baseline: Path | None,
    grid: BenchmarkKeys,
    inputs: Sequence[str] = (),
    recipe: Loaded | None = None,
    sessions: int | None = None,
    json_to: Path | None = None,
) -> list[RenderableType]:
    """Time `model` at every cell of `grid`, beside `baseline` where there is one.

    With `recipe` the real lengths of its validation data are timed too, by the tokenizer beside the model;
    with `sessions` the examples a second of so many side by side are counted. `json_to` gets figures, machine
    and command, and the single runs go into a folder beside it.

    Raises:
        UserError: no such file, inputs that cannot be made up, or a provider or threads not to be had.
    """
    models = {BASELINE: onnx_file(baseline)} if baseline else {}
    models[MODEL] = onnx_file(model)
    shapes = parse_input_shapes(inputs)
    raw = _raw_folder(json_to) if json_to else None
    grid = grid.model_copy(update={"parts": [part.name for part in parts_of(models[MODEL])]})
    cells, lengths = grid.cells(), None
    if recipe:
        lengths = _real_lengths(recipe, model if model.is_dir() else model.parent)
        cells.append(Cell(cells[0].provider, cells[0].threads, 1, DATA, cells[0].part))
    with Display().stage("bench") as progress:
        measured = measure(
            models,
            cells,
            reference=next(iter(models)),
            seconds=grid.seconds,
            processes=grid.processes,
            progress=progress,
            raw_dir=raw,
            overrides=shapes,
            lengths=lengths,
        )
        counted: Rows = {}
        if sessions:
            options: dict[str, Any] = {"seconds": grid.seconds, "progress": progress, "overrides": shapes}
            counted = measure_throughput(models, grid.cells(), sessions, **options)
    machine = fingerprint()
    shown = [*_tables(models, measured, counted), *_conditions(grid, measured, machine)]
    if json_to:
        write_json(json_to, _figures(models, measured, counted, machine))
        shown.append(f"figures: {escape(str(json_to))}, single runs: {escape(str(raw))}")
    return shown


def _split(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UserError(f"{option} '{text}': write values with commas between them, such as 1,8")
    return list(dict.fromkeys(words))


def _numbers(option: str, text: str, example: str) -> list[int]:
    words = _split(option, text)
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) > 0):
            raise UserError(f"{option} {text}: '{word}' is no whole number above 0; write {option} {example}")
    return list(dict.fromkeys(map(int, words)))


def _raw_folder(json_to: Path) -> Path:
    """Where the single runs go; nothing may stand in the way of either when hours have been timed."""
    if json_to.is_dir():
        raise UserError(
            f"--json {json_to} is a folder; name the file to write, such as {json_to / 'bench.json'}"
        )
    return json_to.with_name(f"{json_to.name}.raw")


def _real_lengths(recipe: Loaded, folder: Path) -> list[int]:
    """Tokens of every feature of the validation split."""
    data = Data(recipe.recipe.task, recipe.recipe.seed)
    tokenizer = tokenizer_beside(folder, data.kind)
    features = data.task.features(data.task.examples.validation, tokenizer)
    return [len(ids) for ids in features["input_ids"]]


def _tables(models: dict[str, Path], measured: Measurement, counted: Rows) -> list[RenderableType]:
    """The models by name, then for each cell its conditions in words, its figures, and what disturbed them."""
    shown: list[RenderableType] = [*(Text(f"{name}: {path}") for name, path in models.items())]
    for number, seen in enumerate(measured.conditions):
        cell = Cell.of(seen)
        rates = {name: row for name, rows in counted.items() for row in rows if Cell.of(row) == cell}
        titles = ["", "p50", "95 %", "p90", "cold start", "speedup", *["examples/s"] * bool(rates)]
        made = table(*titles, numbers=True)
        for name in models:
            row = measured.latency[name][number]
            speedup = measured.speedup.get(name)
            cells = [name, ms_text(row), ms_interval(row), ms_text(row, "p90_ms")]
            cells += [ms_text(row, "cold_start_ms"), _speedup(speedup[number]) if speedup else "–"]
            cells += [_rate(rates[name])] if rates else []
            made.add_row(*map(Text, cells))
        shown += ["", Text(str(cell), style="bold"), made, *_warnings(seen)]
    return [*shown, ""]


def _warnings(seen: dict[str, Any]) -> list[Text]:
    found = [f"not a quiet machine: {seen['disturbance']}"] if seen["disturbance"] else []
    if seen["set_aside"]:
        found.append(f"set aside, as everything took longer in them: {seen['set_aside']} processes")
    if not seen["settled"]:
        found.append("the warm-up ended before the times had settled; give more --seconds")
    return [Text(line, style="yellow") for line in found]


def _rate(row: dict[str, Any]) -> str:
    low, high = map(significant, row["range"])
    return f"{significant(row['examples_per_second'])} [{low}, {high}] by {row['sessions']}"


def _speedup(row: dict[str, Any]) -> str:
    return speedup_text(row) + (" noisy" if row["noisy"] else "")


def _conditions(grid: BenchmarkKeys, measured: Measurement, machine: dict[str, Any]) -> list[RenderableType]:
    """How it was measured and where: what a reader needs to judge the figures."""
    spinning = listed(dict.fromkeys(seen["spinning"] for seen in measured.conditions))
    load = max(seen["beside"]["load"] for seen in measured.conditions)
    lines = (
        f"{grid.processes} fresh processes a cell, {grid.seconds:g} s timed in each; intervals are 95 %",
        f"threads: {listed(grid.threads)} of {machine['usable_cores']} usable cores; spinning: {spinning}",
        f"{machine['cpu']} ({listed(machine['isa'])})",
        f"onnxruntime {machine['versions']['onnxruntime']}; load {load}",
    )
    return [Text(line, style="dim") for line in lines]


def _figures(
    models: dict[str, Path], measured: Measurement, counted: Rows, machine: dict[str, Any]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "command": shlex.join(["compressor", *sys.argv[1:]]),
        "environment": machine,
        "models": {name: {"path": str(path), "files": _files(path)} for name, path in models.items()},
        "reference": next(iter(models)),
        "latency": measured.latency,
        "speedup": measured.speedup,
        "throughput": counted,
        "conditions": measured.conditions,
    }


def _files(path: Path) -> dict[str, Any]:
    """Hash and size of the ONNX file and of its external data."""
    found = path.iterdir() if path.is_dir() else path.parent.iterdir()
    names = tuple(graphs_of(path)) if path.is_dir() else (path.name,)
    parts = [part for part in sorted(found) if part.name.startswith(names)]
    return {
        part.name: {"sha256": sha256(part), "bytes": part.stat().st_size} for part in parts if part.is_file()
    }

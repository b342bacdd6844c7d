"""What benches share whose cells are runs of recipes: a run that a budget may end, and goes on with the next call."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from compressor.benchmark.machine import fingerprint
from compressor.files import read_json, write_text
from compressor.report.fields import MISSING, count_text, fixed, speedup_text

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
UNGATED: Json = {"max_target_miss": None}
"""Gates of a run whose figures are judged by who reads them."""
SLICED = {"sliced": "sliced_density"}
"""Columns of a table that are shares of the dense weights."""


def arguments(name: str, description: str | None, tasks: Collection[str]) -> argparse.ArgumentParser:
    """The options of the bench `name`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="print what was measured as Markdown")
    parser.add_argument("--task", choices=tasks, default="sst2")
    parser.add_argument("--model", help="folder of the pretrained MiniLM; by default the recipe's hub id")
    parser.add_argument("--train", help="training file; by default the recipe's hub data set")
    parser.add_argument("--validation")
    parser.add_argument("--rows", type=int, help="training rows; by default the recipe's limit")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training")
    parser.add_argument("--budget", type=float, metavar="MINUTES", default=120.0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / name)
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json")
    return parser


def shipped(recipe: str, options: argparse.Namespace) -> Json:
    """A shipped recipe on the model and data of the options, without gates."""
    made: Json = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    made["gates"] = UNGATED
    if options.model:
        made["model"] = options.model
    made["task"]["dataset"] = data_keys(options, made["task"]["dataset"])
    if options.rows:
        made["task"]["limit"]["train"] = options.rows
    for keys in (keys for stage in made["stages"] for keys in stage.values() if "epochs" in keys):
        keys["precision"] = options.precision
    return made


def finished(recipe: Json, output: Path, seconds: float, *options: str) -> bool:
    """Run a recipe in the folder `output`; whether it ended within `seconds`.

    Raises:
        SystemExit: it failed.
    """
    path = output.parent / f"{recipe['name']}.yaml"
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    command = [sys.executable, "-m", "compressor", "run", str(path), "--output", str(output), *options]
    process = subprocess.Popen(command)
    try:
        if process.wait(timeout=max(1.0, seconds)):
            raise SystemExit(f"{path} failed")
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return False
    return True


def data_keys(options: argparse.Namespace, dataset: Any) -> Any:
    """The local files of `--train` and `--validation`, else `dataset`."""
    if not options.train:
        return dataset
    files = {"train": options.train, "validation": options.validation}
    return {name: str(Path(file).resolve()) for name, file in files.items()}


def public_command(bench: str, arguments: str) -> str:
    """A command without anybody's folders."""
    return f"python -m bench.{bench} {arguments}"


def results_of(recipe: Json, output: Path, seconds: float) -> Json | None:
    """What a run of a recipe in the folder `output` found, or `None` if the time ends before it does."""
    if not finished(recipe, output, seconds):
        return None
    found: Json = read_json(output / "results.json")
    return found


def row(results: Json, member: str) -> Json:
    """What is kept of a member's fp32 and int8 variants."""
    fp32, int8 = (results["variants"][f"{member}_{precision}"] for precision in ("fp32", "int8"))
    layers = fp32["structure"]["layers"]
    return {
        "metric": fp32["metric"]["name"],
        "dense": results["variants"]["dense_fp32"]["metric"]["value"],
        "value": {"fp32": fp32["metric"]["value"], "int8": int8["metric"]["value"]},
        "metric_drop": {"fp32": fp32["metric_drop"], "int8": int8["metric_drop"]},
        "speedup": {"fp32": fp32["speedup"], "int8": int8["speedup"]},
        "nonzero_density": fp32["nonzero_density"],
        "sliced_density": fp32["sliced_density"],
        "parameters": fp32["parameters"],
        "heads": [_units(layer["attention"]) for layer in layers],
        "ffn": [_units(layer["ffn"]) for layer in layers],
        "examples": results["task"]["examples"],
        "environment": {key: results["environment"][key] for key in ("cpu", "cores", "load")},
    }


def minutes(results: Json, *beginnings: str) -> dict[str, float]:
    """Minutes of the stages whose names begin so."""
    stages = [stage for stage in results["stages"] if stage["id"].startswith(beginnings)]
    return {stage["id"]: stage["seconds"] / 60 for stage in stages}


def state_of(path: Path) -> Json:
    """The cells that earlier calls measured, or none."""
    found: Json = read_json(path) if path.is_file() else {"machine": fingerprint(), "cells": {}}
    return found


def started(options: argparse.Namespace, table: Callable[[Json], str]) -> Json | None:
    """The state that a bench goes on with; `None` if only its table was wanted, which is printed then.

    Raises:
        SystemExit: there is no `--model`, which is to be fine-tuned.
    """
    state = state_of(options.output)
    if options.table:
        sys.stdout.write(table(state) + "\n")
        return None
    if not options.model:
        raise SystemExit("--model: name the folder of a MiniLM that is fine-tuned on the task")
    return state


def table(state: Json, also: Collection[str] = (), densities: Mapping[str, str] = SLICED) -> str:
    """A row a cell: what it keeps, what it costs, how fast it is; `also` are keys to show after task and kind."""
    columns = ["task", "kind", *also, "metric", "dense", "fp32", "int8", *densities]
    columns += ["parameters", "fp32 speedup", "int8 speedup", "minutes"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for cell in state["cells"].values():
        texts = [cell[key] for key in ("task", "kind", *also, "metric")]
        texts += [fixed(100 * value) for value in (cell["dense"], *cell["value"].values())]
        texts += [f"{fixed(100 * cell[key])} %" for key in densities.values()]
        texts += [count_text(cell["parameters"])]
        texts += [speedup_text(rows[0]) if rows else MISSING for rows in cell["speedup"].values()]
        texts += [fixed(sum(cell["minutes"].values()), 0)]
        lines.append(f"| {' | '.join(str(text) for text in texts)} |")
    return "\n".join(lines)


def on_minilm(bench: str, options: argparse.Namespace) -> str:
    """The public command of a bench with these options."""
    rows = f" --rows {options.rows}" if options.rows else ""
    precision = "" if options.precision == "fp32" else f" --precision {options.precision}"
    data = "--model .../minilm-l6-h384 --train ... --validation ..."
    return public_command(bench, f"--task {options.task}{rows}{precision} {data}")


def _units(sub_layer: Any) -> int:
    return len(sub_layer["kept"]) if isinstance(sub_layer, dict) else 0

"""Block movement pruning of MiniLM: three strengths of its regulariser, plain, filled and struct, and magnitude.

    python bench/block_pruning.py --task sst2 --model FOLDER --train train.tsv --validation dev.tsv --budget 120
    python bench/block_pruning.py --table

Every cell is a run of `recipes/minilm_<task>_block.yaml` with other pruning keys. All runs of a task share a folder
and so the teacher; `plain` shares its pruning with `hybrid`, and only leaves out the filling. `magnitude` prunes as
many of the same units (heads and neurons, the same share in every layer) as `hybrid` did, by the size of their
weights, in the same number of steps with the same teacher and filling: what the scores are worth. A run that the
budget ends goes on with the next call. Trainings take hours: minutes of each are in the result.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from compressor.benchmark.machine import fingerprint
from compressor.files import read_json, write_json, write_text
from compressor.report.fields import MISSING, count_text, fixed, speedup_text

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "bench" / "results" / "block_pruning.json"
STRENGTHS = {"sst2": (10, 5, 20), "squad": (10, 5, 20)}
KINDS: dict[str, Json] = {
    "hybrid": {},
    "plain": {},
    "magnitude": {"variant": "struct", "mask": "magnitude", "joint_heads": True},
    # Twelve scores a matrix feel the penalty twelve times as much as the 144 blocks of hybrid do.
    "struct": {"variant": "struct", "attention_regularization": 0.1},
}
SCORED = ("regularization", "ffn_regularization", "score_learning_rate")
"""Keys that mean nothing where nothing is learned."""


def main() -> None:
    options = arguments()
    state = read_json(options.output) if options.output.is_file() else {"machine": fingerprint(), "cells": {}}
    if options.table:
        sys.stdout.write(table(state) + "\n")
        return
    end = time.monotonic() + 60 * options.budget
    for kind, strength in lacking(state, options.task):
        name = f"{options.task} {kind} {strength}"
        results = run(options, state, kind, strength, end - time.monotonic())
        if results is None:
            break
        state["cells"][name] = row(results, options, kind, strength)
        write_json(options.output, state)
    missing = [f"{kind} {strength}" for kind, strength in lacking(state, options.task)]
    print("missing:", ", ".join(missing) or "nothing")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="print what was measured as Markdown")
    parser.add_argument("--task", choices=STRENGTHS, default="sst2")
    parser.add_argument("--model", help="folder of the pretrained MiniLM; by default the recipe's hub id")
    parser.add_argument("--train", help="training file; by default the recipe's hub data set")
    parser.add_argument("--validation")
    parser.add_argument("--rows", type=int, help="training rows; by default the recipe's limit")
    parser.add_argument("--budget", type=float, metavar="MINUTES", default=120.0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "block_pruning")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


def lacking(state: Json, task: str) -> Iterator[tuple[str, int]]:
    """Cells (kind, strength) not yet measured, all kinds of a strength before the next."""
    for strength in STRENGTHS[task]:
        for kind in KINDS:
            if f"{task} {kind} {strength}" not in state["cells"]:
                yield kind, strength


def run(options: argparse.Namespace, state: Json, kind: str, strength: int, seconds: float) -> Json | None:
    """The results of a cell's run; `None` if the time ends before it does."""
    folder = options.runs / options.task
    path = folder / f"{kind}-{strength}.yaml"
    write_text(path, yaml.safe_dump(recipe(options, state, kind, strength), sort_keys=False))
    output = folder / "run"
    command = [sys.executable, "-m", "compressor", "run", str(path), "--output", str(output)]
    process = subprocess.Popen(command)
    try:
        if process.wait(timeout=max(1.0, seconds)):
            raise SystemExit(f"{path} failed")
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return None
    found: Json = read_json(output / "results.json")
    return found


def recipe(options: argparse.Namespace, state: Json, kind: str, strength: int) -> Json:
    """The shipped recipe with this cell's pruning; stages of their own names, the teacher the same for all."""
    made: Json = yaml.safe_load(
        (ROOT / "recipes" / f"minilm_{options.task}_block.yaml").read_text(encoding="utf-8")
    )
    made["gates"] = {}
    if options.model:
        made["model"] = options.model
    if options.train:
        made["task"]["dataset"] = {"train": options.train, "validation": options.validation}
    if options.rows:
        made["task"]["limit"]["train"] = options.rows
    teacher, prune, _, fill, export, quantize = made["stages"]
    keys = prune["prune"] | {"regularization": strength} | KINDS[kind]
    if kind == "magnitude":
        keys = {key: value for key, value in keys.items() if key not in SCORED}
        keys["threshold"] = state["cells"][f"{options.task} hybrid {strength}"]["sliced_density"]
    name = f"{'hybrid' if kind == 'plain' else kind}-{strength}"
    stages = [teacher, {"prune": keys | {"id": name}}, {"slice": {"id": f"{name}-slice"}}]
    if kind != "plain":
        stages.append({"finetune": fill["finetune"] | {"id": f"{name}-fill"}})
    return made | {"stages": [*stages, export, quantize]}


def row(results: Json, options: argparse.Namespace, kind: str, strength: int) -> Json:
    """What is kept of a run."""
    fp32, int8 = results["variants"]["pruned_fp32"], results["variants"]["pruned_int8"]
    own = [s for s in results["stages"] if s["id"].startswith(("hybrid", "struct", "magnitude"))]
    layers = fp32["structure"]["layers"]
    return {
        "command": public_command(options),
        "task": options.task,
        "kind": kind,
        "regularization": strength,
        "metric": fp32["metric"]["name"],
        "dense": results["variants"]["dense_fp32"]["metric"]["value"],
        "value": {"fp32": fp32["metric"]["value"], "int8": int8["metric"]["value"]},
        "metric_drop": {"fp32": fp32["metric_drop"], "int8": int8["metric_drop"]},
        "speedup": {"fp32": fp32["speedup"], "int8": int8["speedup"]},
        "nonzero_density": fp32["nonzero_density"],
        "sliced_density": fp32["sliced_density"],
        "parameters": fp32["parameters"],
        "heads": [len(la["attention"]["kept"]) if isinstance(la["attention"], dict) else 0 for la in layers],
        "ffn": [len(la["ffn"]["kept"]) if isinstance(la["ffn"], dict) else 0 for la in layers],
        "minutes": {stage["id"]: stage["seconds"] / 60 for stage in own},
        "examples": results["task"]["examples"],
        "environment": {key: results["environment"][key] for key in ("cpu", "cores", "load")},
    }


def public_command(options: argparse.Namespace) -> str:
    """The command without anybody's folders."""
    rows = f" --rows {options.rows}" if options.rows else ""
    data = "--model .../minilm-l6-h384 --train ... --validation ..."
    return f"python bench/block_pruning.py --task {options.task}{rows} {data}"


def table(state: Json) -> str:
    """A row a cell: what it keeps, what it costs, how fast it is."""
    columns = ["task", "kind", "regularization", "metric", "dense", "fp32", "int8", "non-zero", "sliced"]
    columns += ["parameters", "fp32 speedup", "int8 speedup", "minutes"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for cell in state["cells"].values():
        texts = [cell["task"], cell["kind"], cell["regularization"], cell["metric"]]
        texts += [fixed(100 * value) for value in (cell["dense"], *cell["value"].values())]
        texts += [f"{fixed(100 * cell[key])} %" for key in ("nonzero_density", "sliced_density")]
        texts += [count_text(cell["parameters"])]
        texts += [speedup_text(rows[0]) if rows else MISSING for rows in cell["speedup"].values()]
        texts += [fixed(sum(cell["minutes"].values()), 0)]
        lines.append(f"| {' | '.join(str(text) for text in texts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

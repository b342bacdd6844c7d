"""All-attention Transformer against Transformer-XL, both pruned head by head, on Penn Treebank.

    python bench/all_attention.py --train ptb.train.txt --validation ptb.valid.txt --budget 90
    python bench/all_attention.py --table

Every cell is a run of `recipes/ptb_all_attention_heads.yaml` with another family, penalty or seed. Both families
have the same width, layers, heads and about the same parameters (an FFN as wide as there are persistent vectors),
and see the same tokens. All runs of a family and seed share a folder and so the dense model. Kinds: `pruned` at
several penalties; `half`, the same number of heads cut from every layer of the dense model and nothing trained, for
the time alone; `small`, fewer layers trained from scratch for as long as a pruned model is altogether; and, at
one penalty, what pruning loses without one of the method's three parts: `no-warmup` (the whole penalty at once),
`half-open` (gates that begin as often closed as open), `unscaled` (nothing makes up for closed heads) and
`unconverged` (gates from the start, trained as long as both stages). A run that the budget ends goes on with the
next call.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from compressor.benchmark.machine import fingerprint
from compressor.files import read_json, write_json, write_text
from compressor.report.fields import MISSING, count_text, fixed

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "ptb_all_attention_heads.yaml"
OUTPUT = ROOT / "bench" / "results" / "all_attention.json"
FAMILIES = ("all-attention", "transformer-xl")
PENALTIES = {"all-attention": (0.02, 0.015, 0.01), "transformer-xl": (0.02, 0.01, 0.04)}
"""Of each family, so that bodies of about the same size are there of both: Transformer-XL keeps its FFNs."""
LAYERS = (3, 4)
ABLATED: dict[str, Json] = {
    "no-warmup": {"penalty_warmup": 0},
    "half-open": {"initial_logit": 0.0},
    "unscaled": {"scale_outputs": False},
    "unconverged": {"from": "model"},
}
ABLATION_PENALTY = 0.02


class Cell(NamedTuple):
    """One run. `value`: the penalty, the heads a layer keeps, or the layers of a small model."""

    family: str
    kind: str
    value: float
    seed: int

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return f"{self.family} {self.kind} {self.value:g} seed {self.seed}"


def cells(seeds: int) -> Iterator[Cell]:
    """All cells, those that answer the main question first."""
    for seed in range(seeds):
        for family in FAMILIES:
            for penalty in PENALTIES[family]:
                yield Cell(family, "pruned", penalty, seed)
    for family in FAMILIES:
        yield Cell(family, "half", 4, 0)
    for layers in LAYERS:
        for family in FAMILIES:
            yield Cell(family, "small", layers, 0)
    for kind in ABLATED:
        yield Cell(FAMILIES[0], kind, ABLATION_PENALTY, 0)


def main() -> None:
    options = arguments()
    state = read_json(options.output) if options.output.is_file() else {"machine": fingerprint(), "cells": {}}
    if options.table:
        sys.stdout.write(table(state) + "\n")
        return
    end = time.monotonic() + 60 * options.budget
    for cell in cells(options.seeds):
        if cell.name in state["cells"]:
            continue
        results = run(options, cell, end - time.monotonic())
        if results is None:
            break
        state["cells"][cell.name] = row(results, options, cell)
        write_json(options.output, state)
    missing = [cell.name for cell in cells(options.seeds) if cell.name not in state["cells"]]
    print("missing:", ", ".join(missing) or "nothing")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="print what was measured as Markdown")
    parser.add_argument("--train", help="text of the training part; by default the recipe's hub data set")
    parser.add_argument("--validation")
    parser.add_argument("--lines", type=int, help="training lines; by default all")
    parser.add_argument("--epochs", type=float, default=1.0, help="of the recipe's, as a factor")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], help="override of the recipe, as in compressor run"
    )
    parser.add_argument("--budget", type=float, metavar="MINUTES", default=90.0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "all_attention")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


def run(options: argparse.Namespace, cell: Cell, seconds: float) -> Json | None:
    """The results of a cell's run; `None` if the time ends before it does."""
    if seconds <= 0:
        return None
    shared = f"small-{cell.value:g}" if cell.kind == "small" else "dense"
    folder = options.runs / f"{cell.family}-{shared}-{cell.seed}"
    path = folder / f"{cell.kind}-{cell.value:g}.yaml"
    write_text(path, yaml.safe_dump(recipe(options, cell), sort_keys=False))
    output = folder / "run"
    command = [sys.executable, "-m", "compressor", "run", str(path), "--output", str(output)]
    process = subprocess.Popen([*command, *(word for pair in options.set for word in ("--set", pair))])
    try:
        # 3: a gate or a parity check failed, which a bench must not hide either.
        if code := process.wait(timeout=seconds):
            raise SystemExit(f"{path} failed (exit code {code})")
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return None
    found: Json = read_json(output / "results.json")
    return found


def recipe(options: argparse.Namespace, cell: Cell) -> Json:
    """The shipped recipe for this cell; stages of their own names, the dense model the same for all of a family."""
    made: Json = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    made |= {"gates": {}, "seed": made["seed"] + cell.seed}
    if options.train:
        made["task"]["dataset"] = {"train": options.train, "validation": options.validation}
        del made["task"]["columns"]
    if options.lines:
        made["task"]["limit"] = {"train": options.lines}
    config = made["model"]["config"]
    if cell.family == "transformer-xl":
        config |= {"model_type": cell.family, "intermediate_size": config.pop("persistent_vectors")}
        del config["initial_weights"]  # it has no persistent vectors, and begins as published
    dense, prune, cut, finetune, export = made["stages"]
    train, gates, again = dense["finetune"], prune["prune"], finetune["finetune"]
    for keys in (train, gates, again):
        keys |= {"epochs": keys["epochs"] * options.epochs, "precision": options.precision}
    if cell.kind == "small":
        config["num_hidden_layers"] = int(cell.value)
        train["epochs"] += gates["epochs"] + again["epochs"]
        return made | {"stages": [dense, export]}
    if cell.kind == "half":
        closed = list(range(int(cell.value), config["num_attention_heads"]))
        drop = {"method": "heads", "score": "explicit", "id": "half"}
        drop |= {"drop": {str(layer): list(closed) for layer in range(config["num_hidden_layers"])}}
        return made | {"stages": [dense, {"prune": drop}, {"slice": {"id": "half-slice"}}, export]}
    gates["penalty"] = cell.value
    gates |= ABLATED.get(cell.kind, {})
    if cell.kind == "unconverged":
        gates |= {key: train[key] for key in ("learning_rate", "schedule", "warmup")}
        gates["epochs"] += train["epochs"]
    name = f"{cell.kind}-{cell.value:g}".replace(".", "_")
    gates["id"] = name
    stages = [dense, prune, cut | {"slice": {"id": f"{name}-slice"}}]
    return made | {"stages": [*stages, {"finetune": again | {"id": f"{name}-fill"}}, export]}


def row(results: Json, options: argparse.Namespace, cell: Cell) -> Json:
    """What is kept of a run."""
    dense = results["variants"]["dense_fp32"]
    made = dense if cell.kind == "small" else results["variants"]["pruned_fp32"]
    layers = made["structure"]["layers"]
    return {
        "command": public_command(options),
        **cell._asdict(),
        "metric": made["metric"]["name"],
        "dense": dense["metric"]["value"],
        "perplexity": made["metric"]["value"],
        "metric_drop": made.get("metric_drop"),
        "parameters": {key: made[key] for key in ("parameters", "body_parameters")},
        "dense_parameters": {key: dense[key] for key in ("parameters", "body_parameters")},
        "heads": [len(la["attention"]["kept"]) if isinstance(la["attention"], dict) else 0 for la in layers],
        "latency": [{k: v for k, v in part.items() if k != "raw"} for part in made["latency"]],
        "speedup": made.get("speedup"),
        "minutes": {stage["id"]: stage["seconds"] / 60 for stage in results["stages"]},
        "examples": results["task"]["examples"],
        "environment": {key: results["environment"][key] for key in ("cpu", "cores", "load")},
    }


def public_command(options: argparse.Namespace) -> str:
    """The command without anybody's folders."""
    lines = f" --lines {options.lines}" if options.lines else ""
    epochs = f" --epochs {options.epochs:g}" if options.epochs != 1 else ""
    precision = f" --precision {options.precision}" if options.precision != "fp32" else ""
    extra = precision + "".join(f" --set {pair}" for pair in options.set)
    return f"python bench/all_attention.py{lines}{epochs}{extra} --train .../ptb.train.txt --validation ..."


def table(state: Json) -> str:
    """A row a cell: what it keeps, what it costs, and the time of a token in a segment and on its own."""
    columns = ["family", "kind", "penalty, heads or layers", "seed", "heads", "body", "all parameters"]
    columns += ["dense perplexity", "perplexity", "segment ms a token", "prompt ms a token", "step ms"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for cell in state["cells"].values():
        texts = [cell["family"], cell["kind"], f"{cell['value']:g}", cell["seed"], sum(cell["heads"])]
        texts += [count_text(cell["parameters"][key]) for key in ("body_parameters", "parameters")]
        texts += [fixed(cell["dense"]), fixed(cell["perplexity"]), *_token_times(cell["latency"])]
        lines.append(f"| {' | '.join(str(text) for text in texts)} |")
    return "\n".join(lines)


def _token_times(latency: list[Json]) -> list[str]:
    """Milliseconds of a token: scored with others in a segment, read with others, and alone."""
    times = {
        row["part"]: row["p50_ms"] / row["sequence_length"]
        for row in reversed(latency)
        if row["part"] != "step" and row["sequence_length"] != "data"
    }
    times |= {row["part"]: row["p50_ms"] for row in reversed(latency) if row["part"] == "step"}
    return [fixed(times[part], 3) if part in times else MISSING for part in ("segment", "prompt", "step")]


if __name__ == "__main__":
    main()

"""Asked against measured: models of which a speed was asked, timed as exported beside the dense one.

    python -m bench.speedup_targets --model FOLDER --train train.tsv --validation dev.tsv --budget 60
    python -m bench.speedup_targets --table

A cell is one model in one benchmark cell and one precision. Every target is a run of its own, in one folder that
keeps the table and the database: search, and models exported and measured until they are as fast as asked. Judged is
what the run's own benchmark says of the artifact afterwards, in fresh processes, against the dense model of the same
precision. Where the dense model takes another time by then than during the search, the machine is not what it was:
then the artifact is measured again, whatever its speed, and the last measurement counts. MiniLM is a fine-tuned
folder; BERT-base has random weights and MiniLM's vocabulary. Speed alone is looked at, so calibration is short and
nothing is trained. A run that the budget ends goes on with the next call.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.runs import UNGATED, Json, data_keys, finished, public_command, started
from compressor.benchmark.statistics import ratio_interval
from compressor.files import appearing, read_json, write_json
from compressor.report.fields import count_text, fixed

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "bench" / "results" / "speedup_targets.json"
CELLS = (("minilm", 1, 128), ("minilm", 1, 384), ("minilm", 8, 128), ("bert-base", 1, 128))
"""Model, batch size, tokens."""
TARGETS = (1.5, 2, 3, 5)
PRECISIONS = ("fp32", "int8")
THREADS, PROCESSES, SEED = 2, 5, 0
ANOTHER, AGAIN = 0.05, 2
"""A dense model whose time changed by so much stands for another machine; how often at most to measure again."""
PRUNE = {
    "method": "speed",
    "score": "magnitude",
    "calibration": 64,
    "probes": 16,
    "search": 0,
    "recover": False,
}
"""A short way to a structure; how it is brought to its speed is the method's own."""


def main() -> None:
    options = parser().parse_args()
    state = started(options, table)
    if state is None:
        return
    end = time.monotonic() + 60 * options.budget
    command = public_command("speedup_targets", "--model ... --train ... --validation ...")
    for name, target, *cell in lacking(state, options):
        found = measured(options, name, target, cell, end)
        if found is None:
            break
        state["cells"].setdefault(name, {"command": command, "targets": []})["targets"].append(found)
        write_json(options.output, summed(state))
        sys.stdout.write(f"{name}: {texts(state['cells'][name])}\n")
    write_json(options.output, summed(state))
    missing = [f"{name} {target:g}x" for name, target, *_ in lacking(state, options)]
    sys.stdout.write(f"missing: {', '.join(missing) or 'nothing'}\n")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--table", action="store_true", help="print what was measured as Markdown")
    made.add_argument("--model", type=Path, help="folder of a MiniLM fine-tuned on SST-2")
    made.add_argument("--train", help="training file; by default the recipe's hub data set")
    made.add_argument("--validation")
    made.add_argument("--budget", type=float, metavar="MINUTES", default=60.0)
    made.add_argument("--cells", nargs="+", choices=list(names()), default=list(names()), metavar="CELL")
    made.add_argument("--targets", nargs="+", type=float, default=list(TARGETS))
    made.add_argument("--runs", type=Path, default=ROOT / "runs" / "speedup_targets")
    made.add_argument("--output", type=Path, default=OUTPUT)
    return made


def names() -> Iterator[str]:
    """Names of all cells, fp32 first."""
    for precision in PRECISIONS:
        for model, batch, length in CELLS:
            yield f"{model}-b{batch}-s{length}-{precision}"


def lacking(state: Json, options: argparse.Namespace) -> Iterator[tuple[str, float, str, int, int, str]]:
    """What is asked for and not measured: name of the cell, target, model, batch size, tokens, precision."""
    every = [(*cell, precision) for precision in PRECISIONS for cell in CELLS]
    for name, cell in zip(names(), every, strict=True):
        done = {one["asked"] for one in state["cells"].get(name, {"targets": []})["targets"]}
        if name in options.cells:
            yield from ((name, target, *cell) for target in options.targets if target not in done)


def measured(
    options: argparse.Namespace, name: str, target: float, cell: list[Any], end: float
) -> Json | None:
    """The row of one target, or `None` if the time ends before it is there."""
    recipe, output = recipe_of(options, name, target, *cell), options.runs / name
    for again in range(1 + AGAIN):
        if not finished(recipe, output, end - time.monotonic()):
            return None
        found = row(output, target, cell[-1]) | {"measured_again": again}
        if abs(found["dense_ms"] / found["dense_ms_while_searching"] - 1) <= ANOTHER:
            break
        if again < AGAIN:
            (output / "measurements" / "latency.json").unlink()
    return found


def recipe_of(
    options: argparse.Namespace, name: str, target: float, model: str, batch: int, length: int, precision: str
) -> Json:
    """The recipe of a target."""
    folder = options.model if model == "minilm" else random_bert(options.model, options.runs / "bert-base")
    quantize = [{"quantize": {"mode": "dynamic"}}] if precision == "int8" else []
    return {
        "name": name,
        "model": str(folder.resolve()),
        "task": {
            "type": "text-classification",
            "dataset": data_keys(options, {"hub": "nyu-mll/glue", "config": "sst2"}),
            "selection": {"fraction": 0.05},
            "max_length": 128,
            "limit": {"train": 2000, "validation": 20},
        },
        "stages": [{"prune": {"id": stage_of(target), **PRUNE}}, {"slice": {}}, {"export": {}}, *quantize],
        "target": {
            "speedup": target,
            "at": {"precision": precision, "relative_to": "same-precision"},
        },
        "gates": UNGATED,
        "benchmark": {
            "threads": [THREADS],
            "batch_sizes": [batch],
            "sequence_lengths": [length],
            "processes": PROCESSES,
        },
    }


def stage_of(target: float) -> str:
    """The name of the stage that prunes to it."""
    return f"prune-{target:g}x".replace(".", "_")


def random_bert(minilm: Path, folder: Path, **config: int) -> Path:
    """A BERT-base of random weights with a head of two labels and the tokenizer of `minilm`; made once."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    if not folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(minilm)
        torch.manual_seed(SEED)
        model = BertForSequenceClassification(BertConfig(**{"vocab_size": len(tokenizer), **config}))
        with appearing(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def row(output: Path, target: float, precision: str) -> Json:
    """What is kept of a finished run."""
    results = read_json(output / "results.json")
    (report,) = read_json(output / stage_of(target) / "stage.json")["info"]["members"].values()
    value, low, high = speedup(output, results, f"pruned_{precision}", f"dense_{precision}")
    searching = report["measured"]
    return {
        "asked": target,
        "measured": value,
        "ci95": [low, high],
        "error": value / target - 1,
        "certainly_short": high < target,
        "while_searching": searching["speedup"],
        "dense_ms": results["variants"][f"dense_{precision}"]["latency"][0]["p50_ms"],
        "dense_ms_while_searching": searching["ms"] * searching["speedup"],
        "exported": len(report["attempts"]),
        "noisy": searching["noisy"],
        "seconds": {one["id"]: one["seconds"] for one in results["stages"]},
        "load": results["environment"]["load"],
    }


def speedup(output: Path, results: Json, variant: str, dense: str) -> tuple[float, float, float]:
    """How many times faster a variant is than `dense` and its 95 % interval, from the run's raw samples."""
    pair = [read_runs(output, results, name) for name in (dense, variant)]
    times = [np.stack(columns, axis=1) for columns in zip(*pair, strict=True)]
    found = ratio_interval(times)
    return found.value, found.low, found.high


def read_runs(output: Path, results: Mapping[str, Any], variant: str) -> list[Any]:
    """Milliseconds of a variant in the first benchmark cell, an array a process, in the order of rounds."""
    raw = results["variants"][variant]["latency"][0]["raw"]
    with np.load(output / raw) as stored:
        arrays = {name: stored[name] for name in ("ms", "process")}
    return [arrays["ms"][arrays["process"] == number] for number in np.unique(arrays["process"])]


def summed(state: Json) -> Json:
    """The state with the summary over all cells, and what is missing."""
    rows = [one for cell in state["cells"].values() for one in cell["targets"]]
    errors = [abs(one["error"]) for one in rows]
    state["summary"] = {
        "targets": len(rows),
        "median_error": median(errors) if errors else None,
        "worst_error": max(errors, default=None),
        "certainly_short": sum(one["certainly_short"] for one in rows),
    }
    lacks = [
        name for name in names() if len(state["cells"].get(name, {"targets": []})["targets"]) < len(TARGETS)
    ]
    state["missing"] = lacks
    return state


def texts(cell: Json) -> str:
    """`2x: 2.03 (2.01 to 2.05)` for every target."""
    rows = (f"{r['asked']:g}x: {r['measured']:.3f} ({low_high(r['ci95'])})" for r in cell["targets"])
    return "; ".join(rows)


def low_high(ends: list[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def table(state: Json) -> str:
    """A row a target: what was asked, what the artifact was measured at, how far off."""
    lines = ["| cell | dense ms | asked | measured (95 %) | error | exported |", "|---|---|---|---|---|---|"]
    for name, cell in state["cells"].items():
        for one in cell["targets"]:
            columns = [
                name,
                fixed(one["dense_ms"]),
                f"{one['asked']:g}x",
                f"{one['measured']:.3f} ({low_high(one['ci95'])})",
                f"{100 * one['error']:+.1f} %",
                count_text(one["exported"]),
            ]
            lines.append(f"| {' | '.join(columns)} |")
    summary = state.get("summary") or summed(state)["summary"]
    if summary["targets"]:
        lines += [
            "",
            f"{summary['targets']} targets: median error {100 * summary['median_error']:.1f} %, worst "
            f"{100 * summary['worst_error']:.1f} %, certainly short of the asked speed {summary['certainly_short']}.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

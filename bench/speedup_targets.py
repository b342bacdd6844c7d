"""Asked against measured: models of which a speed was asked, timed as exported beside the dense one.

    python -m bench.speedup_targets --model FOLDER --train train.tsv --validation dev.tsv --budget 60
    python -m bench.speedup_targets --table

A cell is one model in one benchmark cell and one precision. It is a run of a recipe with `target: {speedup: [1.5,
2, 3, 5]}`: table, search, and models exported and measured until they are as fast as asked. Judged is what the run's
own benchmark says of the artifacts afterwards, in fresh processes, against the dense model of the same precision.
MiniLM is a fine-tuned folder; BERT-base has random weights and MiniLM's vocabulary. Speed alone is looked at, so
calibration is short and nothing is trained. A run that the budget ends goes on with the next call.
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
THREADS, SEED = 2, 0
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
    for name, model, batch, length, precision in lacking(state, options):
        recipe, output = recipe_of(options, name, model, batch, length, precision), options.runs / name
        if not finished(recipe, output, end - time.monotonic()):
            break
        state["cells"][name] = row(output, precision) | {
            "command": public_command("speedup_targets", "--model ... --train ... --validation ...")
        }
        write_json(options.output, summed(state))
        sys.stdout.write(f"{name}: {texts(state['cells'][name])}\n")
    write_json(options.output, summed(state))
    missing = [name for name, *_ in lacking(state, options)]
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


def lacking(state: Json, options: argparse.Namespace) -> Iterator[tuple[str, str, int, int, str]]:
    """Cells that are asked for and not measured: name, model, batch size, tokens, precision."""
    every = [(*cell, precision) for precision in PRECISIONS for cell in CELLS]
    for name, cell in zip(names(), every, strict=True):
        if name in options.cells and name not in state["cells"]:
            yield name, *cell


def recipe_of(
    options: argparse.Namespace, name: str, model: str, batch: int, length: int, precision: str
) -> Json:
    """The recipe of a cell."""
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
        "stages": [{"prune": PRUNE}, {"slice": {}}, {"export": {}}, *quantize],
        "target": {
            "speedup": options.targets if len(options.targets) > 1 else options.targets[0],
            "at": {"precision": precision, "relative_to": "same-precision"},
        },
        "gates": UNGATED,
        "benchmark": {"threads": [THREADS], "batch_sizes": [batch], "sequence_lengths": [length]},
    }


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


def row(output: Path, precision: str) -> Json:
    """What is kept of a finished run: a row a target, and what it took."""
    results = read_json(output / "results.json")
    stage = read_json(output / "prune" / "stage.json")
    members = stage["info"]["members"]
    found = []
    for member, report in members.items():
        asked = report["asked"]["speedup"]
        measured = speedup(output, results, f"{member}_{precision}", f"dense_{precision}")
        value, low, high = measured
        found.append(
            {
                "asked": asked,
                "measured": value,
                "ci95": [low, high],
                "error": value / asked - 1,
                "certainly_short": high < asked,
                "while_searching": report["measured"]["speedup"],
                "dense_ms_while_searching": report["measured"]["ms"] * report["measured"]["speedup"],
                "exported": len(report["attempts"]),
                "noisy": report["measured"]["noisy"],
            }
        )
    dense = results["variants"][f"dense_{precision}"]["latency"][0]
    return {
        "targets": found,
        "dense_ms": dense["p50_ms"],
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
    state["missing"] = [name for name in names() if name not in state["cells"]]
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
                fixed(cell["dense_ms"]),
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

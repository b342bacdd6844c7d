"""Which units go: every score of `speed` at equal measured speedup, beside layer dropping; also after short training.

    python -m bench.scores --model FOLDER --train train.tsv --validation dev.tsv --budget 60
    python -m bench.scores --model FOLDER --train train.tsv --validation dev.tsv --trained --budget 300
    python -m bench.scores --table

A cell is a run of one score on one task: a family of speeds, each brought to what was asked by measuring, so that the
scores are compared at equal speed. FOLDER is a MiniLM fine-tuned on the task: the dense model, and the teacher of
`--trained`. `layer-drop` drops whole layers from the top, as many as come nearest to these speeds from below. All
runs of a task share a folder and so the latency table and the timings. A run that the budget ends goes on with the
next call.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.runs import UNGATED, Json, data_keys, finished, public_command, started
from compressor.files import read_json, write_json
from compressor.report.fields import fixed, speedup_text

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "bench" / "results" / "scores.json"
TASKS: dict[str, Json] = {
    "sst2": {
        "task": {"type": "text-classification", "selection": {"fraction": 0.05}, "max_length": 128},
        "hub": {"hub": "nyu-mll/glue", "config": "sst2"},
        "prune": {},
        "length": 128,
    },
    "squad": {
        "task": {
            "type": "question-answering",
            "selection": {"fraction": 0.02},
            "max_length": 384,
            "stride": 128,
        },
        "hub": "rajpurkar/squad",
        "prune": {"calibration": 256, "probes": 32},
        "length": 384,
    },
}
LAYERS = "layer-drop"
KINDS = ("second-order", "fisher", "kprune", "activation", "magnitude", "random", LAYERS)
TARGETS = (1.5, 2, 3)
DROPPED = (2, 3, 4)
"""Of six layers: at most these speeds, as embeddings and head stay."""
SHORT = {"epochs": 1.0, "learning_rate": 5.0e-5, "batch_size": 32}
DISTILL = {"teacher": "model", "temperature": 2, "alpha": 0.9}


def main() -> None:
    options = parser().parse_args()
    state = started(options, table)
    if state is None:
        return
    end = time.monotonic() + 60 * options.budget
    for name, kind in lacking(state, options):
        output = options.runs / options.task
        if not finished(recipe_of(options, kind), output, end - time.monotonic()):
            break
        state["cells"][name] = row(read_json(output / "results.json"), options, kind, output)
        write_json(options.output, state)
        sys.stdout.write(f"{name}\n")
    state["missing"] = [name for task in TASKS for name in names(task)]
    state["missing"] = [name for name in state["missing"] if name not in state["cells"]]
    write_json(options.output, state)
    sys.stdout.write(f"missing: {', '.join(state['missing']) or 'nothing'}\n")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--table", action="store_true", help="print what was measured as Markdown")
    made.add_argument("--task", choices=TASKS, default="sst2")
    made.add_argument("--model", type=Path, help="folder of a MiniLM fine-tuned on the task")
    made.add_argument("--train", help="training file; by default the task's hub data set")
    made.add_argument("--validation")
    made.add_argument("--rows", type=int, help="training rows; by default all")
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    made.add_argument("--targets", nargs="+", type=float, default=list(TARGETS))
    made.add_argument("--trained", action="store_true", help="train every model for an epoch afterwards")
    made.add_argument("--budget", type=float, metavar="MINUTES", default=60.0)
    made.add_argument("--runs", type=Path, default=ROOT / "runs" / "scores")
    made.add_argument("--output", type=Path, default=OUTPUT)
    return made


def names(task: str) -> Iterator[str]:
    """All cells of a task, without training first."""
    for trained in (False, True):
        yield from (name_of(task, kind, trained) for kind in KINDS)


def name_of(task: str, kind: str, trained: bool) -> str:
    return f"{task} {kind}{' trained' if trained else ''}"


def lacking(state: Json, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Cells that are asked for and not measured: name and kind."""
    for kind in options.kinds:
        name = name_of(options.task, kind, options.trained)
        if name not in state["cells"]:
            yield name, kind


def recipe_of(options: argparse.Namespace, kind: str) -> Json:
    """The recipe of a cell; with and without training it shares its pruning."""
    task = TASKS[options.task]
    limit = {"limit": {"train": options.rows}} if options.rows else {}
    pruning: Json = {"method": "speed", "score": kind, **task["prune"]}
    aim: Json = {"target": {"speedup": options.targets if len(options.targets) > 1 else options.targets[0]}}
    if kind == LAYERS:
        pruning, aim = {"method": LAYERS, "strategy": "top", "drop": list(DROPPED)}, {}
    training = [{"finetune": {"id": f"{kind}-short", **SHORT, "distill": DISTILL}}] if options.trained else []
    return {
        "name": f"{options.task}-{kind}",
        "model": str(options.model.resolve()),
        "task": task["task"] | {"dataset": data_keys(options, task["hub"])} | limit,
        "stages": [
            {"prune": {"id": kind, **pruning}},
            {"slice": {"id": f"{kind}-slice"}},
            *training,
            {"export": {}},
        ],
        **aim,
        "gates": UNGATED,
        "benchmark": {"threads": [2], "batch_sizes": [1], "sequence_lengths": [task["length"]]},
    }


def row(results: Json, options: argparse.Namespace, kind: str, output: Path) -> Json:
    """What is kept of a run: a row a model, and what each stage took."""
    members = read_json(output / kind / "stage.json")["info"]["members"]
    dense = results["variants"]["dense_fp32"]["metric"]
    arguments = f"--task {options.task} --model ... --train ... --validation ..."
    return {
        "command": public_command("scores", arguments + " --trained" * options.trained),
        "metric": dense["name"],
        "dense": dense["value"],
        "examples": results["task"]["examples"],
        "models": [
            {
                "member": name,
                "asked": report.get("asked", {}).get("speedup"),
                "value": variant["metric"]["value"],
                "drop": variant["metric_drop"],
                "speedup": variant["speedup"][0],
                "selection_metric": report["selection_metric"],
                "divergence": report.get("divergence"),
                "recovered": report.get("recovered"),
            }
            for name, report in members.items()
            if (variant := results["variants"][f"{name}_fp32"])
        ],
        "seconds": {one["id"]: one["seconds"] for one in results["stages"]},
        "load": results["environment"]["load"],
    }


def table(state: Json) -> str:
    """A row a model: how fast it is, what it scores and what it loses."""
    lines = [
        "| cell | model | speedup | metric | drop, points (95 %) | divergence |",
        "|---|---|---|---|---|---|",
    ]
    for name, cell in state["cells"].items():
        for one in cell["models"]:
            low, high = (100 * end for end in one["drop"]["ci95"])
            least = [one[key] for key in ("divergence", "recovered") if one[key] is not None]
            columns = [
                name,
                one["member"],
                speedup_text(one["speedup"]),
                f"{cell['metric']} {fixed(100 * one['value'])}",
                f"{fixed(100 * one['drop']['value'])} ({fixed(low)} to {fixed(high)})",
                f"{min(least):.4f}" if least else "",
            ]
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Which layers to drop: every strategy for one, two and three layers of MiniLM, and the greedy search in both forms.

    python bench/layers.py --task mrpc --model FOLDER --train train.tsv --validation dev.tsv --budget 240
    python -m bench.layers_table                        # what was measured, and what it shows
    python -m bench.layers_table --plot bench/results/layers.svg

For every task and seed first each strategy chooses (measures see the pretrained model, `metric` the fine-tuned one,
the searches train as they do in a recipe), then every set of layers that any of them chose is dropped from the
pretrained model, fine-tuned and exported, once: strategies that agree share it. Metrics are computed by running the
exported file on the whole validation split. At last models of all sizes are timed together, once, whatever the task:
layers are alike. Every cell is saved as it is made; what the budget ends goes on with the next call.
"""

import argparse
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from compressor.benchmark.harness import measure
from compressor.benchmark.machine import fingerprint, machine_key
from compressor.benchmark.schema import Cell
from compressor.files import read_json, write_json, write_text

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "bench" / "results" / "layers.json"
COUNTS, DENSE = (1, 2, 3), "none"
THREADS, LENGTHS = 2, (128, 32)
TASKS: dict[str, Json] = {
    "mrpc": {"metric": "f1", "rows": None, "epochs": 3},
    "sst2": {"metric": "accuracy", "rows": 8000, "epochs": 1},
}
"""What a task is scored by, its training rows (the selection split among them), and how long it trains."""
TRAINING = {"learning_rate": 5.0e-5, "batch_size": 32}
SELECTION = 0.15
PLACES = ("top", "bottom", "even-alternate", "odd-alternate", "symmetric")
MEASURES = ("contribution", "weight", "block-influence", "angular", "metric")
ONE_SHOT = (*PLACES, *MEASURES)
SEARCHES = ("greedy screened", "greedy full")
SLOWEST = {"chosen": 60.0, "trained": 60.0, "timed": 120.0}
"""Seconds that a step should have left to begin at all."""


def main() -> None:
    options = arguments()
    state = load(options.output)
    end = time.monotonic() + 60 * options.budget
    for kind, name, do in steps(options, state):
        left = end - time.monotonic()
        if left < SLOWEST[kind] or (made := do(left)) is None:
            break
        state[kind][name] = made
        write_json(options.output, state)
        print(kind, name, flush=True)
    print("missing:", ", ".join(f"{kind} {name}" for kind, name, _ in steps(options, state)) or "nothing")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="mrpc")
    parser.add_argument("--model", required=True, help="folder of the pretrained MiniLM")
    parser.add_argument("--train", required=True, help="training file")
    parser.add_argument("--validation", required=True, help="validation file; it decides about nothing")
    parser.add_argument("--rows", type=int, help="training rows; by default the task's")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--budget", type=float, metavar="MINUTES", default=120.0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "layers")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


def load(path: Path) -> Json:
    """What was made before, or a fresh start."""
    if path.is_file():
        found: Json = read_json(path)
        return found
    return {"machine": fingerprint(), "tasks": {}, "chosen": {}, "trained": {}, "timed": {}}


Step = tuple[str, str, Callable[[float], Json | None]]
"""Kind and name of what is to be made, and how, within so many seconds; `None` if they end before."""


def steps(options: argparse.Namespace, state: Json) -> Iterator[Step]:
    """What is missing, in order, seeing what is made meanwhile; the cheap before the dear, seed by seed."""
    for seed in options.seeds:
        run = f"{options.task} {seed}"
        for strategy in (*ONE_SHOT, *SEARCHES):
            if f"{run} {strategy}" not in state["chosen"]:
                yield "chosen", f"{run} {strategy}", partial(choose, options, seed, strategy)
        for gone in wanted(state, run):
            if f"{run} {gone}" not in state["trained"]:
                yield "trained", f"{run} {gone}", partial(train, options, state, seed, gone)
    machine = machine_key(fingerprint())[:12]
    if machine not in state["timed"] and complete_sizes(options):
        yield "timed", machine, partial(time_sizes, options)


def wanted(state: Json, run: str) -> list[str]:
    """The sets of layers that any strategy chose in this run, and none dropped, which all are compared with."""
    chosen = [row["sets"] for name, row in state["chosen"].items() if name.startswith(f"{run} ")]
    return [DENSE, *sorted({gone for sets in chosen for gone in sets.values()}, key=lambda s: (len(s), s))]


# The recipes


def recipe(options: argparse.Namespace, seed: int, prune: Json) -> Json:
    """The chain with this `prune`; all recipes of a task and seed share a folder, and so the dense model."""
    task = TASKS[options.task]
    training = {"epochs": task["epochs"], "precision": options.precision, **TRAINING}
    return {
        "name": f"layers-{options.task}",
        "model": options.model,
        "task": {
            "type": "text-classification",
            "dataset": {"train": options.train, "validation": options.validation},
            "metric": task["metric"],
            "max_length": 128,
            "selection": {"fraction": SELECTION},
            "limit": {"train": options.rows or task["rows"]},
        },
        "seed": seed,
        "stages": [
            {"finetune": {"id": "dense", **training}},
            {"prune": prune},
            {"slice": {}},
            {"finetune": training},
            {"export": {}},
        ],
    }


def pruning(task: str, strategy: str, precision: str = "fp32") -> Json:
    """The `prune` stage by which a strategy chooses; ids of their own, so that a search is not disturbed."""
    kind, _, search = strategy.partition(" ")
    if search:
        keys = {
            "method": "greedy",
            "from": "model",
            "search": search,
            "epochs": TASKS[task]["epochs"],
            "precision": precision,
            **TRAINING,
        }
    else:
        keys = {"method": "layer-drop", "strategy": kind, "from": "dense" if kind == "metric" else "model"}
    counts = [2] if strategy == "symmetric" else list(COUNTS)
    return keys | {"id": strategy.replace(" ", "-"), "drop": counts if len(counts) > 1 else counts[0]}


# Making cells


def choose(options: argparse.Namespace, seed: int, strategy: str, seconds: float) -> Json | None:
    """The layers that a strategy drops, by how many, and what finding them took."""
    keys = pruning(options.task, strategy, options.precision)
    output = run(options, seed, keys, partial(until, stage=keys["id"]), seconds)
    if output is None:
        return None
    record = read_json(output / keys["id"] / "stage.json")
    members = list(record["info"]["members"].values())
    rows = read_json(output / "rows.json")["train"]
    epochs = members[0].get("epochs", 0.0)
    return {
        "sets": {str(len(row["dropped"])): name_of(row["dropped"]) for row in members},
        "epochs": epochs,
        "examples": round(epochs * rows),
        "minutes": None
        if interrupted(output.with_name(f"{keys['id']}.yaml")).exists()
        else record["seconds"] / 60,
        "command": public_command(options),
    }


def train(options: argparse.Namespace, state: Json, seed: int, gone: str, seconds: float) -> Json | None:
    """The metric of the exported model without these layers, fine-tuned, and its predictions, a digit an example."""
    layers = [] if gone == DENSE else [int(layer) for layer in gone.split("-")]
    keys = {"method": "layer-drop", "strategy": "explicit", "layers": layers or [0], "from": "model"}
    node = "export/pruned" if layers else "export/dense"
    output = run(options, seed, keys, partial(through, node=node, size=len(layers)), seconds)
    if output is None:
        return None
    scored = read_json(output / "scored.json")
    state["tasks"][options.task] = {
        "metric": TASKS[options.task]["metric"],
        "reference": scored.pop("reference"),
        "rows": read_json(output / "rows.json"),
    }
    return scored


def run(
    options: argparse.Namespace, seed: int, prune: Json, do: Callable[..., None], seconds: float
) -> Path | None:
    """`do(recipe file, folder of the run, folder for graphs)` in a process that ends with the time, resumable."""
    folder = options.runs / options.task / str(seed)
    path = folder / f"{prune.get('id', 'explicit')}.yaml"
    write_text(path, yaml.safe_dump(recipe(options, seed, prune), sort_keys=False))
    process = multiprocessing.get_context("spawn").Process(
        target=do, args=(path, folder / "run", options.runs)
    )
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.terminate()
        process.join()
        interrupted(path).touch()
        return None
    if process.exitcode:
        raise SystemExit(f"{path} failed")
    return folder / "run"


def interrupted(path: Path) -> Path:
    """Is there where a recipe's run was broken off once: then its last part tells nothing of its time."""
    return path.with_suffix(".interrupted")


def until(path: Path, output: Path, graphs: Path, stage: str) -> None:
    """Run a recipe's stages up to `stage`, and store how many rows there are."""
    from compressor.log import quiet_libraries

    quiet_libraries()
    from compressor.display import Display
    from compressor.pipeline import locked, run_stage
    from compressor.project import Project
    from compressor.recipe import load_recipe

    project = Project(load_recipe(path), output, Display(quiet=True))
    with locked(output):
        examples = project.data.task.examples
        rows = {name: len(getattr(examples, name)) for name in ("train", "selection", "validation")}
        write_json(output / "rows.json", rows)
        for name in upstream(project.chain, stage):
            run_stage(project, project.chain.node(name))


def upstream(chain: Any, stage: str) -> list[str]:
    """The nodes that `stage` needs, itself last."""
    node = chain.node(stage)
    names = [name for source in node.inputs for name in upstream(chain, source)]
    return list(dict.fromkeys([*names, node.name]))


def through(path: Path, output: Path, graphs: Path, node: str, size: int) -> None:
    """Run a recipe's stages up to an export and score it; a graph of every size is kept for `time_sizes`."""
    until(path, output, graphs, node)
    from compressor.project import Project
    from compressor.recipe import load_recipe
    from compressor.stages.evaluate import evaluate_onnx
    from compressor.stages.export import MODEL_FILE

    project = Project(load_recipe(path), output)
    start = time.monotonic()
    _, rows = evaluate_onnx(project.data, output / node, lambda *_: None)
    labels = sorted(rows["reference"].unique())
    digits = {
        column: "".join(str(labels.index(label)) for label in rows[column])
        for column in ("reference", "prediction")
    }
    metrics = project.data.task.score(rows)
    stage = read_json(output / project.chain.node(node).inputs[0] / "stage.json")
    minutes = {"training": stage["seconds"] / 60, "evaluation": (time.monotonic() - start) / 60}
    write_json(output / "scored.json", {**digits, "metrics": metrics, "minutes": minutes})
    kept = graph(graphs, size)
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(output / node / MODEL_FILE, kept)


# Timing


def graph(runs: Path, size: int) -> Path:
    return runs / "graphs" / f"drop{size}.onnx"


def complete_sizes(options: argparse.Namespace) -> bool:
    return all(graph(options.runs, size).is_file() for size in (0, *COUNTS))


def time_sizes(options: argparse.Namespace, seconds: float) -> Json:
    """Latency and speedup of every size, all in turns in the same fresh processes."""
    files = {f"drop{size}": graph(options.runs, size) for size in (0, *COUNTS)}
    cells = [Cell("cpu", THREADS, 1, length) for length in LENGTHS]
    measured = measure(files, cells, reference="drop0")
    return {
        "latency": measured.latency,
        "speedup": measured.speedup,
        "conditions": measured.conditions,
        "environment": {key: fingerprint()[key] for key in ("cpu", "cores", "load", "versions")},
    }


def name_of(layers: Sequence[int]) -> str:
    return "-".join(str(layer) for layer in sorted(layers))


def public_command(options: argparse.Namespace) -> str:
    """The command without anybody's folders."""
    rows = f" --rows {options.rows}" if options.rows else ""
    seeds = " ".join(str(seed) for seed in options.seeds)
    precision = "" if options.precision == "fp32" else f" --precision {options.precision}"
    data = "--model .../minilm-l6-h384 --train ... --validation ..."
    return f"python bench/layers.py --task {options.task}{rows}{precision} --seeds {seeds} {data}"


if __name__ == "__main__":
    main()

"""CoFi of MiniLM from 60 to 95 % sparsity, one ladder, and dropped layers that were trained for as long.

    python -m bench.cofi --task sst2 --model FOLDER --train train.tsv --validation dev.tsv --budget 120
    python -m bench.cofi --table
    python -m bench.cofi --plot bench/results/cofi.svg

The ladder is one run of `recipes/minilm_<task>_cofi.yaml` with several targets; each member's minutes are its share
of the gates' training and its own recovery. Then layers are dropped and the rest fine-tuned with the same teacher and
losses, for about as many minutes. All share one folder and so the teacher. The plot also shows block pruning, from
`block_pruning.json`.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import runs
from bench.plot import save_plot
from bench.runs import Json
from compressor.files import write_json

NAME = "cofi"
SPARSITIES = {"sst2": (0.6, 0.8, 0.9, 0.95)}
DROPS = (3, 4, 5)
LAYERS = 6


def main() -> None:
    parser = runs.arguments(NAME, __doc__, SPARSITIES)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw what was measured")
    options = parser.parse_args()
    state = runs.state_of(options.output)
    if options.plot:
        others = runs.state_of(runs.RESULTS / "block_pruning.json")
        save_plot(*curves(state, others, options.task), options.plot)
        return
    if options.table:
        sys.stdout.write(runs.table(state) + "\n")
        return
    end = time.monotonic() + 60 * options.budget
    for drop in lacking(state, options.task):
        recipe = ladder(options) if drop is None else dropping(options, state, drop)
        results = runs.results_of(recipe, options.runs / options.task / "run", end - time.monotonic())
        if results is None:
            break
        made = members(results) if drop is None else {f"drop {drop}": "pruned"}
        for member, variant in made.items():
            state["cells"][f"{options.task} {member}"] = {
                "command": runs.on_minilm(NAME, options),
                "task": options.task,
                "kind": member,
                **runs.row(results, variant),
                "minutes": trained(results, drop, variant, len(made)),
            }
        if drop is None:
            epochs = recipe["stages"][0]["finetune"]["epochs"]
            minutes = runs.minutes(results, "teacher")["teacher"]
            state.setdefault("epoch_minutes", {})[options.task] = minutes / epochs
        write_json(options.output, state)
    missing = ["ladder" if drop is None else f"drop {drop}" for drop in lacking(state, options.task)]
    print("missing:", ", ".join(missing) or "nothing")


def curves(state: Json, others: Json, task: str) -> tuple[Any, str, str, str]:
    """What to plot of a task: speedup of the fp32 file and points lost, by CoFi, by dropped layers, by blocks."""
    mine = [cell for cell in state["cells"].values() if cell["task"] == task]
    kinds = {
        "CoFi": [cell for cell in mine if "sparsity" in cell["kind"]],
        "layers dropped": [cell for cell in mine if "drop" in cell["kind"]],
        "block pruning": [
            cell for cell in others["cells"].values() if (cell["task"], cell["kind"]) == (task, "hybrid")
        ],
    }
    series = {
        f"{name} ({minutes_text(cells)})": [(cell["speedup"]["fp32"][0], lost(cell)) for cell in cells]
        for name, cells in kinds.items()
        if cells
    }
    metric, dense = mine[0]["metric"], 100 * mine[0]["dense"]
    return series, f"{task}, {metric} {dense:.1f} with all", "times faster, fp32, 128 tokens", "points lost"


def lost(cell: Json) -> Json:
    """The metric's drop in points."""
    drop = cell["metric_drop"]["fp32"]
    return {"value": 100 * drop["value"], "ci95": [100 * end for end in drop["ci95"]]}


def minutes_text(cells: list[Json]) -> str:
    """`4 to 6 min each`."""
    minutes = sorted(round(sum(cell["minutes"].values())) for cell in cells)
    return f"{minutes[0]} to {minutes[-1]} min each"


def lacking(state: Json, task: str) -> Iterator[int | None]:
    """The ladder (None) and the numbers of dropped layers that are not measured."""
    if any(f"{task} {member}" not in state["cells"] for member in map(named, SPARSITIES[task])):
        yield None
    yield from (drop for drop in DROPS if f"{task} drop {drop}" not in state["cells"])


def named(sparsity: float) -> str:
    return f"sparsity {sparsity:g}"


def members(results: Json) -> dict[str, str]:
    """Variants of the ladder by the sparsity aimed at."""
    found = sorted(name.removesuffix("_fp32") for name in results["variants"] if name.endswith("_fp32"))
    asked = {named(s): f"s{100 * s:g}" for each in SPARSITIES.values() for s in each}
    single = {asked_for: "pruned" for asked_for in asked if found == ["dense", "pruned"]}
    return {name: variant for name, variant in (single or asked).items() if variant in found}


def trained(results: Json, drop: int | None, variant: str, shares: int) -> dict[str, float]:
    """Minutes that a member's own training took, by stage; a ladder's gates are shared evenly."""
    if drop is not None:
        return runs.minutes(results, f"drop-{drop}")
    found = runs.minutes(results, "gates", "recover")
    own = {name: value for name, value in found.items() if name.endswith(f"/{variant}") or "/" not in name}
    return {name: value / shares if name == "gates" else value for name, value in own.items()}


def ladder(options: argparse.Namespace) -> Json:
    """The shipped recipe with all targets; its gates learn as much faster as there is less time for each."""
    made = runs.shipped(f"minilm_{options.task}_cofi", options)
    made["target"] = {"sparsity": list(SPARSITIES[options.task])}
    teacher, prune, cut, recover, *rest = made["stages"]
    prune["prune"]["gate_learning_rate"] *= len(SPARSITIES[options.task])
    prune["prune"]["id"], cut["slice"]["id"], recover["finetune"]["id"] = "gates", "cut", "recover"
    return made | {"stages": [teacher, prune, cut, recover, *rest]}


def dropping(options: argparse.Namespace, state: Json, drop: int) -> Json:
    """Fewer layers, trained as CoFi's members are, for as many minutes as they took on average."""
    made = runs.shipped(f"minilm_{options.task}_cofi", options)
    del made["target"]
    teacher, _, _, recover, *rest = made["stages"]
    cells = [c for c in state["cells"].values() if c["task"] == options.task and "sparsity" in c["kind"]]
    wanted = sum(sum(cell["minutes"].values()) for cell in cells) / len(cells)
    each = state["epoch_minutes"][options.task] * (LAYERS - drop) / LAYERS
    keys = recover["finetune"] | {"id": f"drop-{drop}", "epochs": round(wanted / each, 1)}
    stages = [
        teacher,
        {"prune": {"method": "layer-drop", "strategy": "top", "drop": drop, "id": f"drop-{drop}-choice"}},
        {"slice": {"id": f"drop-{drop}-slice"}},
        {"finetune": keys},
    ]
    return made | {"stages": [*stages, *rest]}


if __name__ == "__main__":
    main()

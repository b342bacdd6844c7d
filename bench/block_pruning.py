"""Block movement pruning of MiniLM: several strengths of its regulariser, plain, filled and struct, and magnitude.

    python -m bench.block_pruning --task sst2 --model FOLDER --train train.tsv --validation dev.tsv --budget 120
    python -m bench.block_pruning --kinds hybrid ...    # only these
    python -m bench.block_pruning --table

Every cell is a run of `recipes/minilm_<task>_block.yaml` with other pruning keys. All runs of a task share a folder
and so the teacher; `plain` shares its pruning with `hybrid`, and only leaves out the filling. `magnitude` prunes as
many of the same units (heads and neurons, the same share in every layer) as `hybrid` did, by the size of their
weights, in the same number of steps with the same teacher and filling: what the scores are worth. A run that the
budget ends goes on with the next call. Trainings take hours: minutes of each are in the result.
"""

import argparse
import sys
import time
from collections.abc import Collection, Iterator

from bench import runs
from bench.runs import Json
from compressor.files import write_json

NAME = "block_pruning"
STRENGTHS = {"sst2": (10, 5, 20, 40), "squad": (10, 5, 20)}
KINDS: dict[str, Json] = {
    "hybrid": {},
    "plain": {},
    "magnitude": {"variant": "struct", "mask": "magnitude", "joint_heads": True},
    # Twelve scores a matrix feel the penalty twelve times as much as the 144 blocks of hybrid do.
    "struct": {"variant": "struct", "attention_regularization": 0.1},
}
DENSITIES = {"non-zero": "nonzero_density", "sliced": "sliced_density"}
SCORED = ("regularization", "ffn_regularization", "score_learning_rate")
"""Keys that mean nothing where nothing is learned."""


def main() -> None:
    parser = runs.arguments(NAME, __doc__, STRENGTHS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    options = parser.parse_args()
    state = runs.state_of(options.output)
    if options.table:
        sys.stdout.write(runs.table(state, ["regularization"], DENSITIES) + "\n")
        return
    end = time.monotonic() + 60 * options.budget
    for kind, strength in lacking(state, options.task, options.kinds):
        name = f"{options.task} {kind} {strength}"
        results = run(options, state, kind, strength, end - time.monotonic())
        if results is None:
            break
        state["cells"][name] = row(results, options, kind, strength)
        write_json(options.output, state)
    missing = [f"{kind} {strength}" for kind, strength in lacking(state, options.task, KINDS)]
    print("missing:", ", ".join(missing) or "nothing")


def lacking(state: Json, task: str, kinds: Collection[str]) -> Iterator[tuple[str, int]]:
    """Cells (kind, strength) not yet measured, all kinds of a strength before the next."""
    for strength in STRENGTHS[task]:
        for kind in kinds:
            if f"{task} {kind} {strength}" not in state["cells"]:
                yield kind, strength


def run(options: argparse.Namespace, state: Json, kind: str, strength: int, seconds: float) -> Json | None:
    """The results of a cell's run; `None` if the time ends before it does."""
    cell = recipe(options, state, kind, strength)
    return runs.results_of(cell, options.runs / options.task / "run", seconds)


def recipe(options: argparse.Namespace, state: Json, kind: str, strength: int) -> Json:
    """The shipped recipe with this cell's pruning; stages of their own names, the teacher the same for all."""
    made = runs.shipped(f"minilm_{options.task}_block", options)
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
    return {
        "command": runs.on_minilm(NAME, options),
        "task": options.task,
        "kind": kind,
        "regularization": strength,
        **runs.row(results, "pruned"),
        "minutes": runs.minutes(results, "hybrid", "struct", "magnitude"),
    }


if __name__ == "__main__":
    main()

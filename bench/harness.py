"""Proof of the latency harness: it compares a model with a copy of itself, whose true speedup is 1.

    python bench/harness.py --budget 60

Beside a process that keeps one core busy (a hog), and on a quiet machine, it reports how many of the 95 % intervals
contain 1.0 and how wide they are; also what the harness itself costs a run, and how processes differ. Every
comparison is saved as it is made, with the machine it was made on; the same command goes on where the last one
stopped, and a second machine adds to the first one's. A quiet machine has no other process above 5 % of a core and at
most 1 % taken by other virtual machines: else the quiet part is "not measured".
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.benchmark.harness import DEFAULTS, measure
from compressor.benchmark.machine import busy, disturbance, fingerprint, machine_key
from compressor.benchmark.process import LEAD
from compressor.benchmark.schema import Cell
from compressor.benchmark.statistics import trimmed_mean
from compressor.benchmark.worker import time_rounds
from compressor.files import read_json, write_json

CELL = Cell("cpu", 2, 1, 128)
SECONDS, PROCESSES = DEFAULTS.seconds, DEFAULTS.processes
WANTED = {"hog": 100, "quiet": 25}
WIDEST = {"hog": 0.08, "quiet": 0.03}
COVERAGE = 0.9
"""What passes: no half-width above `WIDEST`, at least this share of intervals that contain 1.0."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, required=True, metavar="MINUTES")
    parser.add_argument("--output", type=Path, default=Path("bench/results/harness.json"))
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.budget
    state = load(arguments.output)
    state["overhead_us"] = overhead_us()
    slowest = 30.0
    with tempfile.TemporaryDirectory() as folder:
        models = {name: Path(folder) / f"{name}.onnx" for name in ("model", "copy")}
        for path in models.values():
            onnx.save(bert_like(), path)
        for kind, seed in missing(state):
            if time.monotonic() + slowest > end:
                break
            start = time.monotonic()
            made = {"machine_key": state["machine_key"], **compare(models, kind, seed)}
            slowest = max(slowest, time.monotonic() - start)
            state["comparisons"].append(made)
            save(state, arguments.output)
            print(kind, seed, made["ci95"], made["disturbance"] or "", flush=True)
    save(state, arguments.output)
    print(*(f"{kind}: {facts}" for kind, facts in state["summary"].items()), sep="\n")


def compare(models: dict[str, Path], kind: str, seed: int) -> dict[str, Any]:
    """One comparison of the model with its copy; `disturbance` says what else ran that should not have."""
    made: dict[str, Any] = {"kind": kind, "seed": seed, "ci95": None, "disturbance": disturbance(busy())}
    if made["disturbance"] and kind == "quiet":
        return made
    with hog(kind == "hog") as pid:
        measured = measure(
            models, [CELL], reference="model", seconds=SECONDS, processes=PROCESSES, seed=1000 * seed
        )
    speedup, latency, beside = (
        measured.speedup["copy"][0],
        measured.latency["model"][0],
        measured.conditions[0]["beside"],
    )
    low, high = speedup["ci95"]
    made |= {
        "value": speedup["value"],
        "ci95": [low, high],
        "half_width": (high - low) / 2 / speedup["value"],
        "p50_ms": latency["p50_ms"],
        "cv": latency["cv"],
        "process_log_ratios": [
            float(trimmed_mean(np.log(rounds[:, 0] / rounds[:, 1]))) for rounds in measured.samples[0].ms
        ],
        "beside": beside,
        "disturbance": disturbance(without(beside, pid)),
    }
    return made


@contextmanager
def hog(wanted: bool) -> Iterator[int]:
    """A process that keeps one core busy, by its id; no process and 0 unless `wanted`."""
    if not wanted:
        yield 0
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def without(beside: dict[str, Any], pid: int) -> dict[str, Any]:
    """What else ran beside a comparison, leaving out one process."""
    rest = [process for process in beside["processes"] if process["pid"] != pid]
    its_cores = sum(process["cores"] for process in beside["processes"] if process["pid"] == pid)
    return {**beside, "processes": rest, "other_cores": beside["other_cores"] - its_cores}


def missing(state: dict[str, Any]) -> list[tuple[str, int]]:
    """What is still to be measured, the quiet ones evenly between the others. No seed is used twice."""
    plan = []
    for kind, wanted in WANTED.items():
        tried = sum(made["kind"] == kind for made in state["comparisons"])
        lacking = wanted - len(counted(state["comparisons"], kind))
        plan += [((number + 0.5) / lacking, kind, tried + number) for number in range(lacking)]
    return [(kind, seed) for _, kind, seed in sorted(plan)]


def counted(comparisons: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The comparisons of a kind that were made as that kind wants them."""
    made = [one for one in comparisons if one["kind"] == kind and one["ci95"]]
    return [one for one in made if kind == "hog" or one["disturbance"] is None]


def load(path: Path) -> dict[str, Any]:
    """What earlier calls measured with the same settings, on any machine, or a fresh start."""
    machine = fingerprint()
    key = machine_key(machine)
    settings = {**CELL.keys(), "seconds": SECONDS, "processes": PROCESSES, "lead": LEAD}
    earlier = read_json(path) if path.is_file() else {}
    if earlier.get("settings") != settings:
        earlier = {"machines": {}, "comparisons": []}
    return {
        "command": "python " + " ".join(sys.argv),
        "machine_key": key,
        "machines": {**earlier["machines"], key: machine},
        "settings": settings,
        "comparisons": earlier["comparisons"],
    }


def save(state: dict[str, Any], path: Path) -> None:
    state["summary"] = {kind: summary(state["comparisons"], kind) for kind in WANTED}
    state["by_machine"] = {
        key: {
            kind: summary([one for one in state["comparisons"] if one["machine_key"] == key], kind)
            for kind in WANTED
        }
        for key in state["machines"]
    }
    state["missing"] = {kind: WANTED[kind] - len(counted(state["comparisons"], kind)) for kind in WANTED}
    write_json(path, state)


def summary(comparisons: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The comparisons of a kind held against the bars; `disturbed`: how many had more beside them than intended."""
    made = [one for one in comparisons if one["kind"] == kind]
    disturbed = sum(one["disturbance"] is not None for one in made)
    fit = counted(comparisons, kind)
    if not fit:
        return {"disturbed": disturbed, "not measured": made[-1]["disturbance"] if made else "out of budget"}
    widths = [one["half_width"] for one in fit]
    coverage = float(np.mean([covers_one(one) for one in fit]))
    variances = [np.var(one["process_log_ratios"], ddof=1) for one in fit]
    return {
        "disturbed": disturbed,
        "comparisons": len(fit),
        "covering_one": coverage,
        "half_width_median": float(np.median(widths)),
        "half_width_max": max(widths),
        "passed": coverage >= COVERAGE and max(widths) <= WIDEST[kind],
        "spread_between_processes": float(np.sqrt(np.mean(variances))),
    }


def covers_one(made: dict[str, Any]) -> bool:
    return bool(made["ci95"][0] <= 1.0 <= made["ci95"][1])


def overhead_us() -> float:
    """Microseconds that timing adds to a run: the median time of a call that does nothing."""
    times, _ = time_rounds([[lambda: None] * 2], seconds=1.0, rng=np.random.default_rng(0))
    return float(1e3 * np.median(times))


def bert_like(
    layers: int = 4, width: int = 256, heads: int = 4, ffn: int = 1024, vocabulary: int = 1000
) -> Any:
    """A post-norm encoder with random weights, node by node: about 5 ms at 128 tokens on two cores."""
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    constants: list[Any] = []

    def tensor(value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, f"c{len(constants)}"))
        return str(constants[-1].name)

    def weight(*shape: int, scale: float = 0.05) -> str:
        return tensor((rng.standard_normal(shape) * scale).astype(np.float32))

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def linear(x: str, inner: int, outer: int) -> str:
        return op("Add", op("MatMul", x, weight(inner, outer)), weight(outer))

    def norm(x: str) -> str:
        return op("LayerNormalization", x, weight(width, scale=1.0), weight(width), axis=-1)

    split, joined = tensor(np.array([0, 0, heads, width // heads])), tensor(np.array([0, 0, width]))
    half, one, root = (tensor(np.float32(value)) for value in (0.5, 1.0, 0.5**0.5))
    scale, far = tensor(np.float32((width // heads) ** -0.5)), tensor(np.float32(-1e4))
    x = op("Gather", weight(vocabulary, width), "input_ids")
    mask = op("Unsqueeze", op("Cast", "attention_mask", to=TensorProto.FLOAT), tensor(np.array([1, 2])))
    mask = op("Mul", op("Sub", one, mask), far)
    for _ in range(layers):
        q, k, v = (op("Reshape", linear(x, width, width), split) for _ in range(3))
        q, k, v = (
            op("Transpose", y, perm=p) for y, p in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )
        attention = op("Softmax", op("Add", op("Mul", op("MatMul", q, k), scale), mask), axis=-1)
        context = op("Reshape", op("Transpose", op("MatMul", attention, v), perm=[0, 2, 1, 3]), joined)
        x = norm(op("Add", x, linear(context, width, width)))
        inner = linear(x, width, ffn)
        gelu = op("Mul", op("Mul", inner, half), op("Add", op("Erf", op("Mul", inner, root)), one))
        x = norm(op("Add", x, linear(gelu, ffn, width)))
    op("Identity", x)
    names = ("input_ids", "attention_mask")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    outputs = [
        helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["batch", "sequence", width])
    ]
    graph = helper.make_graph(nodes, "bert_like", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


if __name__ == "__main__":
    main()

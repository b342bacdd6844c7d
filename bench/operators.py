"""Where the time of the published headline network goes: milliseconds by operator, dense beside pruned.

    python bench/operators.py --budget 10

onnxruntime's own profile of single-example runs, fp32 and int8. Profiling costs time itself: compare shares and
differences, not totals, with the timings of `bench/paper_architectures.py`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import paper_architectures as papers

from compressor.benchmark.machine import fingerprint
from compressor.files import read_json, write_json

NETWORK = "squadv1-base-filled-87.71"
LENGTHS = (128, 384)
WARM, RUNS = 3, 15


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=10.0, metavar="MINUTES")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("bench/results/operators.json"))
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.budget
    data = read_json(papers.DATA)
    network = next(n for n in data["networks"] if n["name"] == NETWORK)
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        models = papers.files(data, network, Path(folder))
        for length in LENGTHS:
            for name, path in models.items():
                if time.monotonic() < end:
                    found = operators(path, length, options.threads, Path(folder))
                    cells.append({"variant": name, "sequence_length": length, "ms": found})
    made = {"command": " ".join(["python", *sys.argv]), "network": NETWORK, "threads": options.threads}
    write_json(options.output, made | {"machine": fingerprint(), "cells": cells})
    for cell in cells:
        shares = ", ".join(f"{name} {ms:.1f}" for name, ms in list(cell["ms"].items())[:6])
        print(f"{cell['variant']} {cell['sequence_length']}: {sum(cell['ms'].values()):.1f} ms: {shares}")


def operators(path: Path, length: int, threads: int, folder: Path) -> dict[str, float]:
    """Median milliseconds of a run by operator, the most expensive first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dice = np.random.default_rng(0)
    feed = {
        node.name: dice.integers(1000, 20000, (1, length))
        if node.name == "input_ids"
        else np.ones((1, length), int)
        for node in session.get_inputs()
    }
    feed = {name: values if name != "token_type_ids" else 0 * values for name, values in feed.items()}
    for _ in range(WARM + RUNS):
        session.run(None, feed)
    log = Path(session.end_profiling())
    runs: list[dict[str, float]] = [defaultdict(float)]
    for event in json.loads(log.read_text(encoding="utf-8")):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[-1][event["args"]["op_name"]] += event["dur"] / 1e3
        elif event["name"] == "model_run":  # written after its nodes
            runs.append(defaultdict(float))
    log.unlink()
    return summed(runs[WARM:-1])


def summed(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians over runs, the largest first."""
    names = {name for run in runs for name in run}
    medians = {name: float(np.median([run.get(name, 0.0) for run in runs])) for name in names}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    main()

"""Where the time of the published headline network goes: milliseconds by operator, dense beside pruned.

    python bench/operators.py --budget 10

onnxruntime's own profile of single-example runs, fp32 and int8. Profiling costs time itself: compare shares and
differences, not totals, with the timings of `bench/paper_architectures.py`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import paper_architectures as papers

from compressor.benchmark.machine import fingerprint
from compressor.benchmark.sessions import open_session, random_inputs
from compressor.files import read_json, write_json
from compressor.onnx.products import profile

NETWORK = "squadv1-base-filled-87.71"
LENGTHS = (128, 384)


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
                    found = operators(path, length, options.threads)
                    cells.append({"variant": name, "sequence_length": length, "ms": found})
    made = {"command": " ".join(["python", *sys.argv]), "network": NETWORK, "threads": options.threads}
    write_json(options.output, made | {"machine": fingerprint(), "cells": cells})
    for cell in cells:
        shares = ", ".join(f"{name} {ms:.1f}" for name, ms in list(cell["ms"].items())[:6])
        print(f"{cell['variant']} {cell['sequence_length']}: {sum(cell['ms'].values()):.1f} ms: {shares}")


def operators(path: Path, length: int, threads: int) -> dict[str, float]:
    """Median milliseconds of a run by operator, the most expensive first."""
    session = open_session(path, "cpu", threads)
    found = profile(path, random_inputs(session, 1, length, seed=0), threads, by_operator=True)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    main()

"""What ran before: a model timed after others, after runs of its own, and alone.

    python -m bench.neighbours

Three encoders of MiniLM's width and falling size are timed in turns without lead-in (each run right after another
model's), in turns as the harness does it, and each in a process of its own, as where it is served alone. The last is
what a server sees; how much longer the others read is reported, with what it does to the speedups.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench.harness import bert_like
from bench.runs import RESULTS, public_command
from compressor.benchmark.harness import measure
from compressor.benchmark.machine import fingerprint
from compressor.benchmark.process import LEAD
from compressor.benchmark.schema import Cell
from compressor.files import write_json

Json = dict[str, Any]
CELL = Cell("cpu", 2, 1, 128)
MODELS = {
    "dense": {"layers": 6, "ffn": 1536},
    "half": {"layers": 3, "ffn": 1536},
    "fifth": {"layers": 2, "ffn": 576},
}
"""Named by the share of the dense layers' weights."""
ROUNDS, SECONDS, PROCESSES = 3, 1.5, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "neighbours.json")
    options = parser.parse_args()
    rounds: list[Json] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in MODELS}
        for name, sizes in MODELS.items():
            onnx.save(bert_like(width=384, heads=12, **sizes), files[name])
        for number in range(ROUNDS):
            alone = {name: times({name: path}, LEAD, number)[name] for name, path in files.items()}
            rounds.append(
                {"alone": alone, "lead": times(files, LEAD, number), "in turns": times(files, 0.0, number)}
            )
    found = {
        "command": public_command("neighbours", "").strip(),
        "machine": fingerprint(),
        "lead_seconds": LEAD,
        "p50_ms": rounds,
        "longer_than_alone": {
            way: {name: mean([one[way][name] / one["alone"][name] - 1 for one in rounds]) for name in MODELS}
            for way in ("lead", "in turns")
        },
        "speedup": {
            way: {name: mean([one[way]["dense"] / one[way][name] for one in rounds]) for name in MODELS}
            for way in ("alone", "lead", "in turns")
        },
    }
    write_json(options.output, found)
    for way, shares in found["longer_than_alone"].items():
        texts = (f"{name} {share:+.0%}" for name, share in shares.items())
        sys.stdout.write(f"{way}: {', '.join(texts)} beside alone; speedups {found['speedup'][way]}\n")


def times(models: dict[str, Path], lead: float, seed: int) -> dict[str, float]:
    """Median milliseconds of each model, timed together."""
    found = measure(
        models,
        [CELL],
        reference=next(iter(models)),
        seconds=SECONDS,
        processes=PROCESSES,
        seed=seed,
        lead=lead,
    )
    return {name: rows[0]["p50_ms"] for name, rows in found.latency.items()}


def mean(values: list[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    main()

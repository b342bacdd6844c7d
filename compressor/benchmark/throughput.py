"""Examples per second of parallel sessions: what a loaded server does, which no single latency tells."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compressor.benchmark.harness import DEFAULTS, Rows, check_possible
from compressor.benchmark.inputs import Shapes
from compressor.benchmark.machine import usable_cores
from compressor.benchmark.process import Job, run_in_fresh_process
from compressor.benchmark.schema import Cell


def measure_throughput(
    models: Mapping[str, Path],
    cell: Cell,
    *,
    sessions: int | None = None,
    seconds: float = DEFAULTS.seconds,
    processes: int = 3,
    seed: int = 0,
    overrides: Shapes | None = None,
) -> Rows:
    """Examples per second of each model with `sessions` sessions side by side (default: they fill the cores).

    Each session runs batches of the cell's size, one after the other, with the cell's threads. A row holds
    the cell, `sessions`, `examples_per_second` (median over fresh processes) and `range` (their least and
    most). Raises UserError as `measure` does.
    """
    check_possible(models, [cell])
    sessions = sessions or max(1, usable_cores() // cell.threads)
    job = Job(
        models=[str(path.resolve()) for path in models.values()],
        provider=cell.provider,
        threads=cell.threads,
        shapes=[(cell.batch_size, int(cell.sequence_length))],
        seconds=seconds,
        seed=seed,
        sessions=sessions,
        overrides=dict(overrides or {}),
    )
    results = [run_in_fresh_process(job.again(process)) for process in range(processes)]
    rates = np.array([result["examples_per_second"] for result in results])
    return {
        name: [
            {
                **cell.keys(),
                "sessions": sessions,
                "examples_per_second": float(np.median(rates[:, column])),
                "range": [float(rates[:, column].min()), float(rates[:, column].max())],
            }
        ]
        for column, name in enumerate(models)
    }

"""Examples per second of parallel sessions: what a loaded server does, which no single latency tells."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from compressor.benchmark.harness import DEFAULTS, Progress, Rows, check_possible
from compressor.benchmark.inputs import Shapes
from compressor.benchmark.process import Job, run_in_fresh_process
from compressor.cell import Cell


def measure_throughput(
    models: Mapping[str, Path],
    cells: Sequence[Cell],
    sessions: int,
    *,
    seconds: float = DEFAULTS.seconds,
    processes: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
    overrides: Shapes | None = None,
) -> Rows:
    """Examples per second of each model with `sessions` sessions side by side, at every cell of one length.

    Each session runs batches of the cell's size, one after the other, with the cell's threads, for `seconds`.
    A row holds the cell, `sessions`, `examples_per_second` (median over fresh processes) and `range` (their
    least and most). Raises UserError as `measure` does.
    """
    check_possible(models, cells)
    rows: Rows = {name: [] for name in models}
    for number, cell in enumerate(cells):
        job = Job(
            models=[str(path.resolve()) for path in models.values()],
            provider=cell.provider,
            threads=cell.threads,
            shapes=[(cell.batch_size, int(cell.sequence_length))],
            seconds=seconds,
            seed=seed,
            sessions=sessions,
            overrides=dict(overrides or {}),
            part=cell.part,
        )
        counted = []
        for process in range(processes):
            if progress:
                text = f"counting {cell}: process {process + 1} of {processes}"
                progress(text, (number + process / processes) / len(cells))
            counted.append(run_in_fresh_process(job.again(process))["examples_per_second"])
        for name, rates in zip(models, np.transpose(counted), strict=True):
            row = {"sessions": sessions, "examples_per_second": float(np.median(rates))}
            rows[name].append({**cell.keys(), **row, "range": [float(rates.min()), float(rates.max())]})
    return rows

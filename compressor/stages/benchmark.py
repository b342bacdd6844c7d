"""Latency of all variants, measured together; kept for this machine and these files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.benchmark.schema import DATA, BenchmarkKeys, Cell
from compressor.files import digest, stored_under, write_json
from compressor.parts import content_of
from compressor.schema import Progress, json_of

VERSION = 4
"""Raised when times are taken in another way: older ones are no longer comparable."""


def measure_latency(
    keys: BenchmarkKeys,
    folders: dict[str, Path],
    reference: str,
    quantized: Mapping[str, str],
    lengths: list[int],
    folder: Path,
    machine: str,
    progress: Progress,
) -> dict[str, Any]:
    """Latency and speedup rows of every variant, and the conditions.

    `quantized` names, for each quantized variant, the same model in fp32: `over_fp32` has its speedup over that.

    Beside the recipe's grid the validation set's real `lengths` are timed (first provider and threads, one
    example at a time). `folder` keeps the result and, in a folder a variant, the raw samples (`raw` in a row names
    the file, relative to the run's folder around it); it is used again only for the same files on the same machine.
    """
    from compressor.benchmark.harness import measure

    contents = {name: content_of(path) for name, path in folders.items()}
    key = digest([VERSION, json_of(keys), machine, lengths, contents])
    stored = folder / "latency.json"
    if done := stored_under(stored, key):
        return done
    cells = keys.cells()
    cells.append(Cell(cells[0].provider, cells[0].threads, 1, DATA, cells[0].part))
    measured = measure(
        folders,
        cells,
        reference=reference,
        seconds=keys.seconds,
        processes=keys.processes,
        progress=progress,
        raw_dir=folder,
        lengths=lengths,
    )
    latency = {
        name: [row | {"raw": f"{folder.name}/{row['raw']}"} for row in rows]
        for name, rows in measured.latency.items()
    }
    result = {
        "key": key,
        "latency": latency,
        "speedup": measured.speedup,
        "over_fp32": {name: measured.speedup_over(fp32)[name] for name, fp32 in quantized.items()},
        "conditions": measured.conditions,
    }
    write_json(stored, result)
    return result

"""The timings of one cell, and the rows of `results.json` that are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.benchmark import statistics
from compressor.cell import Cell
from compressor.files import appearing


@dataclass(frozen=True)
class Samples:
    """All runs of all models in one cell, in milliseconds.

    `ms`: one array a process, [rounds, models], a round holding one run of each model made in turn; `shape`:
    which input shape each round used; `cold_ms`: [processes, models]; `host_ms`: like `ms`, with host copies
    (CUDA only).
    """

    cell: Cell
    models: tuple[str, ...]
    ms: Sequence[np.ndarray]
    shape: Sequence[np.ndarray]
    cold_ms: np.ndarray
    host_ms: Sequence[np.ndarray] | None = None

    def latency(self, model: str, raw: str | None = None) -> dict[str, Any]:
        """The latency row of `model`. No percentile above 90: that would take thousands of runs."""
        times = self._runs(self.ms, model)
        p50 = statistics.median_interval(times)
        row = {
            **self.cell.keys(),
            "p50_ms": p50.value,
            "p50_ci95": [p50.low, p50.high],
            "p90_ms": float(np.exp(np.mean([np.log(np.quantile(runs, 0.9)) for runs in times]))),
            "cv": self.cv(model),
            "runs": sum(map(len, times)),
            "cold_start_ms": float(np.median(self.cold_ms[:, self.models.index(model)])),
            "raw": raw,
        }
        if self.host_ms is not None:
            row["host_p50_ms"] = statistics.median_interval(self._runs(self.host_ms, model)).value
        return row

    def speedup(self, model: str, reference: str) -> dict[str, Any]:
        """The speedup row of `model`: how many times faster it is than `reference`, run by run."""
        columns = [self.models.index(reference), self.models.index(model)]
        ratio = statistics.ratio_interval([rounds[:, columns] for rounds in self.ms])
        return {
            **self.cell.keys(),
            "value": ratio.value,
            "ci95": [ratio.low, ratio.high],
            "noisy": statistics.is_noisy(ratio, self.cv(reference), self.cv(model)),
        }

    def cv(self, model: str) -> float:
        """How the runs of `model` scatter around the median of their process and input shape."""
        runs = zip(self._runs(self.ms, model), self.shape, strict=True)
        return statistics.scatter([statistics.relative(times, shapes) for times, shapes in runs])

    def save(self, model: str, folder: Path) -> str:
        """Write the raw runs of `model` below `folder`; returns the file's path relative to it.

        Arrays, one entry a run: `ms`, `process`, `round`, `shape`. Runs of two models with the same process
        and round were made one after the other. On CUDA also `host_ms`.
        """
        name = f"{model.replace('/', '_')}/{self.cell.slug}.npz"
        lengths = [len(shape) for shape in self.shape]
        arrays = {
            "ms": np.concatenate(self._runs(self.ms, model)),
            "process": np.repeat(np.arange(len(lengths)), lengths),
            "round": np.concatenate([np.arange(length) for length in lengths]),
            "shape": np.concatenate(self.shape),
        }
        if self.host_ms is not None:
            arrays["host_ms"] = np.concatenate(self._runs(self.host_ms, model))
        with appearing(folder / name) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return name

    def _runs(self, processes: Sequence[np.ndarray], model: str) -> list[np.ndarray]:
        return [rounds[:, self.models.index(model)] for rounds in processes]

"""What a pruning method asks of the clock: models timed in the cell that its target means, and latency tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.files import read_json, write_json
from compressor.pruning.context import Timing
from compressor.pruning.target import At, Precision, Target
from compressor.stages.base import Work
from compressor.stages.benchmark import VERSION
from compressor.stages.timing import Models, export_as, time_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.benchmark.latency_table import LatencyTable
    from compressor.cell import Cell

SECONDS, PROCESSES = 1.0, 4
"""Timed seconds in each process, and processes, of a model that is only a step on the way."""
DISTURBED, TRIES = 0.08, 2
"""How much longer than at its best the dense model takes where something else has its share of the machine all the
time, which slows small models by more; and how many measurements are made at most to wait for a better moment.
"""


@dataclass
class Clock:
    """Times are stored before they are used, so that a run that goes on decides the same."""

    work: Work
    target: Target | None

    def latency(self, models: Models) -> dict[str, float]:
        """Milliseconds by name."""
        stored = self.work.kept("latency", *self._where, list(models)) / "latency.json"
        self.work.once(stored, lambda path: write_json(path, time_models(self.work, self._cell, models)))
        times: dict[str, float] = read_json(stored)["p50_ms"]
        return times

    def latency_table(self, precision: Precision) -> LatencyTable:
        """The table of the source's encoder."""
        from compressor.benchmark.latency_table import LatencyTable
        from compressor.models.checkpoint import read_config
        from compressor.stages.latency import latency_table

        def make(path: Path) -> None:
            config = read_config(self.work.source)
            table = latency_table(config, self._cell, precision, progress=self.work.progress)
            write_json(path, table.to_json())

        stored = self.work.kept("latency-table", *self._where, precision) / "table.json"
        self.work.once(stored, make)
        return LatencyTable.from_json(read_json(stored))

    def timing(self, name: str, model: Callable[[], PreTrainedModel], precision: Precision) -> Timing:
        """How fast a model is beside the dense one, in short: what is released is measured again at length.

        A measurement beside which the dense model was slower than it has been is made again.
        """
        keys = self.work.benchmark
        same = self.target is not None and self.target.at.relative_to == "same-precision"
        base: Precision = precision if same else "fp32"

        def measured() -> dict[str, Any]:
            models: Models = {"dense": self._exported_dense(base), "pruned": model}
            return time_models(
                self.work,
                self._cell,
                models,
                {"pruned": precision},
                seconds=min(SECONDS, keys.seconds),
                processes=PROCESSES,
            )

        def make(path: Path) -> None:
            write_json(path, self._undisturbed(measured, base))

        stored = self.work.kept("timing", *self._where, name, base, precision) / "timing.json"
        self.work.once(stored, make)
        times = read_json(stored)
        row = times["speedup"]["pruned"]
        ci95, ms_ci95 = tuple(row["ci95"]), tuple(times["p50_ci95"]["pruned"])
        return Timing(times["p50_ms"]["pruned"], row["value"], ci95, row["noisy"], ms_ci95)

    def _undisturbed(self, measured: Callable[[], dict[str, Any]], base: Precision) -> dict[str, Any]:
        """Of a few measurements the first beside which the dense model took about its best time, else the nearest."""
        best = self.work.kept("dense-time", *self._where, base) / "best.json"
        found: list[dict[str, Any]] = []
        while len(found) < TRIES:
            found.append(measured())
            taken = found[-1]["p50_ms"]["dense"]
            least = min([taken, *([read_json(best)] if best.exists() else [])])
            write_json(best, least)
            if taken <= (1 + DISTURBED) * least:
                break
        return min(found, key=lambda times: times["p50_ms"]["dense"])

    def _exported_dense(self, precision: Precision) -> Path:
        """The run's own model as it came: exported once, as many are timed beside it."""
        from compressor.models import checkpoint

        def make(path: Path) -> None:
            export_as(self.work, checkpoint.load(self.work.baseline), path, precision)

        folder = self.work.scratch / f"dense-{precision}"
        self.work.once(folder, make)
        return folder

    @property
    def _cell(self) -> Cell:
        """The cell that the target means."""
        cell = (self.target.at if self.target else At()).cell(self.work.benchmark.cells())
        assert cell is not None
        return cell

    @property
    def _where(self) -> tuple[Any, ...]:
        """What timings depend on beside the models."""
        from compressor.benchmark.machine import fingerprint, machine_key

        return VERSION, machine_key(fingerprint()), self._cell.keys()

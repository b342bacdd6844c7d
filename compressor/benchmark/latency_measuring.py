"""Measuring a latency table: few widths, timed in stacks of layers, and whole models; for a limited time; stored.

Everything is timed as a multiple of one dense stack that is open in every process: such ratios hold on a machine
whose speed does not. `latency_fit` makes the table of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from compressor.benchmark.encoder_graph import encoder_graph
from compressor.benchmark.harness import Progress, measure
from compressor.benchmark.latency_fit import Timing, fit, missed, refuse_misfit
from compressor.benchmark.latency_plan import REFERENCE, Candidate, groups, plan, reference_of
from compressor.benchmark.latency_setting import Setting
from compressor.benchmark.latency_table import LatencyTable
from compressor.benchmark.statistics import NOISY_WIDTH, Interval
from compressor.cell import Cell
from compressor.files import stored_under, write_json

REPEATS = 2
"""Times that what stayed noisy, and whole models that the table misses, are measured again, while there is time."""
BUDGET, SECONDS, PROCESSES = 180.0, 1.5, 3
"""Seconds a table may take; timed seconds of a group of graphs in each process; processes."""

Convert = Callable[[Path, Path], None]
"""Makes another precision of an fp32 graph: from a file to a file."""
Timer = Callable[[Mapping[str, Path], str], Timing]
"""Times models (name: ONNX file) together, as multiples of the one that is named."""


def harness_timer(cell: Cell, seconds: float = SECONDS, processes: int = PROCESSES) -> Timer:
    """Times with the harness, all models in turns in the same processes.

    No model runs twice in a row: a stack of few layers would stay in the caches, as whole models do not, and its
    times would not add up to theirs.
    """

    def timer(models: Mapping[str, Path], reference: str) -> Timing:
        measured = measure(models, [cell], reference=reference, seconds=seconds, processes=processes, lead=0)
        multiples = {}
        for name, (row,) in measured.speedup.items():
            low, high = row["ci95"]
            multiples[name] = Interval(1 / row["value"], 1 / high, 1 / low)
        reference_ms = measured.latency[reference][0]["p50_ms"]
        return Timing(reference_ms, multiples, measured.conditions[0]["disturbance"])

    return timer


def load_or_measure(
    setting: Setting,
    folders: Sequence[Path],
    timer: Timer,
    convert: Convert | None = None,
    budget: float = BUDGET,
    progress: Progress | None = None,
) -> LatencyTable:
    """The table of `setting` from the first of `folders` that has it, else measured; then it is in all of them.

    Raises:
        UserError: what this machine or model cannot do.
        GateError: whole models do not take what the table says; nothing is stored.
    """
    found = (stored_table(setting, folder) for folder in folders)
    table = next(filter(None, found), None) or measure_table(setting, timer, convert, budget, progress)
    for folder in folders:
        if stored_table(setting, folder) is None:
            write_json(folder / setting.file_name, {"key": setting.key, "table": table.to_json()})
    return table


def stored_table(setting: Setting, folder: Path) -> LatencyTable | None:
    """The table of `setting` in `folder`, if it is there and whole."""
    stored = stored_under(folder / setting.file_name, setting.key)
    return LatencyTable.from_json(stored["table"]) if stored else None


def measure_table(
    setting: Setting,
    timer: Timer,
    convert: Convert | None = None,
    budget: float = BUDGET,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> LatencyTable:
    """Measure a table. What tells least is left out when `budget` seconds are over.

    Raises: as `load_or_measure`.
    """
    setting.check()
    end = clock() + budget
    needed, further = plan(setting.shape)
    session = _Session(setting, timer, convert, progress, clock, expected=len(needed) + len(further))
    for group in groups(needed[1:], setting.shape):
        session.time(group)
    for group in groups(further, setting.shape):
        if not session.fits(group, end):
            break
        session.time(group)
    for _ in range(REPEATS):
        doubtful = {*session.uncertain(), *missed(fit(setting, session.timing()))}
        for group in groups([one for one in [*needed, *further] if one.name in doubtful], setting.shape):
            if session.fits(group, end):
                session.time(group)
    table = fit(setting, session.timing())
    refuse_misfit(setting, table)
    return table


@dataclass
class _Session:
    """What was measured so far."""

    setting: Setting
    timer: Timer
    convert: Convert | None
    progress: Progress | None
    clock: Callable[[], float]
    expected: int
    reference_ms: list[float] = field(default_factory=list)
    multiples: dict[str, Interval] = field(default_factory=dict)
    disturbances: list[str] = field(default_factory=list)
    seconds_each: float = 0.0

    def time(self, group: Sequence[Candidate]) -> None:
        """Time these beside the reference; of what was timed before, the more certain result stays."""
        if self.progress:
            share = min(1.0, len(self.multiples) / self.expected)
            self.progress(f"latency table: {len(self.multiples)} of {self.expected} graphs", share)
        began, reference = self.clock(), reference_of(self.setting.shape)
        with tempfile.TemporaryDirectory() as folder:
            files = {one.name: self._write(one, Path(folder)) for one in [reference, *group]}
            found = self.timer(files, REFERENCE)
        self.seconds_each = (self.clock() - began) / len(group)
        self.reference_ms.append(found.reference_ms)
        self.disturbances += [found.disturbance] if found.disturbance else []
        for name, interval in found.multiples.items():
            if name not in self.multiples or interval.half_width < self.multiples[name].half_width:
                self.multiples[name] = interval

    def fits(self, group: Sequence[Candidate], end: float) -> bool:
        """Whether there is time for `group`, judged by the one before."""
        return self.clock() + self.seconds_each * len(group) <= end

    def uncertain(self) -> list[str]:
        """What is not known to 5 %."""
        return [name for name, interval in self.multiples.items() if interval.half_width > NOISY_WIDTH]

    def timing(self) -> Timing:
        """All results as one; the reference's time is the median over its groups."""
        disturbance = self.disturbances[0] if self.disturbances else None
        return Timing(float(np.median(self.reference_ms)), self.multiples, disturbance)

    def _write(self, candidate: Candidate, folder: Path) -> Path:
        """The candidate's graph in the setting's precision."""
        path = folder / f"{candidate.name}.onnx"
        onnx.save(encoder_graph(self.setting.shape, candidate.layers), path)
        if self.convert is None:
            return path
        converted = folder / f"{candidate.name}-converted.onnx"
        self.convert(path, converted)
        path.unlink()
        return converted

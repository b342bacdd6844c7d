"""The latency harness: every model of a comparison alive in the same fresh processes, timed in turns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.benchmark.inputs import Shapes
from compressor.benchmark.machine import between, disturbance, snapshot, usable_cores
from compressor.benchmark.process import LEAD, Job, run_in_fresh_process
from compressor.benchmark.samples import Samples
from compressor.benchmark.schema import BenchmarkKeys
from compressor.benchmark.sessions import check_provider
from compressor.benchmark.worker import SETTLED
from compressor.cell import Cell
from compressor.errors import UserError
from compressor.parts import graph_file, part_of
from compressor.schema import suggest

DEFAULTS = BenchmarkKeys()
DATA_LENGTHS = 16
"""How many lengths stand for the distribution of a data set's."""
SLOWER = 0.08
"""How much longer than in the fastest process models take in one that had to share the machine: it is set aside."""
TELLING = 0.5
"""Timed seconds from which on a process's medians tell that: those of shorter ones differ as much by chance."""
SPINNING = {"cpu": "onnxruntime's default, in one thread pool for all models", "cuda": "does not apply"}

Progress = Callable[[str, float], None]
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Measurement:
    """What was measured: rows for `results.json` by model, and the conditions, a dict a cell.

    `speedup` compares with the reference and leaves it out; `samples` are the runs themselves, a set a cell.
    """

    latency: Rows
    speedup: Rows
    conditions: list[dict[str, Any]]
    samples: list[Samples]

    def speedup_over(self, reference: str) -> Rows:
        """Speedups over any other of the measured models, from the same runs."""
        return _speedups(self.samples, reference)


def measure(
    models: Mapping[str, Path],
    cells: Sequence[Cell],
    *,
    reference: str,
    seconds: float = DEFAULTS.seconds,
    processes: int = DEFAULTS.processes,
    seed: int = 0,
    progress: Progress | None = None,
    raw_dir: Path | None = None,
    overrides: Shapes | None = None,
    lengths: Sequence[int] | None = None,
    lead: float = LEAD,
) -> Measurement:
    """Time `models` (name: ONNX file, or a folder of several) in every cell, and compare each with `reference`.

    A cell takes `processes` (two or more) fresh processes. Each opens all models, warms them up, and runs
    them in turns, in random order, for `seconds` and at least five rounds; each model runs for `lead`
    seconds before the run that is timed, unless that is a long one. `progress` gets a text and the fraction
    done; `raw_dir` gets the single runs (`raw` in a row names the file, relative to it); `overrides` are the
    shapes of unusual inputs.

    A cell with `sequence_length` "data" times the real `lengths` (in tokens) of a data set, without padding:
    sixteen of them, at even steps through the sorted ones, stand for all. Its p50 is that of the mix, its
    speedup the mean over the lengths.
    Raises UserError before anything is timed where a model, provider or number of threads is not to be had.
    """
    if processes < 2:
        raise UserError(f"an interval needs 2 processes or more, not {processes}; 8 give a good one")
    if reference not in models:
        near = suggest(reference, models)
        raise UserError(f"the model to compare with, '{reference}', is not measured{near}")
    check_possible(models, cells)
    samples, conditions = [], []
    for number, cell in enumerate(cells):
        job = Job(
            models=[str(path.resolve()) for path in models.values()],
            provider=cell.provider,
            threads=cell.threads,
            shapes=_shapes(cell, lengths),
            seconds=seconds,
            seed=seed,
            overrides=dict(overrides or {}),
            part=cell.part,
            lead=lead,
        )
        share = _share(progress, number, len(cells))
        timed, seen = _time_cell(cell, tuple(models), job, processes, share)
        samples.append(timed)
        conditions.append(seen)
    latency = {name: [_latency(timed, name, raw_dir) for timed in samples] for name in models}
    return Measurement(latency, _speedups(samples, reference), conditions, samples)


def _shapes(cell: Cell, lengths: Sequence[int] | None) -> list[tuple[int, int]]:
    """The (batch, sequence) pairs that are timed in turns in one cell."""
    if isinstance(cell.sequence_length, int):
        return [(cell.batch_size, cell.sequence_length)]
    if lengths is None or len(lengths) == 0:
        raise UserError("there are no real lengths to time: the data set is empty")
    steps = (np.arange(DATA_LENGTHS) + 0.5) / DATA_LENGTHS
    return [(cell.batch_size, int(length)) for length in np.quantile(lengths, steps, method="nearest")]


def _time_cell(
    cell: Cell, models: tuple[str, ...], job: Job, processes: int, progress: Progress
) -> tuple[Samples, dict[str, Any]]:
    """Run `job` in `processes` processes, and watch what else the machine does meanwhile.

    Where some are slower than others, as many again are run at most, and the fastest of all are kept: what shares the
    machine slows small models by more than large ones, and so changes how they compare.
    """
    before = snapshot()
    results: list[Mapping[str, np.ndarray]] = []
    most = 2 * processes if job.seconds >= TELLING else processes
    while len(results) < processes or (
        len(results) < most and np.sort(slowness(results))[processes - 1] > SLOWER
    ):
        number, again = len(results) % processes, len(results) // processes
        text = f"timing {cell}: process {number + 1} of {processes}{' again, as some were slower' if again else ''}"
        progress(text, number / processes)
        results.append(run_in_fresh_process(job.again(len(results))))
    seen = between(before, snapshot())
    set_aside = len(results) - processes
    results = [results[kept] for kept in np.sort(np.argsort(slowness(results))[:processes])]
    count = len(models)
    samples = Samples(
        cell=cell,
        models=models,
        ms=[result["ms"][:, :count] for result in results],
        shape=[result["shape"] for result in results],
        cold_ms=np.array([result["cold_ms"] for result in results]),
        host_ms=[result["ms"][:, count:] for result in results] if cell.provider == "cuda" else None,
    )
    return samples, {
        **cell.keys(),
        "processes": processes,
        "set_aside": set_aside,
        "seconds": job.seconds,
        "lead": job.lead,
        "spinning": SPINNING[cell.provider],
        "warmup_rounds": [int(result["warmup_rounds"]) for result in results],
        "settled": _settled([result["drift"] for result in results]),
        "beside": seen,
        "disturbance": disturbance(seen),
    }


def slowness(results: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """How much longer than in the fastest process the models took in each, [processes]: a fraction, their mean."""
    medians = np.log([np.median(result["ms"], axis=0) for result in results])
    found: np.ndarray = np.expm1((medians - medians.min(axis=0)).mean(axis=1))
    return found


def _settled(drifts: Sequence[np.ndarray]) -> bool:
    """Whether the models were warm when timing began; `drifts`: [columns] of each process.

    One process's drift is mostly noise: where runs scatter by 7 %, its two medians differ by more than 5 % a
    third of the time. What warms up does so in every process, so the median over processes tells.
    """
    return bool((abs(np.median(drifts, axis=0)) <= SETTLED).all())


def check_possible(models: Mapping[str, Path], cells: Sequence[Cell]) -> None:
    """Raise UserError for what cannot be measured here, before the first second is spent."""
    missing = [str(path) for path in models.values() if not path.exists()]
    if missing:
        raise UserError(f"no such file: {', '.join(missing)}")
    for path in models.values():
        for name in dict.fromkeys(cell.part for cell in cells):
            if not (file := graph_file(path, part_of(path, name))).is_file():
                raise UserError(f"no such file: {file}")
    for provider in {cell.provider for cell in cells}:
        check_provider(provider)
    most = max((cell.threads for cell in cells if cell.provider == "cpu"), default=1)
    if most > usable_cores():
        raise UserError(
            f"{most} threads are to be timed, but only {usable_cores()} cores can be used here; "
            "lower benchmark.threads (bench: --threads), or measure where it will be served"
        )


def _share(progress: Progress | None, number: int, count: int) -> Progress:
    """Progress of cell `number` of `count`, told as progress of the whole."""

    def tell(text: str, fraction: float) -> None:
        if progress:
            progress(text, (number + fraction) / count)

    return tell


def _latency(samples: Samples, model: str, raw_dir: Path | None) -> dict[str, Any]:
    raw = samples.save(model, raw_dir) if raw_dir else None
    return samples.latency(model, raw)


def _speedups(samples: Sequence[Samples], reference: str) -> Rows:
    names = [name for name in samples[0].models if name != reference] if samples else []
    return {name: [timed.speedup(name, reference) for timed in samples] for name in names}

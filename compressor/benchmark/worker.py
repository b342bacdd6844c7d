"""What runs in a measuring process: `python -m compressor.benchmark.worker RESULT.npz`, the job on stdin."""

import gc
import sys
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from threading import Barrier, Thread
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from compressor.benchmark.generation import generation_calls
from compressor.benchmark.process import Job
from compressor.benchmark.sessions import host_call, open_session, random_inputs, run_call, share_threads
from compressor.benchmark.statistics import relative
from compressor.errors import UserError
from compressor.parts import graph_file, part_of

LEADS = 50
"""At least so many leads would fit into the timed seconds: where little is timed, they are shorter."""
LONG = 0.1
"""Seconds: a run that takes longer is as long whatever ran before it."""
IN_A_ROW = 3
"""Runs of a model that are timed once it has had its lead."""
LEAST_ROUNDS = 5
"""Timed rounds at least, in each of several processes."""
WINDOW = 5
"""Rounds at least whose median is compared with that of as many before, to see whether models are warm."""
SETTLED = 0.05
"""They are when those two medians differ by no more than this."""

Call = Callable[[], Any]


def time_models(job: Job) -> dict[str, np.ndarray]:
    """Open all models at once, warm them up, then time them in rounds.

    Returns `ms` [rounds, columns]: a column a model, on CUDA a second one each with host copies; `shape`
    [rounds]: which of the job's shapes a round used; `cold_ms` [models]: opening the session plus its first
    run; `warmup_rounds` and, at their end, `drift` [columns] (see `_warm_up`).
    """
    share_threads(job.threads)
    calls, cold = _open(job)
    rng = np.random.default_rng(job.seed)
    gc.collect()
    gc.disable()
    lead = min(job.lead, job.seconds / LEADS)
    rounds, drift = _warm_up(calls, job.seconds, rng, lead)
    times, shapes = time_rounds(calls, job.seconds, rng, lead=lead)
    return {
        "ms": times,
        "shape": shapes,
        "cold_ms": cold,
        "warmup_rounds": np.array(rounds),
        "drift": drift,
    }


def time_rounds(
    calls: Sequence[Sequence[Call]],
    seconds: float,
    rng: np.random.Generator,
    least: int = LEAST_ROUNDS,
    lead: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Time `calls[shape][column]` in rounds, all columns of one shape each in random order.

    Each runs once; with a `lead` for so many seconds and then, timed, a few times in a row.

    Every shape gets its round, in random order, before any gets the next. Ends after `seconds` and `least`
    runs of each. Returns milliseconds [runs, columns] and the shape of each run.
    """
    rows: list[np.ndarray] = []
    shapes: list[int] = []
    end = perf_counter() + seconds
    while perf_counter() < end or len(rows) < least:
        for shape in rng.permutation(len(calls)):
            made = _round(calls[shape], rng, lead)
            rows.extend(made)
            shapes += [int(shape)] * len(made)
    return np.array(rows) / 1e6, np.array(shapes)


def count_examples(job: Job) -> dict[str, np.ndarray]:
    """Run `job.sessions` sessions of each model side by side. Returns `examples_per_second` [models]."""
    return {"examples_per_second": np.array([_throughput(Path(path), job) for path in job.models])}


def _open(job: Job) -> tuple[list[list[Call]], np.ndarray]:
    """`calls[shape][column]`, and each model's cold start in ms. Job by job another model is opened first."""
    count = len(job.models)
    columns: list[list[Call]] = [[] for _ in range(count)]
    on_host: list[list[Call]] = [[] for _ in range(count)]
    cold = np.zeros(count)
    for position in range(count):
        model = (job.first + position) % count
        start = perf_counter()
        made = _opened(Path(job.models[model]), job, shared_threads=True)
        opening = perf_counter() - start
        for batch, sequence in job.shapes:
            call, with_copies = made(batch, sequence)
            columns[model].append(call)
            on_host[model].append(with_copies)
        cold[model] = 1e3 * opening + _run(columns[model][0]) / 1e6
    both = columns if job.provider == "cpu" else columns + on_host
    return [list(shape) for shape in zip(*both, strict=True)], cold


def _opened(model: Path, job: Job, **options: bool) -> Callable[[int, int], tuple[Call, Call]]:
    """What makes, for a batch size and a sequence length, the call to time, and the same with host copies."""
    part = part_of(model, job.part)
    if part.tokens:
        return generation_calls(model, part, job, **options)
    session = open_session(graph_file(model, part), job.provider, job.threads, **options)

    def make(batch: int, sequence: int) -> tuple[Call, Call]:
        inputs = random_inputs(session, batch, sequence, job.seed, job.overrides, part)
        return run_call(session, inputs, job.provider), host_call(session, inputs)

    return make


def _warm_up(
    calls: Sequence[Sequence[Call]], seconds: float, rng: np.random.Generator, lead: float = 0.0
) -> tuple[int, np.ndarray]:
    """Run two windows of rounds, then on until no model drifts or half of `seconds` is over.

    A window is whole passes over the shapes. Returns the number of rounds, and how much slower each column's
    median was in the last window than in the one before, as a fraction: [columns].
    """
    window = len(calls) * ceil(WINDOW / len(calls))
    times, shapes = time_rounds(calls, 0.0, rng, 2 * window, lead)
    end = perf_counter() + seconds / 2  # on a busy machine they may never settle
    while True:
        drift = _drift(relative(times, shapes), window)
        if (abs(drift) <= SETTLED).all() or perf_counter() > end:
            return len(times), drift
        more = time_rounds(calls, 0.0, rng, 1, lead)
        times, shapes = np.concatenate([times, more[0]]), np.concatenate([shapes, more[1]])


def _drift(times: np.ndarray, window: int) -> np.ndarray:
    last, before = np.median(times[-window:], axis=0), np.median(times[-2 * window : -window], axis=0)
    drift: np.ndarray = last / before - 1
    return drift


def _round(calls: Sequence[Call], rng: np.random.Generator, lead: float) -> np.ndarray:
    """Nanoseconds [runs, columns]: a run of each model, or with a `lead` a few in a row."""
    times = np.empty((IN_A_ROW if lead else 1, len(calls)))
    for column in rng.permutation(len(calls)):
        times[:, column] = _run_after(calls[column], lead, len(times))
    return times


def _run_after(call: Call, lead: float, runs: int) -> list[int]:
    """Nanoseconds of calls in a row after `lead` seconds of others, unless they are long ones."""
    first = spent = _run(call)
    if lead and first <= LONG * 1e9:
        while spent < lead * 1e9:
            spent += _run(call)
        first = _run(call)
    return [first, *(_run(call) for _ in range(runs - 1))]


def _run(call: Call) -> int:
    """Nanoseconds of one call."""
    start = perf_counter_ns()
    call()
    return perf_counter_ns() - start


def _throughput(path: Path, job: Job) -> float:
    """Examples per second of one model in `job.sessions` sessions, each on a Python thread of its own."""
    ((batch, sequence),) = job.shapes
    calls = []
    for _ in range(job.sessions):
        calls.append(_opened(path, job)(batch, sequence)[0])
    ready = Barrier(job.sessions)
    rates = [0.0] * job.sessions

    def work(number: int) -> None:
        for _ in range(2 * WINDOW):
            calls[number]()
        ready.wait()
        runs, start = 0, perf_counter()
        while (spent := perf_counter() - start) < job.seconds or runs == 0:
            calls[number]()
            runs += 1
        rates[number] = runs * batch / spent

    threads = [Thread(target=work, args=(number,)) for number in range(job.sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def main() -> int:
    """Do the job on standard input, save its arrays; what is wrong with the job goes to standard error."""
    job = Job.from_json(sys.stdin.read())
    try:
        arrays = count_examples(job) if job.sessions else time_models(job)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    np.savez(sys.argv[1], **arrays)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A whole generation as something to time: every graph of a folder, in the loop that serves it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from compressor.benchmark.inputs import random_inputs
from compressor.benchmark.process import Job
from compressor.benchmark.sessions import open_session
from compressor.parts import Part, graphs_of
from compressor.serve.generation import Generator

Call = Callable[[], Any]


def generation_calls(
    model: Path, part: Part, job: Job, *, shared_threads: bool = False
) -> Callable[[int, int], tuple[Call, Call]]:
    """What makes the call that generates `part.tokens` tokens for a batch of inputs of one length.

    State passes through host memory from step to step, so on CUDA host copies are part of it either way.
    """
    sessions = {
        name: open_session(model / name, job.provider, job.threads, shared_threads=shared_threads)
        for name in graphs_of(model)
    }
    generator = Generator(sessions, part.graph)

    def make(batch: int, sequence: int) -> tuple[Call, Call]:
        inputs = random_inputs(generator.reader, batch, sequence, job.seed, job.overrides, part)
        call = partial(generator.run_fixed, inputs, part.tokens)
        return call, call

    return make

"""The gradual way to a high speed: pruned to a lower one, trained, pruned further from there (ZipLM, 2023)."""

from __future__ import annotations

from functools import partial

from compressor.errors import GateError
from compressor.models import checkpoint
from compressor.pruning.speed.candidates import Candidates
from compressor.pruning.speed.origin import Origin
from compressor.schema import json_of, training_keys


def climbed(start: Candidates, asked_ms: float, member: str) -> Origin:
    """The model of the last step before a target, from which it is pruned once more.

    Times of the steps fall from the dense model's to `asked_ms` by equal factors. Each has its database made of the
    model that the step before it left.
    """
    keys, context = start.origin.keys, start.origin.context
    here = start
    for step in range(1, keys.steps):
        ms = start.dense_ms * (asked_ms / start.dense_ms) ** (step / keys.steps)
        # Other tables, other models: their times stand for the cell and the machine.
        made_by = (json_of(keys), start.precision, start.dense_ms, start.least_ms, asked_ms, step)
        path = context.kept("speed-step", *made_by) / "model"
        if not path.exists():
            _check(here, ms, step)
            choice = here.within(ms, here.refined(ms))
            assert choice is not None
            here.origin.settle(choice)
            small = here.origin.sliced(choice)
            context.train(small, training_keys(keys), name=f"{member}-{start.precision}-{step}")
            context.once(path, partial(checkpoint.save, small))
        here = here.at(Origin(keys, checkpoint.load(path), context, *made_by))
    _check(here, asked_ms, keys.steps)
    return here.origin


def _check(here: Candidates, ms: float, step: int) -> None:
    """That a step can go so far: what an earlier one left as a constant stays."""
    if here.least_ms > ms:
        raise GateError(
            f"speed: step {step} of {here.origin.keys.steps} would have to reach {ms:.3g} ms, "
            f"{here.least_ms:.3g} ms are the least after those before it; take fewer `steps`, or ask for less"
        )

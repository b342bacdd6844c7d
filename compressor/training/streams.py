"""A running text in parallel streams: batches that go on where the last ones ended, and what is carried along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Sampler

from compressor.errors import UserError


class Streams(Sampler[int]):
    """Numbers of segments so that row b of every batch reads the b-th part of the text, segment by segment.

    Each epoch every row begins at another segment of its part, by (seed, epoch) alone, and goes round. Segments that
    do not fill a batch at the end of the text are left out.

    Raises:
        UserError: there are fewer segments than rows.
    """

    def __init__(self, segments: int, batch_size: int, seed: int) -> None:
        self.steps, self.batch_size, self.seed, self.epoch = segments // batch_size, batch_size, seed, 0
        if not self.steps:
            raise UserError(
                f"the training text has {segments} segments, too few for batch_size {batch_size} rows that are read "
                "side by side; lower batch_size or task.max_length"
            )

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        rows = np.arange(self.batch_size)
        first = np.random.default_rng([self.seed, self.epoch]).integers(self.steps, size=self.batch_size)
        for step in range(self.steps):
            yield from (rows * self.steps + (first + step) % self.steps).tolist()


class Memory:
    """What a model carries from one step to the next, of each micro-batch of a step on its own.

    It begins anew with every epoch of `steps` optimiser steps.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.step, self.part = steps, -1, 0
        self.kept: list[Tensor] = []

    def before(self, step: int) -> Tensor | None:
        """What the next micro-batch of optimiser step `step` is read with."""
        self.part = self.part + 1 if step == self.step else 0
        self.step = step
        return self.kept[self.part] if step % self.steps else None

    def after(self, memory: Tensor) -> None:
        """Keep what that micro-batch left."""
        del self.kept[self.part : self.part + 1]
        self.kept.insert(self.part, memory.detach())

    def save(self, file: Path) -> None:
        """Write it beside a checkpoint."""
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({str(part): memory.contiguous() for part, memory in enumerate(self.kept)}, file)

    def load(self, file: Path, device: str) -> None:
        """Go on with what was saved."""
        found = load_file(file, device=device)
        self.kept = [found[str(part)] for part in range(len(found))]

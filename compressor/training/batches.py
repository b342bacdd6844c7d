"""Batches of similar length, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

POOL = 50
"""Batches that are drawn together and sorted by length: large enough to save padding, small enough to mix."""


class LengthGrouped(Sampler[int]):
    """Indices so that every `batch_size` neighbours have about the same length.

    Unlike transformers' sampler its order is a function of (seed, epoch), so a resumed run sees the batches
    that the undisturbed run would have seen.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        pool = POOL * self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            chunk = order[start : start + pool]
            chunk = chunk[np.argsort(-self.lengths[chunk], kind="stable")]
            batches += [chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)]
        # A short batch must stay last, or it would shift the boundaries of all that follow.
        *whole, last = batches
        whole = [whole[i] for i in random.permutation(len(whole))]
        return iter(np.concatenate([*whole, last]).tolist())

"""Batches that go on where the last ones ended, and a memory that survives a break."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.errors import UserError
from compressor.training.streams import Memory, Streams


def batches(streams: Streams, size: int) -> np.ndarray:
    return np.array(list(streams)).reshape(-1, size)


def test_every_row_reads_its_part_of_the_text_in_order_and_goes_round() -> None:
    streams = Streams(segments=23, batch_size=4, seed=1)
    found = batches(streams, 4)
    assert len(streams) == found.size == 20
    for row, numbers in enumerate(found.T):
        assert sorted(numbers) == list(range(row * 5, row * 5 + 5))
        assert set(np.diff(numbers)) <= {1, -4}


def test_the_order_is_of_seed_and_epoch_alone() -> None:
    one, other = Streams(40, 4, seed=1), Streams(40, 4, seed=1)
    first = batches(one, 4)
    other.set_epoch(1)
    assert not np.array_equal(batches(other, 4), first)
    other.set_epoch(0)
    assert np.array_equal(batches(other, 4), first)


def test_a_text_that_is_too_short_for_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match="3 segments, too few for batch_size 4"):
        Streams(3, 4, seed=0)


def test_memory_is_kept_of_every_micro_batch_and_begins_anew_with_an_epoch() -> None:
    memory = Memory(steps=2)
    seen = []
    for step in range(4):
        for part in range(2):
            before = memory.before(step)
            seen.append(None if before is None else before.item())
            memory.after(torch.tensor(10.0 * step + part, requires_grad=True))
    assert seen == [None, None, 0, 1, None, None, 20, 21]


def test_memory_goes_on_after_a_break(tmp_path: Path) -> None:
    memory, other = Memory(steps=5), Memory(steps=5)
    for part in range(2):
        memory.before(0)
        memory.after(torch.full((1, 2), float(part)))
    memory.save(tmp_path / "checkpoint" / "memory.safetensors")
    other.load(tmp_path / "checkpoint" / "memory.safetensors", "cpu")
    assert [other.before(1).tolist() for _ in range(2)] == [[[0.0, 0.0]], [[1.0, 1.0]]]

"""Batches that go on where the last ones ended, and a memory that survives a break."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import UserError
from compressor.schema import TrainingKeys
from compressor.tasks.collate import Collator
from compressor.training.streams import Memory, Streams
from compressor.training.trainer import Run, newest_checkpoint, train
from tests.decoders import tiny_decoder, tokens


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


def test_a_killed_run_with_memory_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Weights and losses of a run resumed in the middle of an epoch are bitwise those of a whole one."""

    class Killed(Exception):
        pass

    text = tokens(1, 241)[0].tolist()
    features = [{"input_ids": text[at : at + 6], "labels": text[at + 1 : at + 7]} for at in range(0, 240, 6)]
    collate = Collator({"labels": -100}, left=False, dropped=frozenset())

    def attempt(folder: Path, stop_at: float = 2.0) -> tuple[Any, list[float]]:
        def progress(_what: str, share: float) -> None:
            if share > stop_at:
                raise Killed

        model = tiny_decoder()
        keys = TrainingKeys(epochs=3.0, learning_rate=1e-3, batch_size=4, gradient_accumulation=2)
        log = train(model, Run(keys, features, collate, folder, 7, progress))
        return model.state_dict(), [row["loss"] for row in log]

    whole, losses = attempt(tmp_path / "whole")
    with pytest.raises(Killed):
        attempt(tmp_path / "killed", stop_at=0.55)
    checkpoint = newest_checkpoint(tmp_path / "killed")
    assert checkpoint
    assert (Path(checkpoint) / "memory-0.safetensors").is_file()
    resumed, again = attempt(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert again == losses


def test_batches_are_read_with_what_the_last_ones_left(tmp_path: Path) -> None:
    model, seen = tiny_decoder(), []
    text = tokens(1, 49)[0].tolist()
    features = [{"input_ids": text[at : at + 6], "labels": text[at + 1 : at + 7]} for at in range(0, 48, 6)]

    def look(_model: Any, _args: Any, inputs: dict[str, Any], output: Any) -> None:
        seen.append((inputs["memory"], output["memory"]))

    model.register_forward_hook(look, with_kwargs=True)
    collate = Collator({"labels": -100}, left=False, dropped=frozenset())
    keys = TrainingKeys(epochs=2.0, learning_rate=1e-3, batch_size=2)
    train(model, Run(keys, features, collate, tmp_path, 7, lambda *_: None))
    assert [before is None for before, _ in seen] == [True, False, False, False] * 2
    for (_, left), (before, _) in pairwise(seen[:4]):
        assert torch.equal(before, left)

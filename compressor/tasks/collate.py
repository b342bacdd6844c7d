"""Joins features into one batch of tensors, padded to the longest of them and no further."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED_LABEL = -100  # PyTorch's cross entropy skips it
POSITIONS = ("start_positions", "end_positions")  # these count tokens: padding on the left moves them


@dataclass(frozen=True)
class Collator:
    """Callable `rows -> {name: Tensor}`; a plain object, so that data loaders can send it to a process.

    Lists become (batch, longest) tensors, numbers (batch,) ones: int64, or float32 for regression labels.
    """

    padding: Mapping[str, int]  # value per column; other columns are padded with 0
    left: bool  # the side padding goes to
    dropped: frozenset[str]  # columns that are no input of the model

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Join `rows`, all with the same columns, into a batch."""
        batch = {
            name: self._tensor(name, [row[name] for row in rows])
            for name in rows[0]
            if name not in self.dropped
        }
        if self.left:
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            batch |= {name: batch[name] + lengths.max() - lengths for name in POSITIONS if name in batch}
        return batch

    def _tensor(self, name: str, values: list[Any]) -> torch.Tensor:
        if isinstance(values[0], float):
            return torch.tensor(values, dtype=torch.float32)
        if isinstance(values[0], int):
            return torch.tensor(values, dtype=torch.int64)
        longest = max(len(value) for value in values)
        batch = torch.full((len(values), longest), self.padding.get(name, 0), dtype=torch.int64)
        for line, value in zip(batch, values, strict=True):
            part = line[longest - len(value) :] if self.left else line[: len(value)]
            part[:] = torch.as_tensor(value)
        return batch


def collator(tokenizer: Any, dropped: Sequence[str]) -> Collator:
    """The collator of a tokenizer, which knows its padding values and side."""
    padding = {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "labels": IGNORED_LABEL,
    }
    return Collator(padding, tokenizer.padding_side == "left", frozenset(dropped))

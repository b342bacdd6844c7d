"""A point of the latency grid: what a timing belongs to, wherever it is measured, judged or shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Provider = Literal["cpu", "cuda"]

DATA = "data"
"""The `sequence_length` of a cell that times the real lengths of a data set instead of one length."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `part` names the graph of a model made of several, else `forward`.

    `sequence_length` is a number of tokens, or "data" for a data set's real lengths.
    """

    provider: Provider
    threads: int
    batch_size: int
    sequence_length: int | str
    part: str = "forward"

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Cell:
        """The cell that a row of `latency` or `speedup` in `results.json` was measured in."""
        return cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})

    def __str__(self) -> str:
        """The cell in words: `cpu, 2 threads, batch 1, 128 tokens`."""
        length = "real lengths" if self.sequence_length == DATA else f"{self.sequence_length} tokens"
        words = [self.provider, f"batch {self.batch_size}", length]
        if self.provider == "cpu":
            words.insert(1, "1 thread" if self.threads == 1 else f"{self.threads} threads")
        return ", ".join(words if self.part == "forward" else [*words, self.part])

    @property
    def slug(self) -> str:
        """A file name for the cell: `cpu-t2-b1-s128-forward`."""
        return f"{self.provider}-t{self.threads}-b{self.batch_size}-s{self.sequence_length}-{self.part}"

    def keys(self) -> dict[str, Any]:
        """The columns that name this cell in `results.json`."""
        return asdict(self)

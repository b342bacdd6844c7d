"""A table as it was read, and the checks every column goes through before anything is computed from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from compressor.errors import UserError
from compressor.schema import suggest
from compressor.tasks.schema import Column


@dataclass(frozen=True)
class Table:
    """One split of a data set under the names its source uses.

    The index of `frame` is where a row comes from, counted from 1, and the index's name says what is counted
    ("line", "row"): messages about a row quote both.
    """

    frame: pd.DataFrame
    source: str
    class_names: Mapping[Column, Sequence[str]] = field(default_factory=dict)

    def place(self, position: int) -> str:
        """Where the row at `position` stands: `data/train.csv line 17`."""
        return f"{self.source} {self.frame.index.name} {self.frame.index[position]}"

    def reject(self, bad: Sequence[bool] | np.ndarray, problem: str, remedy: str = "") -> None:
        """Raise UserError naming the first row where `bad` is true, and what to do; do nothing where none is."""
        positions = np.flatnonzero(bad)
        if len(positions):
            more = f" (and {len(positions) - 1:,} more rows)" if len(positions) > 1 else ""
            raise UserError(f"{self.place(positions[0])}: {problem}{more}{remedy and f'; {remedy}'}")

    def values(self, column: Column) -> list[Any]:
        """A column as Python values; what is missing (None, NaN) is None.

        Raises UserError when there is no such column, with the nearest name and the columns there are.
        """
        if column not in self.frame.columns:
            self.no_column(f"column {column!r}", column)
        series = self.frame[column]
        return series.astype(object).where(series.notna(), None).tolist()

    def texts(self, column: Column) -> list[str]:
        """A column that must hold text in every row. Raises UserError naming the first row without."""
        values = self.values(column)
        self.reject([v is not None and not isinstance(v, str) for v in values], f"{column!r} holds no text")
        self.reject([v is None or not v.strip() for v in values], f"{column!r} is empty")
        return values

    def no_column(self, wanted: str, nearest: Column = "") -> NoReturn:
        """Raise UserError for a column that is not there."""
        names = [str(name) if len(str(name)) <= 40 else f"{str(name)[:37]}..." for name in self.frame.columns]
        if all(isinstance(name, int) for name in self.frame.columns):
            there = f"it has no header: give task.columns by number, 0 to {len(names) - 1}"
        else:
            there = f"its columns are: {', '.join(names)}"
        raise UserError(f"{self.source}: no {wanted}{suggest(str(nearest), names)} ({there})")

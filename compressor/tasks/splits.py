"""Which examples are used: limits, and the selection split held out of train."""

import numpy as np
import pandas as pd

from compressor.errors import UserError
from compressor.tasks.base import Examples
from compressor.tasks.schema import TaskKeys


def split(
    train: pd.DataFrame, validation: pd.DataFrame, keys: TaskKeys, seed: int, group: str | None = None
) -> Examples:
    """Apply `limit`, then move `selection.fraction` of train to the selection split.

    Rows that agree in the column `group` stay on one side. Everything keeps the order of its file. What a
    limit leaves of validation does not depend on the seed: runs with other seeds are scored on the same rows.
    Raises UserError when there are not two rows (or groups), one for each side.
    """
    train = _limited(train, keys.limit.train, seed)
    validation = _limited(validation, keys.limit.validation, 0)
    groups = np.arange(len(train)) if group is None else pd.factorize(train[group])[0]
    if groups.max() < 1:
        what = "one row" if group is None else f"one {group}"
        raise UserError(f"train has only {what}; task.selection takes a part of it that is never trained on")
    held_out = _held_out(groups, keys.selection.fraction, seed)
    parts = (train[~held_out], train[held_out], validation)
    return Examples(*(part.reset_index(drop=True) for part in parts))


def split_text(train: pd.DataFrame, validation: pd.DataFrame, keys: TaskKeys) -> Examples:
    """The same of a running text, whose rows (column `text`) keep their neighbours: limits take its beginning, and
    selection is the end of train, about that share of its characters.

    Raises UserError when train has but one row.
    """
    train, validation = (
        train.head(keys.limit.train or len(train)),
        validation.head(keys.limit.validation or len(validation)),
    )
    if len(train) < 2:
        raise UserError("train has only one row; task.selection takes a part of it that is never trained on")
    ends = train["text"].str.len().cumsum().to_numpy()
    kept = int(np.searchsorted(ends, (1 - keys.selection.fraction) * ends[-1] + 1e-6, side="right"))
    kept = min(max(kept, 1), len(train) - 1)
    parts = (train[:kept], train[kept:], validation)
    return Examples(*(part.reset_index(drop=True) for part in parts))


def _limited(frame: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    if limit is None or limit >= len(frame):
        return frame
    chosen = np.random.default_rng(seed).permutation(len(frame))[:limit]
    return frame.iloc[np.sort(chosen)]


def _held_out(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """True for the rows of random groups, some but not all, that come nearest to `fraction` of all rows."""
    sizes = np.bincount(groups)
    order = np.random.default_rng([seed, 1]).permutation(len(sizes))
    taken = np.cumsum(sizes[order])[:-1]
    count = 1 + int(np.argmin(np.abs(taken - fraction * len(groups))))
    held_out: np.ndarray = np.isin(groups, order[:count])
    return held_out

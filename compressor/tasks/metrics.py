"""Metrics as functions of row positions, fast enough to be bootstrapped, and exact on all rows."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

Scorer = Callable[[np.ndarray], float]  # row positions (repeats allowed) -> the metric on these rows


def mean(values: Sequence[float] | np.ndarray, where: np.ndarray | None = None) -> Scorer:
    """The mean of a value per row, over the rows where `where` is true; 0 when there are none."""
    array = np.asarray(values, dtype=float)
    if where is None:
        return lambda rows: float(array[rows].mean())
    return ratio(array * where, where)


def ratio(part: Sequence[float] | np.ndarray, whole: Sequence[float] | np.ndarray) -> Scorer:
    """Sum of one value per row over the sum of another; 0 when the latter is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)

    def score(rows: np.ndarray) -> float:
        total = whole[rows].sum()
        return float(part[rows].sum() / total) if total else 0.0

    return score


def classification(name: str, reference: np.ndarray, predicted: np.ndarray, classes: int) -> Scorer:
    """accuracy, f1 or matthews of class numbers, through the confusion matrix.

    f1 is class 1's where there are two classes (as GLUE has it), else the mean over the classes that occur or
    are predicted. What has no value (matthews of a constant prediction) counts 0.
    """
    cells = np.asarray(reference) * classes + np.asarray(predicted)
    measure = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews}[name]

    def score(rows: np.ndarray) -> float:
        counts = np.bincount(cells[rows], minlength=classes**2).reshape(classes, classes)
        return measure(counts.astype(float))

    return score


def _accuracy(confusion: np.ndarray) -> float:
    return float(np.trace(confusion) / confusion.sum())


def _f1(confusion: np.ndarray) -> float:
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = np.divide(2 * np.diag(confusion), both, out=np.zeros_like(both), where=both > 0)
    return float(f1[1] if len(f1) == 2 else f1[both > 0].mean())


def _matthews(confusion: np.ndarray) -> float:
    """Gorodkin's generalisation to any number of classes."""
    predicted, reference, total = confusion.sum(axis=0), confusion.sum(axis=1), confusion.sum()
    spread = np.sqrt((total**2 - predicted @ predicted) * (total**2 - reference @ reference))
    return float((np.trace(confusion) * total - predicted @ reference) / spread) if spread else 0.0


def correlation(name: str, reference: np.ndarray, predicted: np.ndarray) -> Scorer:
    """pearson or spearman; 0 where one side is constant."""
    x, y = np.asarray(reference, dtype=float), np.asarray(predicted, dtype=float)
    if name == "pearson":
        return lambda rows: _pearson(x[rows], y[rows])
    return lambda rows: _pearson(rankdata(x[rows]), rankdata(y[rows]))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0

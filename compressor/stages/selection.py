"""What an exported file loses on the selection split, of which only as much is read as the answer takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compressor.stages.base import Work
from compressor.stages.evaluate import predict

if TYPE_CHECKING:
    import pandas as pd

    from compressor.models.outputs import Array

STEPS = (250, 500, 1000, 2000)
"""After so many examples it is asked whether the answer is clear; after the last, the value decides."""
UNSEEN = 3.0
"""An event that was not seen in n trials has at most 3 / n of probability, with 95 % confidence."""
PROBES = 16
"""Examples that tell how far logits move."""


class Loss(NamedTuple):
    """Harm in the primary metric (positive is worse), its 95 % interval, both files' metrics, and of how many."""

    value: float
    low: float
    high: float
    dense: float
    metric: float
    examples: int


@dataclass
class Selection:
    """The selection split in random order, and what was predicted of it so far, by file."""

    work: Work
    rows: dict[Path, pd.DataFrame] = field(default_factory=dict)
    logits: dict[Path, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        examples = self.work.data.frame("selection", self.work.progress)
        self.frame = examples.sample(min(STEPS[-1], len(examples)), random_state=self.work.seed)
        self.tokenizer = self.work.tokenizer()

    def loss(self, dense: Path, other: Path, allowed: float) -> Loss:
        """How much `other` loses against `dense`, as exactly as it takes to say whether it is within `allowed`."""
        for step in STEPS:
            loss = self._loss(dense, other, min(step, len(self.frame)))
            if loss.high <= allowed or loss.low > allowed or loss.examples == len(self.frame):
                break
        return loss

    def metric(self, file: Path) -> float:
        """The primary metric of a file, roughly: on a first few of the examples."""
        count = min(STEPS[0], len(self.frame))
        return self._loss(file, file, count).metric

    def error(self, dense: Path, other: Path) -> float:
        """Root mean square of the differences between two files' logits, over a few examples."""
        if dense not in self.logits:
            self.logits[dense] = self._logits(dense)
        return float(np.sqrt(np.mean((self._logits(other) - self.logits[dense]) ** 2)))

    def _loss(self, dense: Path, other: Path, count: int) -> Loss:
        from compressor.benchmark.statistics import paired_interval

        task = self.work.data.task
        predicted = [self._predicted(file, count) for file in (dense, other)]
        metric = task.deciding(predicted[0])
        scores = [task.scorer(rows, metric) for rows in predicted]
        before, after = (score(np.arange(count)) for score in scores)
        sign = 1 if task.higher_is_better(metric) else -1
        value = sign * (before - after)
        low, high = sorted(sign * end for end in paired_interval(scores[0], scores[1], count))
        unseen = UNSEEN / count  # few answers that differ, or none, make the bootstrap too sure
        return Loss(value, min(low, value - unseen), max(high, value + unseen), before, after, count)

    def _predicted(self, file: Path, count: int) -> pd.DataFrame:
        """Predictions of the first `count` examples; those known already are not made again."""
        import pandas as pd

        known = self.rows.get(file)
        start = 0 if known is None else len(known)
        if start < count:
            made = self._predict(file, self.frame.iloc[start:count], f"{start + 1} to {count}")[1]
            self.rows[file] = made if known is None else pd.concat([known, made], ignore_index=True)
        return self.rows[file].iloc[:count]

    def _logits(self, file: Path) -> Array:
        outputs, _ = self._predict(file, self.frame.iloc[:PROBES], "probes")
        return np.concatenate([row.reshape(-1) for rows in outputs.values() for row in rows])

    def _predict(self, file: Path, frame: pd.DataFrame, part: str) -> tuple[Any, pd.DataFrame]:
        title = f"evaluate {file.stem}, examples {part} of {len(self.frame)}"
        return predict(self.work.data.task, self.tokenizer, file, frame, self.work.progress, title)

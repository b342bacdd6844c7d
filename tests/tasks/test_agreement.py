"""How alike two models answer, whatever an answer is."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from compressor.tasks import get_task
from compressor.tasks.base import Examples, Task
from compressor.tasks.schema import TaskKeys


def task(kind: Any, labels: list[str]) -> Task:
    frame = pd.DataFrame({"answers": [["an answer"]]})
    return get_task(kind)(TaskKeys(type=kind, dataset="some/data"), Examples(frame, frame, frame), labels)


def stored(folder: Path, predictions: list[Any], references: list[Any]) -> pd.DataFrame:
    """Predictions as they come back from the file that they are kept in."""
    path = folder / "predictions.parquet"
    pd.DataFrame({"prediction": predictions, "reference": references}).to_parquet(path)
    return pd.read_parquet(path)


ANSWERS: dict[str, tuple[str, list[str], list[Any], list[Any], float]] = {
    "labels": ("text-classification", ["a", "b"], ["a", "b", "b", "b"], ["a", "b", "a", "b"], 0.75),
    "texts": ("question-answering", [], ["", "Ada", "the end"], ["", "Ada", "end"], 2 / 3),
    "tags": ("token-classification", ["O", "B"], [["O", "B", "O"], ["B"]], [["O", "O", "O"], ["B"]], 0.75),
    "scores": ("text-classification", [], [0.0, 1.0, 2.5, 4.0], [0.049, 1.0, 2.56, 3.96], 0.75),
}


@pytest.mark.parametrize(("kind", "labels", "one", "other", "expected"), ANSWERS.values(), ids=list(ANSWERS))
def test_agreement(
    tmp_path: Path, kind: str, labels: list[str], one: list[Any], other: list[Any], expected: float
) -> None:
    references = [0.0, 5.0, 1.0, 1.0] if one[0] == 0.0 else one
    frames = [stored(tmp_path, answers, references) for answers in (one, other)]
    assert task(kind, labels).agreement(*frames) == pytest.approx(expected)
    assert task(kind, labels).agreement(frames[0], frames[0]) == 1

"""How much of the selection split is read until it is clear what a file loses."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from compressor.stages import selection as module
from compressor.stages.selection import Selection

DENSE, OTHER = Path("dense"), Path("other")
Wrong = Callable[[int], bool]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[int]]:
    """Which examples were predicted, by file."""
    return {DENSE: [], OTHER: []}


def selection(
    wrong: Wrong, read: dict[Path, list[int]], rows: int, monkeypatch, higher: bool = True
) -> Selection:
    """A split in which the dense file is right everywhere and the other `wrong` at some places of its order."""

    def predict(
        _task: Any, _tokenizer: Any, file: Path, frame: pd.DataFrame, *_: Any
    ) -> tuple[Any, pd.DataFrame]:
        places = range(len(read[file]), len(read[file]) + len(frame))
        read[file] += list(frame.index)
        right = [float(file == DENSE or not wrong(place)) for place in places]
        outputs = {"logits": [np.full(2, value) for value in right]}
        return outputs, pd.DataFrame({"right": right if higher else [1 - value for value in right]})

    monkeypatch.setattr(module, "predict", predict)
    task = SimpleNamespace(
        deciding=lambda _: "accuracy",
        higher_is_better=lambda _: higher,
        scorer=lambda frame, _: lambda places: float(frame["right"].to_numpy()[places].mean()),
    )
    data = SimpleNamespace(task=task, frame=lambda *_: pd.DataFrame({"text": range(rows)}))
    work: Any = SimpleNamespace(data=data, seed=0, tokenizer=lambda: None, progress=None)
    return Selection(work)


CASES = {
    "equal answers take as many as can exclude a loss": (lambda _: False, 0.01, 500, 0.0),
    "a great loss is clear at once": (lambda place: place % 10 == 0, 0.01, 250, 0.1),
    "a loss near the limit takes them all": (lambda place: place % 110 == 0, 0.01, 2000, 0.0095),
    "a wide limit is soon met": (lambda place: place % 50 == 0, 0.1, 250, 0.02),
}


@pytest.mark.parametrize("higher", [True, False], ids=["higher is better", "lower is better"])
@pytest.mark.parametrize(("wrong", "allowed", "examples", "drop"), CASES.values(), ids=list(CASES))
def test_it_reads(wrong, allowed, examples, drop, higher, read, monkeypatch) -> None:
    split = selection(wrong, read, 3000, monkeypatch, higher)
    loss = split.loss(DENSE, OTHER, allowed)
    assert loss.examples == examples
    assert loss.value == pytest.approx(drop)
    assert loss.low <= loss.value <= loss.high
    assert read[DENSE] == read[OTHER]
    assert len(set(read[DENSE])) == examples  # none twice


def test_a_small_split_is_read_to_its_end(read, monkeypatch) -> None:
    assert selection(lambda _: False, read, 60, monkeypatch).loss(DENSE, OTHER, 0.01).examples == 60


def test_what_the_dense_file_said_is_not_asked_again(read, monkeypatch) -> None:
    split = selection(lambda _: False, read, 300, monkeypatch)
    read[third := Path("third")] = []
    for file in (OTHER, third):
        split.loss(DENSE, file, 0.1)
    assert len(read[DENSE]) == len(read[third]) == 250


def test_error_is_how_far_logits_move(read, monkeypatch) -> None:
    split = selection(lambda _: True, read, 300, monkeypatch)
    assert split.error(DENSE, OTHER) == 1.0
    assert split.error(DENSE, DENSE) == 0.0

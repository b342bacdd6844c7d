"""The lines of news where there is no terminal."""

import io

import pytest
from rich.console import Console

from compressor import display
from compressor.display import Display


def test_time_left_is_by_the_pace_of_the_work_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=100)
    told = [
        (0, "search", 0.0),
        (3600, "evaluate", 0.0),  # an hour without a word
        (3660, "evaluate", 0.25),
        (3700, "timing, process 1 of 2", 0.4),
        (3724, "timing, process 1 of 2", 0.5),
        (3760, "timing, process 2 of 2", 0.5),
        (3820, "timing, process 2 of 2", 0.75),
    ]
    with Display(console).stage("prune") as report:
        for seconds, what, share in told:
            now = float(seconds)
            report(what, share)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "prune: evaluate 25%, 3 min left",
        "prune: timing, process 1 of 2 50%, 2 min left",
        "prune: timing, process 2 of 2 75%, 1 min left",
    ]

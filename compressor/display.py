"""What a user sees while a run goes on: a bar with time left per stage, a line when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from compressor.schema import Progress as Report


class Display:
    """Writes to standard error, so that standard output stays for results. Bars only on a terminal."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)

    def line(self, text: str) -> None:
        """One line of news."""
        self.console.print(text, highlight=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """A bar for one stage; yields the function that moves it."""
        columns = (
            TextColumn("[bold]{task.fields[stage]}[/] {task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task("", total=1.0, stage=name)
            doing = ""

            def report(what: str, share: float) -> None:
                nonlocal doing
                if what != doing:
                    bars.reset(task, description=what)
                    doing = what
                bars.update(task, completed=share)

            yield report

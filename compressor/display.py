"""What a user sees while a run goes on: a bar with time left per stage, a line when it is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from compressor.schema import Progress as Report

log = logging.getLogger(__name__)

NEWS_EVERY = 60.0
"""Seconds between lines on what is no terminal (a log file, a CI job)."""


class Display:
    """Writes to standard error, so that standard output stays for results; lines go to the log as well.

    On a terminal a stage has a bar; elsewhere a line a minute says how far it is.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)

    def line(self, text: str) -> None:
        """One line of news, which may hold console markup."""
        log.info(Text.from_markup(text).plain)
        self.console.print(text, highlight=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """Yields the function that a stage calls as it goes on."""
        log.info("%s begins", name)
        if not self.console.is_terminal:
            yield _News(self, name)
            return
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
            before = 0.0

            def report(what: str, share: float) -> None:
                nonlocal before
                if share < before:  # another piece of work begins: its time left is counted anew
                    bars.reset(task)
                before = share
                bars.update(task, completed=share, description=what)

            yield report


class _News:
    """Says now and then how far a stage is, and how long it will still take."""

    def __init__(self, display: Display, stage: str) -> None:
        self.display = display
        self.stage = stage
        self.what, self.first, self.before = "", 0.0, 0.0
        self.began = self.said = time.monotonic()

    def __call__(self, what: str, share: float) -> None:
        now = time.monotonic()
        if what != self.what or share < self.before:  # another piece of work: its own pace tells what is left
            self.what, self.began, self.first = what, now, share
        self.before = share
        if share <= self.first or now - self.said < NEWS_EVERY:
            return
        self.said = now
        left = (now - self.began) * (1 - share) / (share - self.first)
        self.display.line(f"{self.stage}: {what} {share:.0%}, {left / 60:.0f} min left")

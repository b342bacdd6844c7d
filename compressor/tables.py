"""The two kinds of table that all views are made of. Cells are plain text: names never act as markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text


def table(*titles: str, numbers: bool = False) -> Table:
    """An empty table without rules between rows; with `numbers`, all but the first column align right."""
    made = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0)
    )
    for number, title in enumerate(titles):
        made.add_column(Text(title), justify="right" if numbers and number else "left", overflow="fold")
    return made


def facts(rows: Iterable[tuple[str, object]]) -> Table:
    """Names and their values, a row each."""
    made = Table.grid(padding=(0, 2))
    for name, value in rows:
        made.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(str(value)))
    return made

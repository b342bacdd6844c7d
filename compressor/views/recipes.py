"""`recipes`: the recipes that come with the program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from compressor.errors import UserError
from compressor.report.fields import listed
from compressor.tables import table
from compressor.yamlfile import read_yaml

PACKAGE = Path(__file__).resolve().parents[1]


def recipes_view() -> RenderableType:
    """File, task, stages and header comment of every shipped recipe."""
    made = table("recipe", "what it does")
    for path in shipped():
        recipe = read_yaml(path).value
        about = Text.assemble(
            (f"{recipe['task']['type']}: {listed(map(stage_name, recipe['stages']))}", "dim"),
            "\n",
            header(path),
        )
        made.add_row(Text(_short(path), style="bold"), about)
    return made


def shipped() -> list[Path]:
    """The recipes' files: inside the installed package, or beside the package in a checkout.

    Raises:
        UserError: neither is there.
    """
    for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes"):
        if found := sorted(folder.glob("*.yaml")):
            return found
    raise UserError("this installation came without recipes; `compressor new` writes one")


def header(path: Path) -> str:
    """The first sentence of the comment a recipe begins with, after the line that says how to run it."""
    text = path.read_text(encoding="utf-8")
    comment = re.match(r"(?:#.*\n)*", text)
    lines = [line.lstrip("# ").strip() for line in comment.group().splitlines()] if comment else []
    words = " ".join(line for line in lines if line and not line.startswith("compressor run"))
    return re.split(r"(?<=\.)\s(?=[A-Z])", words)[0]


def stage_name(item: dict[str, Any]) -> str:
    """`finetune`, or `prune (movement)`: the verb of a recipe's stage, with its method."""
    ((verb, keys),) = item.items()
    return f"{verb} ({keys['method']})" if keys and "method" in keys else verb


def _short(path: Path) -> str:
    """The path as it can be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

"""Values made fit for a Markdown file that will be published."""

import re
from pathlib import PurePath
from typing import Any

_MARKUP = re.compile(r"([\\`*\[\]<>|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def plain(text: object) -> str:
    """Text that stays text: one line, with no markup, table cell or tag of its own."""
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def fenced(text: str, language: str = "yaml") -> str:
    """A code block whose fence is longer than any in `text`."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def public(value: Any) -> Any:
    """A recipe fit to publish: paths that lead out of the project are cut to their last part."""
    if isinstance(value, dict):
        return {key: public(part) for key, part in value.items()}
    if isinstance(value, list):
        return [public(part) for part in value]
    if isinstance(value, str) and value.startswith(("/", "~", "../")):
        return f".../{PurePath(value).name}"
    return value

"""Reading a YAML file safely, remembering the line of every value."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import UserError

LARGEST = 1 << 17
"""Bytes; a recipe is a page, and so much YAML would take seconds to read."""
DEEPEST = 30
Location = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader for what JSON has too: a date stays text, and 3e-5 is a number as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":bool", ":int", ":float"))]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


class _Refused(yaml.MarkedYAMLError):
    """YAML that is valid, but has no place in a recipe."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(problem=problem, problem_mark=mark)


@dataclass
class Document:
    """A file's plain data, and the line on which each value starts, by its location."""

    path: Path
    value: Any
    lines: dict[Location, int] = field(default_factory=dict)
    overrides: dict[Location, str] = field(default_factory=dict)
    """The `--set` texts that gave a value, by its location."""

    def line(self, location: Location) -> int:
        """Line of the value at `location`, or of the nearest block around it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def place(self, location: Location) -> str:
        """Where the value at `location` was written: `file:line`, or the override it came by."""
        around = [location[:end] for end in range(len(location), -1, -1)]
        given = next((self.overrides[at] for at in around if at in self.overrides), None)
        return f"--set {given}" if given else f"{self.path}:{self.line(location)}"


def read_yaml(path: Path) -> Document:
    """The document in `path`, which must be a mapping.

    Raises:
        UserError: unreadable, not text, not YAML, not a mapping, or using tags, anchors or duplicate keys.
    """
    text = _text(path)
    try:
        document = _parse(text, path)
    except yaml.YAMLError as error:
        line, problem = _explain(error, text)
        raise UserError(f"{path}:{line}: {problem}") from error
    if not isinstance(document.value, dict):
        kind = {list: "a list", type(None): "empty"}.get(type(document.value), "a single value")
        raise UserError(
            f"{path}: a recipe is a mapping of keys, this file is {kind}; see `compressor recipes`"
        )
    return document


def parse_value(text: str) -> Any:
    """A scalar, list or mapping written on the command line (`--set key=TEXT`).

    Raises:
        UserError: it is not YAML.
    """
    try:
        return _parse(text, Path("--set")).value
    except yaml.YAMLError as error:
        raise UserError(f"--set: {reprlib.repr(text)}: {_explain(error, text)[1]}") from error


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UserError(f"no recipe at {path} (`compressor recipes` lists the shipped ones)")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 10} kB: no recipe")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if "\0" in text:
        raise UserError(f"{path} is not a text file in UTF-8")
    return text


def _parse(text: str, path: Path) -> Document:
    document = Document(path, None)
    _refuse_tricks(text)
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is not None:
        document.value = _value(loader, node, (), document)
    return document


def _refuse_tricks(text: str) -> None:
    """Refuse what makes a small file stand for billions of values or for Python objects, before building any."""
    events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = "anchors and aliases are not allowed in a recipe; write the value out"
        elif getattr(event, "tag", None):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            problem = f"tags such as {tag} are not allowed in a recipe; write plain values"
        elif depth > DEEPEST:
            problem = "nested too deeply for a recipe"
        else:
            continue
        raise _Refused(problem, event.start_mark)


def _explain(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line and reason of what the reader refused."""
    if isinstance(error, yaml.reader.ReaderError):  # the one error without a mark
        return text.count("\n", 0, error.position) + 1, f"character {chr(error.character)!r} is not allowed"
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    reason = ", ".join(part for part in (error.context, error.problem) if part)
    if not isinstance(error, _Refused):
        tab = "'\\t'" in reason
        reason = f"not valid YAML: {reason}" + ("; indent with spaces, not with tabs" if tab else "")
    return mark.line + 1 if mark else 1, reason


def _value(loader: _Loader, node: Any, at: Location, document: Document) -> Any:
    document.lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            key = _scalar(loader, key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise _Refused("a key must be text; quote it if it is meant as such", mark)
            if key in mapping:
                raise _Refused(f"key '{key}' is given twice", mark)
            mapping[key] = _value(loader, value_node, (*at, key), document)
            document.lines[*at, key] = mark.line + 1
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*at, i), document) for i, item in enumerate(node.value)]
    return _scalar(loader, node)


def _scalar(loader: _Loader, node: Any) -> Any:
    try:
        value = loader.construct_object(node, deep=True)
        str(value).encode()
    except ValueError as error:  # what looks like a number to YAML but is none (0x_), or half a character
        problem = f"{node.value[:40]!r} is neither a number nor text; quote it if it is text"
        raise _Refused(problem, node.start_mark) from error
    return value

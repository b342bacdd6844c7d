"""Reading a YAML file safely, remembering the line of every value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import UserError

LARGEST = 1 << 20
"""Bytes; a recipe is a page, and a megabyte of YAML is no recipe."""
DEEPEST = 30
Location = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, reading 3e-5 as the number it is in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


@dataclass
class Document:
    """A file's plain data, and the line on which each value starts, by its location."""

    path: Path
    value: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int:
        """Line of the value at `location`, or of the nearest block around it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def read_yaml(path: Path) -> Document:
    """The document in `path`, which must be a mapping.

    Raises:
        UserError: unreadable, not text, not YAML, not a mapping, or using tags, anchors or duplicate keys.
    """
    loader = _Loader(_text(path))
    try:
        node = loader.get_single_node()
        document = Document(path, None)
        document.value = _value(loader, node, (), document) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}:{line}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply for a recipe") from error
    finally:
        loader.dispose()
    if not isinstance(document.value, dict):
        kind = {list: "a list", type(None): "empty"}.get(type(document.value), "a single value")
        raise UserError(f"{path}: a recipe is a mapping of keys, this file is {kind}; see `compressor recipes`")
    return document


def parse_value(text: str) -> Any:
    """A scalar, list or mapping written on the command line (`--set key=TEXT`)."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node, (), Document(Path("--set"), None))
    except yaml.YAMLError as error:
        raise UserError(f"--set: '{text}' is not valid YAML") from error
    finally:
        loader.dispose()


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UserError(f"no recipe at {path} (`compressor recipes` lists the shipped ones)")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than a megabyte: no recipe")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if "\0" in text:
        raise UserError(f"{path} is not a text file in UTF-8")
    _no_aliases(path, text)
    return text


def _no_aliases(path: Path, text: str) -> None:
    """Anchors and aliases can make a small file stand for billions of values."""
    depth = 0
    try:
        for event in _events(text):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UserError(
                    f"{path}:{event.start_mark.line + 1}: anchors and aliases are not allowed in a recipe; "
                    "write the value out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{path}:{event.start_mark.line + 1}: nested too deeply for a recipe")
    except yaml.YAMLError:
        return  # said with its line by the reader


def _events(text: str) -> Iterator[Any]:
    yield from yaml.parse(text, Loader=_Loader)


def _value(loader: _Loader, node: Any, at: Location, document: Document) -> Any:
    document.lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is no text", problem_mark=key_node.start_mark)
            if key in mapping:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark
                )
            mapping[key] = _value(loader, value_node, (*at, key), document)
            document.lines[*at, key] = key_node.start_mark.line + 1
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
        return [_value(loader, item, (*at, i), document) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)

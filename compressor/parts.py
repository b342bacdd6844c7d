"""What an exported model folder holds: one graph or several, and the parts of its work that are timed alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from compressor.errors import UserError
from compressor.files import digest, read_json, sha256, write_json
from compressor.schema import suggest

MODEL_FILE = "model.onnx"
"""The graph of a model that has only one."""
PARTS_FILE = "parts.json"
"""Beside the graphs of a model that has several, or whose graph runs in more than one way."""
STATE_FILE = "state.json"
"""Beside graphs that hand on what they remember: how each such tensor begins."""
FORWARD = "forward"
Kind = Literal["none", "hidden", "cache"]
"""What a language model's graphs hand on from run to run: nothing, the layers' inputs, or keys and values."""
Size = int | str
"""Of a named dimension: a number, or the name of another dimension ("batch", "sequence")."""


@dataclass(frozen=True)
class Part:
    """One thing a model does, timed alone: a run of `graph`, or with `tokens` a whole generation of so many.

    `sizes` are those of the graph's named dimensions that are not batch and sequence length by their names:
    `{"past_length": 30, "encoder_length": "sequence"}`; its numbers of tokens are below `vocabulary`, where they tell
    what is computed. A generation runs all graphs of its folder (see
    `serve.generation`); its `graph` is the one that makes tokens.
    """

    name: str
    graph: str
    sizes: Mapping[str, Size] = field(default_factory=dict)
    tokens: int = 0
    vocabulary: int = 0


WHOLE = Part(FORWARD, MODEL_FILE)


def parts_of(model: Path) -> list[Part]:
    """The parts of a model folder, the most telling one first; of a single file, or one graph, `forward`."""
    stored = model / PARTS_FILE
    return [Part(**row) for row in read_json(stored)] if stored.is_file() else [WHOLE]


def write_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Say beside the graphs what is run of them."""
    write_json(folder / PARTS_FILE, [asdict(part) for part in parts])


def part_of(model: Path, name: str) -> Part:
    """The part of that name.

    Raises:
        UserError: the model has none.
    """
    parts = {part.name: part for part in parts_of(model)}
    if name not in parts:
        raise UserError(
            f"{model} has no part '{name}'{suggest(name, parts)} (it has: {', '.join(parts)}); see benchmark.parts"
        )
    return parts[name]


def graph_file(model: Path, part: Part) -> Path:
    """The ONNX file of a part; `model` is a folder, or such a file itself."""
    return model / part.graph if model.is_dir() else model


def graphs_of(folder: Path) -> list[str]:
    """Names of the graphs in a model folder, each once."""
    return sorted({part.graph for part in parts_of(folder)})


def has_graphs(folder: Path) -> bool:
    """Whether an exported model is in this folder."""
    return all((folder / name).is_file() for name in graphs_of(folder))


def content_of(model: Path) -> str:
    """What identifies the graphs of a model: the hash of the only one, or of all their hashes."""
    hashes = [sha256(path) for path in _files(model)]
    return hashes[0] if len(hashes) == 1 else digest(hashes)


def _files(model: Path) -> Iterable[Path]:
    return [model / name for name in graphs_of(model)] if model.is_dir() else [model]

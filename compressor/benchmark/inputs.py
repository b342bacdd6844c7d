"""Made-up inputs for any ONNX model: token ids inside the vocabulary, masks of ones, normal floats."""

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime

from compressor.errors import UserError
from compressor.parts import WHOLE, Part, Size
from compressor.schema import suggest

DTYPES: dict[str, type[np.generic]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
}
SMALL_IDS = 2
"""Integers stay below this where the model does not look them up in a table."""
BATCH_NAME = re.compile(r"batch(_?size)?|n|b", re.IGNORECASE)
SEQUENCE_NAME = re.compile(r"(max_?)?(seq|sequence)(_?(len|length))?|length|tokens?|s|t", re.IGNORECASE)
# Operators an index may pass through on its way from an input to the table it is looked up in.
TRANSPARENT = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose"}

Shapes = Mapping[str, tuple[int, ...]]
SUM = " + "
"""In the name of a dimension that is as long as two others together."""


def parse_input_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """`["input_ids=1x128"]` -> `{"input_ids": (1, 128)}`. Raises UserError for anything else."""
    shapes = {}
    for text in texts:
        name, _, shape = text.rpartition("=")
        if not name or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
            raise UserError(f"--input {text}: write name=shape, for example --input input_ids=1x128")
        shapes[name] = tuple(int(size) for size in shape.split("x"))
    return shapes


def random_inputs(
    session: onnxruntime.InferenceSession,
    batch: int,
    sequence: int,
    seed: int,
    overrides: Shapes | None = None,
    part: Part = WHOLE,
) -> dict[str, np.ndarray]:
    """One array for each input of `session`, the same for the same seed.

    Ids lie inside the embedding they index; inputs named like masks are ones, token types zeros, positions
    count up; floats are N(0, 1). `overrides` gives the shape of an input whose dimensions say neither batch
    nor sequence, `part` the lengths of named dimensions. If it has a `vocabulary`, ids are as frequent as words of a
    text, the first the most: one of twice the number is half as frequent (Zipf). Raises UserError for a dimension
    nobody gave, a fixed one that contradicts `batch` or `sequence`, a type that cannot be made up, and an override
    of an input the model lacks.
    """
    nodes = {node.name: node for node in session.get_inputs()}
    for name in overrides or {}:
        if name not in nodes:
            raise UserError(f"--input {name}: the model has no such input{suggest(name, nodes)}")
    path = getattr(session, "_model_path", None)
    rows = _embedding_rows(path, os.stat(path).st_mtime_ns) if path else {}
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, node in nodes.items():
        shape = (overrides or {}).get(name) or _shape(node, batch, sequence, part.sizes)
        arrays[name] = _values(name, shape, _dtype(node), rows.get(name, SMALL_IDS), part.vocabulary, rng)
    return arrays


def _values(
    name: str, shape: tuple[int, ...], dtype: type, rows: int, vocabulary: int, rng: np.random.Generator
) -> np.ndarray:
    if "mask" in name or dtype is np.bool_:
        return np.ones(shape, dtype)
    if not np.issubdtype(dtype, np.integer):
        return rng.standard_normal(shape).astype(dtype)
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype) % rows, shape).copy()
    if vocabulary:
        return ((vocabulary + 1) ** rng.random(shape) - 1).astype(dtype)
    return rng.integers(0, rows, shape).astype(dtype)


def _shape(node: Any, batch: int, sequence: int, sizes: Mapping[str, Size]) -> tuple[int, ...]:
    """The input's shape with batch, sequence and named sizes filled in."""
    shape = tuple(_size(node, axis, batch, sequence, sizes) for axis in range(len(node.shape)))
    token_like = len(shape) == 2 and "int" in node.type and not sizes
    has_batch = any(isinstance(name, str) and BATCH_NAME.fullmatch(name) for name in node.shape)
    if (len(shape) > 1 and shape[0] != batch and not has_batch) or (token_like and shape[1] != sequence):
        text = "x".join(map(str, shape))
        raise UserError(
            f"input '{node.name}' is fixed to {text} in the model, so batch {batch} with {sequence} tokens "
            "cannot be timed; ask for the model's own sizes (--batch, --seq), or give "
            f"--input {node.name}={text}"
        )
    return shape


def _size(node: Any, axis: int, batch: int, sequence: int, sizes: Mapping[str, Size]) -> int:
    size = node.shape[axis]
    if isinstance(size, int):
        return size
    terms = [_named(name, batch, sequence, sizes) for name in (size or "").split(SUM)]
    if None not in terms:
        return sum(term or 0 for term in terms)
    called = f"'{size}'" if size else f"number {axis}"
    example = "x".join(["8"] * len(node.shape))
    raise UserError(
        f"input '{node.name}': dimension {called} is neither batch nor sequence length; "
        f"give the whole shape, for example --input {node.name}={example}"
    )


def _named(name: str, batch: int, sequence: int, sizes: Mapping[str, Size]) -> int | None:
    """The length of a dimension by its name; `None` where nothing says it."""
    found = sizes.get(name, name)
    if isinstance(found, int):
        return found
    if BATCH_NAME.fullmatch(found):
        return batch
    if SEQUENCE_NAME.fullmatch(found):
        return sequence
    return int(found) if found.isdigit() else None


def _dtype(node: Any) -> type[np.generic]:
    if node.type not in DTYPES:
        raise UserError(f"input '{node.name}' is a {node.type}, for which no values can be made up")
    return DTYPES[node.type]


@lru_cache(maxsize=32)
def _embedding_rows(path: str, _changed: int) -> dict[str, int]:
    """For each graph input that indexes tables, the rows of the smallest of them."""
    graph = onnx.load(path, load_external_data=False).graph
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 2}
    source = {value.name: value.name for value in graph.input}
    rows: dict[str, int] = {}
    for node in graph.node:  # in topological order, as ONNX demands
        if node.op_type in TRANSPARENT and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type == "Identity" and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
        for table, index in _lookups(node):
            if table in tables and index in source:
                name = source[index]
                rows[name] = min(tables[table], rows.get(name, tables[table]))
    return rows


def _lookups(node: onnx.NodeProto) -> list[tuple[str, str]]:
    """(table, index) names of the look-ups a node does."""
    names = list(node.input)
    if node.op_type == "Gather":
        return [(names[0], names[1])]
    if node.op_type == "EmbedLayerNormalization":  # onnxruntime's fused embedding
        return [(names[2], names[0]), (names[4], names[1])]
    return []

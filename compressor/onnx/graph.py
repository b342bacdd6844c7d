"""What is in an ONNX file."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from compressor.errors import UserError
from compressor.schema import suggest


def describe_graph(path: Path) -> dict[str, Any]:
    """Operator counts, initializer elements, opset and file size (bytes, with external data).

    Raises:
        UserError: no ONNX file.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise UserError(f"{path} is no ONNX file: {str(error).splitlines()[0]}") from error
    counts = Counter(node.op_type for node in graph.graph.node)
    elements = sum(_size(tensor.dims) for tensor in graph.graph.initializer)
    return {
        "operators": dict(counts.most_common()),
        "elements": elements,
        "opset": max((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), default=0),
        "file_bytes": file_bytes(path),
    }


def matching_nodes(paths: Sequence[Path], patterns: Sequence[str]) -> list[str]:
    """Names of the graphs' nodes that fit one of the patterns (`*` stands for anything).

    Raises:
        UserError: a pattern fits none.
    """
    if not patterns:
        return []
    graphs = [onnx.load(str(path), load_external_data=False).graph for path in paths]
    names = list(dict.fromkeys(node.name for graph in graphs for node in graph.node))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = suggest(pattern, names)
            raise UserError(f"quantize.exclude: no node of the graph fits '{pattern}'{near}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def read_weights_directly(path: Path) -> None:
    """Let every node read stored tensors themselves, not copies made by `Identity`, in place.

    So the exporter lets several nodes share a tensor; quantization takes a copy for no weight and passes over it.
    """
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    stored = {tensor.name: tensor.name for tensor in graph.initializer}
    results = {output.name for output in graph.output}
    kept = []
    for node in graph.node:
        node.input[:] = [stored.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in stored and node.output[0] not in results:
            stored[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)
        onnx.save(model, str(path))


def file_bytes(path: Path) -> int:
    """Size of the file and of its external data."""
    return sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*") if p.is_file())


def _size(dims: Any) -> int:
    total = 1
    for d in dims:
        total *= d
    return total

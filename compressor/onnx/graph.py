"""What is in an ONNX file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from compressor.errors import UserError


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


def file_bytes(path: Path) -> int:
    """Size of the file and of its external data."""
    return sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*") if p.is_file())


def _size(dims: Any) -> int:
    total = 1
    for d in dims:
        total *= d
    return total

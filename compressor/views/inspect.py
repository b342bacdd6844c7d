"""`inspect`: what is left of a model, layer by layer, and what is in an ONNX file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.errors import UserError
from compressor.models.structure import Structure
from compressor.onnx.graph import describe_graph
from compressor.parts import graphs_of
from compressor.report.console import inspect_table
from compressor.report.fields import count_text, listed, megabytes
from compressor.tables import facts, table
from compressor.views.folders import has_config, has_graph, not_a_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WANTED = "a checkpoint folder (config.json and model.safetensors), an artifact (model.onnx) or an .onnx file"


def inspect_model(model: Path) -> RenderableType:
    """Layers, widths, densities and sizes of a checkpoint or artifact; operators and sizes of an ONNX file.

    Raises:
        UserError: `model` is none of these.
    """
    if model.is_file():
        return inspect_file(model)
    if has_graph(model):
        return inspect_exported(model)
    if has_config(model):
        return inspect_checkpoint(model)
    raise not_a_model(model, WANTED)


def inspect_checkpoint(folder: Path) -> Group:
    """A checkpoint: the structure from its config, parameters and zeros from its weights."""
    from compressor.models import checkpoint
    from compressor.models.measures import measures

    model = checkpoint.load(folder)
    gates = (getattr(model.config, "compressor", None) or {}).get("gates")
    sizes: dict[str, Any] = measures(model)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    info = {"name": str(folder), "file_bytes": size, **sizes}
    if gates is None:
        return inspect_table(_structure(model.config), info)
    del info["sliced_density"]  # nothing is sliced yet
    note = Text(
        "pruned, not sliced yet: the layers are shown as `slice` will leave them; parameters, nonzero density "
        "and size are those of the uncut weights",
        style="yellow",
    )
    return Group(note, inspect_table(gates, info))


def inspect_exported(folder: Path) -> Group:
    """An exported model: the structure from the config beside it, the rest from the graph."""
    from compressor.models import checkpoint

    graphs = [folder / name for name in graphs_of(folder)]
    try:
        structure = _structure(checkpoint.read_config(folder))
    except UserError as error:
        return Group(Text(f"layers unknown: {error}", style="yellow"), *map(inspect_file, graphs))
    described = [describe_graph(graph) for graph in graphs]
    counts = sum((Counter(found["operators"]) for found in described), Counter())
    info = {"name": str(folder), "file_bytes": sum(found["file_bytes"] for found in described)}
    info["operators"] = dict(counts.most_common())
    return inspect_table(structure, info)


def inspect_file(path: Path) -> Group:
    """A bare ONNX file: inputs, sizes, operators, and the widths of its matrix products."""
    found = describe_graph(path)
    graph = onnx.load(str(path), load_external_data=False).graph
    if not graph.node:
        raise UserError(f"{path} is no ONNX file: there is no operator in it")
    weights = {tensor.name for tensor in graph.initializer}
    rows: list[tuple[str, object]] = [
        ("size", megabytes(found["file_bytes"])),
        ("stored numbers", count_text(found["elements"])),
        ("opset", found["opset"]),
        ("inputs", listed(_tensor(value) for value in graph.input if value.name not in weights)),
        ("outputs", listed(_tensor(value) for value in graph.output)),
        ("operators", listed(f"{name} {count}" for name, count in found["operators"].items())),
    ]
    title = Text(str(path), style="bold")
    return Group(title, facts(rows), Text(), _widths(graph))


def _structure(config: PretrainedConfig) -> dict[str, Any]:
    """The structure a model folder's config names, else the dense one of its sizes."""
    from compressor.models.architecture import architecture_of

    stored: dict[str, Any] | None = (getattr(config, "compressor", None) or {}).get("structure")
    return stored or Structure.dense(architecture_of(config).sizes(config)).to_json()


def _tensor(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"{value.name} [{listed(dim.dim_param or dim.dim_value or '?' for dim in dims)}]"


def _widths(graph: onnx.GraphProto) -> Table:
    made = table("products with stored weights", "in", "out", "number", numbers=True)
    for (operator, rows, columns), count in matmul_widths(graph).items():
        made.add_row(Text(operator), f"{rows:,}", f"{columns:,}", str(count))
    return made


def matmul_widths(graph: onnx.GraphProto) -> Counter[tuple[str, int, int]]:
    """How often each (operator, inputs, outputs) multiplies by a stored matrix, in the graph's order."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2}
    found: Counter[tuple[str, int, int]] = Counter()
    for node in graph.node:
        weight = next((shapes[name] for name in node.input if name in shapes), None)
        if weight is None or not ("MatMul" in node.op_type or node.op_type == "Gemm"):
            continue
        transposed = any(option.name == "transB" and option.i for option in node.attribute)
        rows, columns = reversed(weight) if transposed else weight
        found[node.op_type, rows, columns] += 1
    return found

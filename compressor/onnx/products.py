"""The quantizable parts of an exported graph: which belong together, what each takes, and leaving some out."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

WARM, RUNS = 3, 15
"""Profiled runs that do not count, and those whose median does."""
NAMES = ("{}", "{}_quant", "{}_MatMul_quant", "fused {}")
"""What onnxruntime calls a matrix product of the exported graph in the graph that it runs."""
READER = "{}_QuantizeLinear"
"""What it calls the node that quantizes an activation."""


@dataclass(frozen=True)
class Group:
    """Nodes that read the same activation, each with a weight of its own (queries, keys and values, say).

    They stay in fp32 together or not at all, since they share the quantization of what they read.
    """

    reads: str
    nodes: tuple[str, ...]


def groups(path: Path, operators: Collection[str]) -> list[Group]:
    """The groups of a graph, in its order: of "MatMul" (and with it Gemm) and of "Gather" (look-ups)."""
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in graph.node:
        names = list(node.input)
        if "MatMul" in operators and node.op_type in ("MatMul", "Gemm") and names[1] in constants:
            found[names[0], ""].append(node.name)
        elif "Gather" in operators and node.op_type == "Gather" and names[0] in constants:
            found[names[1], names[0]].append(node.name)
    return [Group(reads, tuple(nodes)) for (reads, _), nodes in found.items()]


def leave_out(source: onnx.ModelProto, quantized: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """`quantized`, with these nodes as they are in `source`, which it was made from: as if made with `exclude`."""
    originals = {node.output[0]: node for node in source.graph.node if node.name in nodes}
    made = onnx.ModelProto()
    made.CopyFrom(quantized)
    graph = made.graph
    del graph.node[:], graph.initializer[:]
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(quantized.graph.node):  # whoever reads before who makes what is read
        if wanted & set(node.output):
            node = next((originals[name] for name in node.output if name in originals), node)
            kept.append(node)
            wanted |= set(node.input)
    graph.node.extend(reversed(kept))
    constants = {tensor.name: tensor for model in (source, quantized) for tensor in model.graph.initializer}
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in wanted)
    return made


def group_times(
    path: Path, feed: Mapping[str, NDArray[Any]], threads: int, every: Sequence[Group]
) -> list[float]:
    """Milliseconds of a run that each group of matrix products takes in a graph, or in one quantized from it.

    Quantizing what a group reads is part of its time. Profiling costs time itself: compare groups with
    themselves in another graph.
    """
    times = profile(path, feed, threads)
    names = [[READER.format(g.reads), *(n.format(node) for n in NAMES for node in g.nodes)] for g in every]
    return [sum(times.get(name, 0.0) for name in own) for own in names]


def profile(
    path: Path, feed: Mapping[str, NDArray[Any]], threads: int, by_operator: bool = False
) -> dict[str, float]:
    """Median milliseconds of a run by node (named as in the graph that onnxruntime runs), or by operator."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(WARM + RUNS):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: list[dict[str, float]] = [defaultdict(float)]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            name = event["args"]["op_name"] if by_operator else event["name"].removesuffix("_kernel_time")
            runs[-1][name] += event["dur"] / 1e3
        elif event["name"] == "model_run":  # written after its nodes
            runs.append(defaultdict(float))
    counted = runs[WARM:-1]
    return {name: float(np.median([run.get(name, 0.0) for run in counted])) for name in counted[0]}

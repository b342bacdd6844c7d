"""A configuration for NVIDIA Triton's onnxruntime backend, with the threads that were measured to be best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16"}
LEAST_BATCH = 8
"""Batches the server may form even where only single texts were timed."""
QUEUE_MICROSECONDS = 500


def triton_config(manifest: Mapping[str, Any]) -> str:
    """The text of `config.pbtxt`; the model repository is <name>/config.pbtxt and <name>/1/model.onnx."""
    rows = manifest["latency"]
    batch = max([LEAST_BATCH, *(row["batch_size"] for row in rows if isinstance(row["batch_size"], int))])
    rows_first = not manifest.get("state")
    blocks = [
        "# In Triton's model repository: NAME/config.pbtxt (this file) and NAME/1/model.onnx.",
        "# Requests of one length share a batch; text becomes tokens before it (client.py shows how).",
        f"name: {json.dumps(manifest['name'])}",
        'backend: "onnxruntime"',
        f"max_batch_size: {batch if rows_first else 0}",
        *(_tensor("input", name, about, rows_first) for name, about in manifest["inputs"].items()),
        *(_tensor("output", name, about, rows_first) for name, about in manifest["outputs"].items()),
    ]
    if (
        rows_first
    ):  # texts that are read piece by piece, each with what was remembered, are no batch of the server's
        blocks.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    threads = best_threads(rows)
    if threads is not None:
        blocks.append(_parameter("intra_op_thread_count", threads))
        blocks.append("instance_group [ { kind: KIND_CPU, count: 1 } ]")
    return "\n".join(blocks) + "\n"


def best_threads(rows: list[dict[str, Any]]) -> int | None:
    """Of the thread counts timed on the CPU, the fastest at the first cell's batch and length."""
    cpu = [row for row in rows if row["provider"] == "cpu"]
    same = [row for row in cpu if all(row[k] == cpu[0][k] for k in ("batch_size", "sequence_length", "part"))]
    return int(min(same, key=lambda row: row["p50_ms"])["threads"]) if same else None


def _tensor(kind: str, name: str, about: Mapping[str, Any], rows_first: bool) -> str:
    sizes = about["shape"][1:] if rows_first else about["shape"]
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in sizes)
    return f"{kind} [ {{ name: {json.dumps(name)}, data_type: {TYPES[about['type']]}, dims: [ {dims} ] }} ]"


def _parameter(name: str, value: object) -> str:
    return f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'

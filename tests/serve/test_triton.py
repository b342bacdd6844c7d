"""The server's configuration: the artifact's own tensors, and the threads that were fastest."""

from typing import Any

from compressor.serve.triton import best_threads, triton_config

MANIFEST: dict[str, Any] = {
    "name": 'my "model"',
    "inputs": {
        "input_ids": {"type": "tensor(int64)", "shape": ["batch_size", "sequence_length"]},
        "attention_mask": {"type": "tensor(int64)", "shape": ["batch_size", "sequence_length"]},
    },
    "outputs": {"logits": {"type": "tensor(float)", "shape": ["batch_size", 2]}},
    "latency": [],
}


def row(threads: int, p50: float, batch: int = 1, provider: str = "cpu") -> dict[str, Any]:
    return {
        "provider": provider,
        "threads": threads,
        "batch_size": batch,
        "sequence_length": 128,
        "part": "forward",
        "p50_ms": p50,
    }


def test_the_configuration() -> None:
    rows = [row(1, 9.0), row(2, 5.0), row(4, 6.0), row(8, 1.0, batch=16)]
    assert triton_config(MANIFEST | {"latency": rows}).splitlines()[2:] == [
        'name: "my \\"model\\""',
        'backend: "onnxruntime"',
        "max_batch_size: 16",
        'input [ { name: "input_ids", data_type: TYPE_INT64, dims: [ -1 ] } ]',
        'input [ { name: "attention_mask", data_type: TYPE_INT64, dims: [ -1 ] } ]',
        'output [ { name: "logits", data_type: TYPE_FP32, dims: [ 2 ] } ]',
        "dynamic_batching { max_queue_delay_microseconds: 500 }",
        'parameters { key: "intra_op_thread_count" value: { string_value: "2" } }',
        "instance_group [ { kind: KIND_CPU, count: 1 } ]",
    ]


def test_nothing_is_said_of_threads_that_nobody_timed() -> None:
    assert best_threads([]) is None
    assert best_threads([row(1, 1.0, provider="cuda")]) is None
    assert "thread" not in triton_config(MANIFEST)


def test_texts_that_are_read_piece_by_piece_share_no_batch() -> None:
    memory = {"type": "tensor(float)", "shape": [6, "batch_size", "memory_length", 32]}
    inputs = {"input_ids": MANIFEST["inputs"]["input_ids"], "memory": memory}
    made = triton_config(MANIFEST | {"inputs": inputs, "state": {"memory": {}}})
    assert "max_batch_size: 0" in made
    assert 'input [ { name: "memory", data_type: TYPE_FP32, dims: [ 6, -1, -1, 32 ] } ]' in made
    assert 'input [ { name: "input_ids", data_type: TYPE_INT64, dims: [ -1, -1 ] } ]' in made
    assert "dynamic_batching" not in made

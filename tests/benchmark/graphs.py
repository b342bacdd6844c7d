"""Small ONNX models to time, written node by node."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH = 50, 16


def encoder(dims: list[Any], work: int = 1, ids: str = "input_ids") -> onnx.ModelProto:
    """Embeds ids, adds token types, multiplies `work` times, masks; `dims` is the shape of its inputs."""
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    tables = [
        constant("words", VOCABULARY, WIDTH),
        constant("types", 2, WIDTH),
        constant("square", WIDTH, WIDTH),
    ]
    nodes = [
        helper.make_node("Cast", [ids], ["cast"], to=TensorProto.INT32),
        helper.make_node("Gather", ["words", "cast"], ["word"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type"]),
        helper.make_node("Add", ["word", "type"], ["x0"]),
        *(helper.make_node("MatMul", [f"x{i}", "square"], [f"x{i + 1}"]) for i in range(work)),
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["seen", "last"], ["mask"]),
        helper.make_node("Mul", [f"x{work}", "mask"], ["y"]),
    ]
    names = (ids, "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name in names]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*dims, WIDTH])]
    last = numpy_helper.from_array(np.array([2]), "last")
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, [*tables, last])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def writer() -> dict[str, onnx.ModelProto]:
    """An encoder and a decoder that remembers every token: the next one depends on the mean of all."""
    rng = np.random.default_rng(1)
    words = numpy_helper.from_array(rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32), "words")
    back = numpy_helper.from_array(rng.standard_normal((WIDTH, VOCABULARY)).astype(np.float32), "back")
    one, both = (
        numpy_helper.from_array(np.array(axes), name) for axes, name in (([1], "one"), ([1, 2], "both"))
    )

    def tensor(name: str, *dims: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, dims)

    def look_up(made: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Gather", ["words", "input_ids"], ["found"]),
            helper.make_node("Unsqueeze", ["found", "one"], [made]),
        ]

    ids = {"kind": TensorProto.INT64}
    encoder = helper.make_graph(
        look_up("cross.0"),
        "encoder",
        [tensor("input_ids", "batch", "sequence", **ids)],
        [tensor("cross.0", "batch", 1, "sequence", WIDTH)],
        [words, one],
    )
    decoder = helper.make_graph(
        [
            *look_up("new"),
            helper.make_node("Concat", ["past.0", "new"], ["present.0"], axis=2),
            helper.make_node("ReduceMean", ["present.0", "both"], ["own"], keepdims=0),
            helper.make_node("ReduceMean", ["cross.0", "both"], ["read"], keepdims=0),
            helper.make_node("Add", ["own", "read"], ["sum"]),
            helper.make_node("MatMul", ["sum", "back"], ["scores"]),
            helper.make_node("Unsqueeze", ["scores", "one"], ["logits"]),
        ],
        "decoder",
        [
            tensor("input_ids", "batch", "length", **ids),
            tensor("past.0", "batch", 1, "past_length", WIDTH),
            tensor("cross.0", "batch", 1, "sequence", WIDTH),
        ],
        [tensor("logits", "batch", 1, VOCABULARY), tensor("present.0", "batch", 1, "total", WIDTH)],
        [words, back, one, both],
    )
    opset = [helper.make_opsetid("", 18)]
    graphs = {"encoder.onnx": encoder, "decoder.onnx": decoder}
    return {
        name: helper.make_model(graph, opset_imports=opset, ir_version=9) for name, graph in graphs.items()
    }


def passes_through(name: str, kind: int, dims: list[Any]) -> onnx.ModelProto:
    """A model that returns its only input."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["y"])],
        "identity",
        [helper.make_tensor_value_info(name, kind, dims)],
        [helper.make_tensor_value_info("y", kind, dims)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

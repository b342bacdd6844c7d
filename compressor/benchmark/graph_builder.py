"""Writing an ONNX graph as one writes formulas: every operator is a call that returns its output's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = Callable[..., NDArray[Any]]
"""`weights(name, *shape)`: the values of a weight."""

INPUT_DIMS = ("batch_size", "sequence_length")


class Graph:
    """A graph that grows node by node; its inputs are token-like, (batch_size, sequence_length) of int64."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[str] = []

    def __call__(self, operator: str, *inputs: str | NDArray[Any] | np.generic, **attributes: Any) -> str:
        """Add a node; numbers among its inputs become constants. Returns the name of its output."""
        name = f"{operator}_{len(self.nodes)}"
        names = [given if isinstance(given, str) else self._constant(given) for given in inputs]
        self.nodes.append(helper.make_node(operator, names, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def input(self, name: str) -> str:
        """An input of the graph, declared when first used."""
        if name not in self.inputs:
            self.inputs.append(name)
        return name

    def weight(self, name: str, *shape: int) -> str:
        """A weight of this shape."""
        values = self.weights(name, *shape)
        if values.shape != shape:
            raise ValueError(f"the weight {name} is {values.shape}, not {shape}")
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def linear(self, name: str, x: str, size_in: int, size_out: int) -> str:
        """`x W + b`; `W` is (in, out), as the exporter stores it."""
        bias = self.weight(f"{name}.bias", size_out)
        return self("Add", bias, self("MatMul", x, self.weight(f"{name}.weight", size_in, size_out)))

    def norm(self, name: str, x: str, size: int, epsilon: float) -> str:
        """LayerNorm over the last axis."""
        parameters = [self.weight(f"{name}.{kind}", size) for kind in ("weight", "bias")]
        return self("LayerNormalization", x, *parameters, axis=-1, epsilon=epsilon)

    def model(self, output: str, name: str, dims: Sequence[int | str], opset: int) -> onnx.ModelProto:
        """The finished model, whose one output is `output`, under the name `name`."""
        for node in self.nodes:
            node.output[:] = [name if given == output else given for given in node.output]
        inputs = [helper.make_tensor_value_info(one, TensorProto.INT64, INPUT_DIMS) for one in self.inputs]
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        graph = helper.make_graph(self.nodes, "encoder", inputs, [made], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    def _constant(self, values: NDArray[Any] | np.generic) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

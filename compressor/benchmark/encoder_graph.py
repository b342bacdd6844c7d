"""Encoders of any widths as ONNX graphs, built node by node in the operators that our exporter gives.

A latency table times dozens of graphs that differ in sizes alone, so the pattern is written down once here
(TorchScript export, opset 18) instead of exporting each. Tests hold it against the exporter, operator by operator
and number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from compressor.benchmark.graph_builder import Graph, Weights

OPSET = 18
ROWS = 1024
"""Words of the stand-in vocabulary: a look-up in a larger one costs the same."""
TYPES, LABELS = 2, 2
ACTIVATIONS = ("gelu", "relu")

Widths = tuple[int | None, int | None]
"""Heads and FFN neurons of a layer. 0: nothing kept but bias, residual and norm; None: the sub-layer is absent."""


@dataclass(frozen=True)
class Pattern:
    """What tells a family's exported graph from BERT's."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    length_from: Literal["input_ids", "words"] = "input_ids"
    positions_counted: bool = False
    types: Literal["input", "zeros"] | None = "input"
    classifier: Literal["tanh", "gelu", "relu"] = "tanh"


PATTERNS = {
    "bert": Pattern(),
    "roberta": Pattern(positions_counted=True, types="zeros"),
    "electra": Pattern(attention="eager", classifier="gelu"),
    "distilbert": Pattern(length_from="words", types=None, classifier="relu"),
}


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of a dense encoder that decide about its latency.

    `embedding` is the width of the embedding tables (ELECTRA's may be narrower than `hidden`), `positions` the
    rows of the position table, `classifier` the width inside the classifier that reads the first token; without
    one the output is the hidden states of all tokens.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    head_size: int
    ffn: int
    embedding: int
    positions: int
    classifier: int | None
    padding: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-12

    @property
    def dense(self) -> Widths:
        """The widths of a layer from which nothing was removed."""
        return self.heads, self.ffn

    def at_hidden(self, hidden: int) -> EncoderShape:
        """The same encoder at another hidden width; tables as wide as the old one follow."""
        embedding = hidden if self.embedding == self.hidden else self.embedding
        return replace(self, hidden=hidden, embedding=embedding)

    def file_bytes(self, layers: Sequence[Widths]) -> int:
        """About how large the fp32 graph of such layers is."""
        units = sum(4 * self.head_size * (heads or 0) + 2 * (ffn or 0) for heads, ffn in layers)
        tables = self.embedding * (ROWS + self.positions)
        return 4 * (tables + self.hidden * (units + (self.classifier or 0)))


class StandIns:
    """Small random numbers in place of trained weights, cut from one pool: to make them costs no more than a copy."""

    def __init__(self, size: int = 2**18) -> None:
        self.pool = np.random.default_rng(0).normal(0, 0.02, size).astype(np.float32)

    def __call__(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Values for the weight `name`; norms are as they are initialised."""
        if ".norm." in name:
            return np.full(shape, float(name.endswith("weight")), np.float32)
        return np.resize(self.pool, shape)


def encoder_graph(
    shape: EncoderShape, layers: Sequence[Widths], weights: Weights | None = None
) -> onnx.ModelProto:
    """The graph of an encoder of `shape` with layers of these widths.

    Inputs as the exporter's: `input_ids`, `attention_mask` where attention is left and, by family,
    `token_type_ids`. Output: `logits` (batch_size, 2) or, without classifier, `last_hidden_state` (batch_size,
    sequence_length, hidden). `weights` gives values by name and shape, matrices as (in, out); else stand-ins.
    """
    encoder = _Encoder(shape, weights or StandIns())
    x = encoder.embeddings()
    if any(heads for heads, _ in layers):
        encoder.make_mask()
    for number, (heads, ffn) in enumerate(layers):
        x = encoder.sublayer(f"layer.{number}.attention", x, heads, encoder.attention)
        x = encoder.sublayer(f"layer.{number}.ffn", x, ffn, encoder.ffn)
    if shape.classifier:
        return encoder.graph.model(
            encoder.classifier(x, shape.classifier), "logits", ("batch_size", LABELS), OPSET
        )
    dims = ("batch_size", "sequence_length", shape.hidden)
    return encoder.graph.model(x, "last_hidden_state", dims, OPSET)


class _Encoder:
    """A graph being built, one method a part of the model; all take and return names of tensors."""

    def __init__(self, shape: EncoderShape, weights: Weights) -> None:
        self.shape, self.pattern = shape, PATTERNS[shape.family]
        self.graph = Graph(weights)
        self.ids = self.graph.input("input_ids")
        self.mask = ""
        self.sizes: dict[tuple[str, int], str] = {}

    def embeddings(self) -> str:
        """Words, types and positions summed, normed, and projected where the tables are narrower."""
        graph, shape, width = self.graph, self.shape, self.shape.embedding
        x = graph("Gather", graph.weight("embeddings.words", ROWS, width), self.ids)
        length = self._size(self.ids if self.pattern.length_from == "input_ids" else x, 1)
        types = self._types(length)
        if types:
            x = graph("Add", x, graph("Gather", graph.weight("embeddings.types", TYPES, width), types))
        table = graph.weight("embeddings.positions", shape.positions, width)
        x = graph("Add", x, graph("Gather", table, self._positions(length)))
        x = graph.norm("embeddings.norm", x, width, shape.epsilon)
        if width != shape.hidden:
            x = graph.linear("embeddings.projection", x, width, shape.hidden)
        return x

    def make_mask(self) -> None:
        """What is added to attention scores: 0 for tokens, the least float for padding."""
        graph, least = self.graph, np.float32(np.finfo(np.float32).min)
        mask = graph.input("attention_mask")
        wide = graph("Unsqueeze", graph("Unsqueeze", mask, _ints(1)), _ints(2))
        if self.pattern.attention == "eager":
            hidden = graph("Sub", np.float32(1), graph("Cast", wide, to=TensorProto.FLOAT))
            self.mask = graph("Mul", hidden, least)
            return
        batch, length = self._size(mask, 0), self._size(mask, 1)
        expanded = self._expand(wide, [batch, 1, self._size(self.ids, 1), length])
        hidden = graph("Sub", np.float32(1), graph("Cast", expanded, to=TensorProto.FLOAT))
        found = graph("Cast", graph("Cast", hidden, to=TensorProto.BOOL), to=TensorProto.BOOL)
        self.mask = graph("Where", found, least, hidden)

    def sublayer(self, name: str, x: str, units: int | None, core: Any) -> str:
        """LayerNorm(x + core(x)); of nothing kept the bias is left; absent it hands on `x`."""
        graph, hidden = self.graph, self.shape.hidden
        if units is None:  # the exporter leaves an addition of zero, which onnxruntime removes
            zero = numpy_helper.from_array(np.zeros(1, np.float32))
            return graph("Add", graph("ConstantOfShape", _ints(), value=zero), x)
        made = core(name, x, units) if units else graph.weight(f"{name}.output.bias", hidden)
        return graph.norm(f"{name}.norm", graph("Add", made, x), hidden, self.shape.epsilon)

    def attention(self, name: str, x: str, heads: int) -> str:
        """Self-attention of so many heads, with its output projection."""
        graph, shape = self.graph, self.shape
        width = heads * shape.head_size
        batch = self._size(x, 0)
        split = [
            graph(
                "Reshape",
                graph.linear(f"{name}.input.{number}", x, shape.hidden, width),
                self._dims([batch, -1, heads, shape.head_size]),
            )
            for number in range(3)
        ]
        query, value = (graph("Transpose", split[number], perm=[0, 2, 1, 3]) for number in (0, 2))
        key = graph("Transpose", split[1], perm=[0, 2, 3, 1])
        scores = self._scores(query, key)
        shares = graph("Softmax", graph("Add", scores, self.mask), axis=-1)
        mixed = graph("Transpose", graph("MatMul", shares, value), perm=[0, 2, 1, 3])
        joined = graph("Reshape", mixed, self._dims([*self._joined(x, mixed, batch), width]))
        return graph.linear(f"{name}.output", joined, width, shape.hidden)

    def ffn(self, name: str, x: str, neurons: int) -> str:
        """Two linear maps with the activation between them."""
        hidden = self.shape.hidden
        inner = self._activation(
            self.shape.activation, self.graph.linear(f"{name}.input.0", x, hidden, neurons)
        )
        return self.graph.linear(f"{name}.output", inner, neurons, hidden)

    def classifier(self, x: str, width: int) -> str:
        """Logits from the first token."""
        first = self.graph("Gather", x, np.int64(0), axis=1)
        inner = self._gemm("classifier.inner", first, self.shape.hidden, width)
        return self._gemm("classifier.outer", self._activation(self.pattern.classifier, inner), width, LABELS)

    def _gemm(self, name: str, x: str, size_in: int, size_out: int) -> str:
        weight = self.graph.weight(f"{name}.weight", size_out, size_in)
        return self.graph("Gemm", x, weight, self.graph.weight(f"{name}.bias", size_out), transB=1)

    def _activation(self, kind: str, x: str) -> str:
        graph = self.graph
        if kind != "gelu":
            return graph({"tanh": "Tanh", "relu": "Relu"}[kind], x)
        error = graph("Erf", graph("Div", x, np.float32(np.sqrt(2))))
        return graph("Mul", graph("Mul", x, graph("Add", error, np.float32(1))), np.float32(0.5))

    def _scores(self, query: str, key: str) -> str:
        """Scaled products: of SDPA both factors are scaled by a number that is computed anew, else the product is."""
        graph = self.graph
        if self.pattern.attention == "eager":
            return graph("Div", graph("MatMul", query, key), np.float32(np.sqrt(self.shape.head_size)))
        size = graph("Slice", graph("Shape", query), _ints(-1), _ints(np.iinfo(np.int64).max))
        root = graph("Sqrt", graph("Cast", size, to=TensorProto.FLOAT))
        scale = graph("Cast", graph("Div", np.ones(1, np.float32), root), to=TensorProto.FLOAT)
        return graph("MatMul", *(graph("Mul", factor, graph("Sqrt", scale)) for factor in (query, key)))

    def _joined(self, x: str, mixed: str, batch: str) -> list[str | int]:
        """Batch and length of the heads joined again: each family asks another tensor for them."""
        if self.pattern.attention == "eager":
            return [self._size(mixed, 0), self._size(mixed, 1)]
        return [batch, -1] if self.pattern.length_from == "words" else [batch, self._size(x, 1)]

    def _types(self, length: str) -> str | None:
        graph = self.graph
        if self.pattern.types == "input":
            return graph.input("token_type_ids")
        if self.pattern.types is None:
            return None
        zeros = self._first(np.zeros((1, self.shape.positions), np.int64), length)
        return self._expand(zeros, [self._size(self.ids, 0), length])

    def _positions(self, length: str) -> str:
        """0, 1, 2, ... or, counted, as RoBERTa has them: tokens counted from the padding token's number on."""
        graph, padding = self.graph, np.int64(self.shape.padding)
        if not self.pattern.positions_counted:
            return self._first(np.arange(self.shape.positions, dtype=np.int64)[None], length)
        real = graph("Cast", graph("Not", graph("Equal", self.ids, padding)), to=TensorProto.INT32)
        count = graph("Mul", graph("CumSum", real, np.int32(1)), real)
        return graph("Add", graph("Cast", count, to=TensorProto.INT64), padding)

    def _size(self, x: str, axis: int) -> str:
        if (x, axis) not in self.sizes:
            self.sizes[x, axis] = self.graph("Gather", self.graph("Shape", x), np.int64(axis), axis=0)
        return self.sizes[x, axis]

    def _first(self, row: NDArray[np.int64], length: str) -> str:
        """The first `length` columns of `row` (1, columns)."""
        end = self.graph("Unsqueeze", length, _ints(0))
        return self.graph("Slice", row, _ints(0), end, _ints(1), _ints(1))

    def _dims(self, sizes: Sequence[str | int]) -> str:
        """A shape out of numbers and scalar tensors."""
        parts = [
            self.graph("Unsqueeze", size, _ints(0)) if isinstance(size, str) else _ints(size)
            for size in sizes
        ]
        return self.graph("Concat", *parts, axis=0)

    def _expand(self, x: str, sizes: Sequence[str | int]) -> str:
        """`x` repeated to a shape, in which the exporter looks for -1 even where there is none."""
        graph = self.graph
        dims = graph("Reshape", self._dims(sizes), _ints(-1))
        ones = graph("ConstantOfShape", graph("Shape", dims), value=numpy_helper.from_array(_ints(1)))
        unknown = graph("Equal", dims, graph("Mul", ones, np.int64(-1)))
        return graph("Expand", x, graph("Where", unknown, ones, dims))


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)

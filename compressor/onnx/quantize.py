"""Smaller numbers for an exported graph, with onnxruntime's own tools: int8, dynamic or static, and fp16."""

from __future__ import annotations

import io
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    create_calibrator,
    quantize_dynamic,
    quantize_static,
    save_tensors_data,
)

Inputs = Mapping[str, NDArray[Any]]
Mode = Literal["dynamic", "static", "fp16"]
Calibration = Literal["minmax", "entropy", "percentile"]

CALIBRATORS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512, "num_quantized_bins": 128}),
    "percentile": (CalibrationMethod.Percentile, {"num_bins": 2048, "percentile": 99.99}),
}


@dataclass(frozen=True)
class Scheme:
    """One way to quantize. `exclude` names nodes of the graph that stay as they are.

    `symmetric` and `calibration` are of the activations of `static`; `reduce_range` (7-bit weights) keeps CPUs
    without VNNI from overflowing their 16-bit sums.
    """

    mode: Mode = "dynamic"
    operators: tuple[str, ...] = ("MatMul", "Gather")
    per_channel: bool = True
    symmetric: bool = False
    calibration: Calibration = "minmax"
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """As variants are named: int8 or fp16."""
        return "fp16" if self.mode == "fp16" else "int8"


def quantize(source: Path, target: Path, scheme: Scheme, batches: Iterable[Inputs] = ()) -> None:
    """Write the quantized graph; `batches` are what `static` is calibrated with, read once and one by one."""
    if scheme.mode == "fp16":
        _to_fp16(source, target, scheme)
    elif scheme.mode == "dynamic":
        with _without_advice():
            _quantize_dynamic(source, target, scheme)
    else:
        with tempfile.TemporaryDirectory() as folder:
            ranges = calibrate(source, Path(folder) / "ranges.json", scheme, batches)
            quantize_with(source, target, scheme, ranges)


def _quantize_dynamic(source: Path, target: Path, scheme: Scheme) -> None:
    model, excluded = _own_weights(source), _excluded(scheme)
    options = {"reduce_range": scheme.reduce_range, "weight_type": QuantType.QInt8}
    stacked = (
        [name for name in _of_stacked_weights(source) if name not in excluded] if scheme.per_channel else []
    )
    quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(scheme.operators),
        per_channel=scheme.per_channel,
        nodes_to_exclude=[*excluded, *stacked],
        **options,
    )
    if stacked and "MatMul" in scheme.operators:
        quantize_dynamic(
            target, target, op_types_to_quantize=["MatMul"], nodes_to_quantize=stacked, **options
        )


def _of_stacked_weights(source: Path) -> list[str]:
    """Products with several matrices at once (persistent vectors, one a head), which have no int8 by channel."""
    graph = onnx.load(source, load_external_data=False).graph
    stacks = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 2}
    return [n.name for n in graph.node if n.op_type == "MatMul" and stacks & set(n.input)]


def _own_weights(source: Path) -> Path | onnx.ModelProto:
    """The graph with a copy of its own for every Gemm that shares its weights with another node.

    onnxruntime turns a Gemm's weights round where they are stored, whoever else reads them (tied embeddings).
    """
    model = onnx.load(source)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    shared = [
        n for n in graph.node if n.op_type == "Gemm" and n.input[1] in stored and readers[n.input[1]] > 1
    ]
    for node in shared:
        own = graph.initializer.add()
        own.CopyFrom(stored[node.input[1]])
        own.name = node.input[1] = f"{node.input[1]}_of_{node.name}"
    return model if shared else source


def quantize_with(source: Path, target: Path, scheme: Scheme, ranges: Path) -> None:
    """Write the statically quantized graph (QDQ) for activations of known `ranges` (see `calibrate`).

    Products of two activations (attention scores) stay in fp32: int8 costs most there and gains least.
    """
    with _without_advice():
        quantize_static(
            source,
            target,
            None,
            op_types_to_quantize=list(scheme.operators),
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            activation_type=QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*_excluded(scheme), *_without_weights(source)],
            calibrate_method=CALIBRATORS[scheme.calibration][0],
            extra_options={
                "ActivationSymmetric": scheme.symmetric,
                "OpTypesToExcludeOutputQuantization": list(scheme.operators),
            },
            calibration_cache_path=ranges,
        )
    _spare_other_readers(target)


def calibrate(source: Path, target: Path, scheme: Scheme, batches: Iterable[Inputs]) -> Path:
    """Ranges of all activations over `batches`, written to `target` (json); memory holds those of one batch."""
    method, options = CALIBRATORS[scheme.calibration]
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            source,
            list(scheme.operators),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=method,
            extra_options=options | {"symmetric": scheme.symmetric},
        )
        with redirect_stdout(io.StringIO()):  # they print as they go
            for batch in batches:
                calibrator.collect_data(_Reader(batch))
            save_tensors_data(calibrator.compute_data(), target)
    return target


def _excluded(scheme: Scheme) -> list[str]:
    """The nodes to leave out, also by the names they get: onnxruntime first splits a Gemm into MatMul and Add."""
    return [*scheme.exclude, *(f"{name}_MatMul" for name in scheme.exclude)]


def _without_weights(source: Path) -> list[str]:
    """The graph's products of two activations: `MatMulConstBOnly` keeps only `quantize_dynamic` from them."""
    graph = onnx.load(source, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [n.name for n in graph.node if n.op_type == "MatMul" and not constants & set(n.input)]


def _spare_other_readers(path: Path) -> None:
    """Let only the quantized products read rounded activations, and residual sums and the like the true ones.

    onnxruntime gives everything that reads a tensor the rounded values, once one reader is quantized: errors then
    travel along the residual stream from layer to layer.
    """
    model = onnx.load(path)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    rounded = {name: node for name, node in makers.items() if node.op_type == "DequantizeLinear"}
    products = [n for n in graph.node if n.op_type == "MatMul" and set(n.input) <= set(rounded)]
    true = {n.input[0]: makers[rounded[n.input[0]].input[0]].input[0] for n in products}
    spared = {id(n) for n in products}
    for node in graph.node:
        if id(node) not in spared:
            node.input[:] = [true.get(name, name) for name in node.input]
    onnx.save(model, path)


class _Reader(CalibrationDataReader):
    def __init__(self, batch: Inputs) -> None:
        self.batches = iter([{**batch}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def _to_fp16(source: Path, target: Path, scheme: Scheme) -> None:
    """Weights and activations in half precision; inputs and outputs of the graph stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(
        onnx.load(source), keep_io_types=True, node_block_list=list(scheme.exclude)
    )
    onnx.save(model, target)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Drop onnxruntime's advice to run a symbolic-shape pass first, which changes nothing here."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)

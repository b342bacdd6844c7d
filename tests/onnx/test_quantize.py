"""Quantized graphs: close to what they came from, smaller, calibrated on a stream, and with nodes left out."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compressor.errors import UserError
from compressor.models.architecture import structure_of
from compressor.models.slicing import slice_model
from compressor.onnx.export import export_onnx
from compressor.onnx.graph import describe_graph, matching_nodes
from compressor.onnx.quantize import CALIBRATORS, Scheme, quantize
from compressor.onnx.runtime import OnnxModel
from tests.zoo import CONFIGS, padded_batch, random_structure, tiny_model

SCHEMES = {
    "dynamic": Scheme(),
    "dynamic-per-tensor": Scheme(per_channel=False),
    "dynamic-reduced": Scheme(reduce_range=True),
    "static": Scheme("static"),
    "static-symmetric": Scheme("static", symmetric=True),
    "static-entropy": Scheme("static", calibration="entropy"),
    "static-percentile": Scheme("static", calibration="percentile"),
    "fp16": Scheme("fp16"),
}
CLOSE = {"fp16": 2e-2}


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A pruned tiny BERT as ONNX."""
    return export("bert", tmp_path / "model.onnx")


def export(family: str, path: Path) -> Path:
    model = tiny_model(family)
    export_onnx(slice_model(model, random_structure(structure_of(model), 2)), "text-classification", 18, path)
    return path


def batches(family: str = "bert", count: int = 8) -> Iterator[dict[str, Any]]:
    """Batches of different lengths."""
    for seed in range(count):
        yield {k: v.numpy() for k, v in padded_batch(family, batch=2, length=7 + seed % 3, seed=seed).items()}


PAIRS = [("bert", scheme) for scheme in SCHEMES] + [
    (f, s) for f in CONFIGS if f != "bert" for s in ("static", "fp16") if (f, s) != ("xlnet", "fp16")
]


@pytest.mark.parametrize(("family", "scheme"), PAIRS)
def test_every_scheme_is_close(family: str, scheme: str, tmp_path: Path) -> None:
    source, target = export(family, tmp_path / "model.onnx"), tmp_path / "small.onnx"
    filters = list(logging.getLogger().filters)
    quantize(source, target, SCHEMES[scheme], batches(family))
    assert logging.getLogger().filters == filters
    one, other = OnnxModel(source), OnnxModel(target)
    assert [i.type for i in one.session.get_inputs()] == [i.type for i in other.session.get_inputs()]
    for batch in batches(family, 3):
        apart = np.abs(one(batch)["logits"] - other(batch)["logits"]).max()
        assert apart < CLOSE.get(scheme, 0.5)
    operators = describe_graph(target)["operators"]
    wanted = {"dynamic": "MatMulInteger", "static": "QuantizeLinear", "fp16": "Cast"}
    assert operators[wanted[SCHEMES[scheme].mode]] > 0
    if scheme == "fp16":
        assert target.stat().st_size < 0.8 * source.stat().st_size


@pytest.mark.parametrize("calibration", CALIBRATORS)
def test_calibration_reads_a_stream_once_and_keeps_no_batch(calibration: Any, exported: Path) -> None:
    alive, most = [0], [0]

    class Batch(dict[str, Any]):
        def __init__(self, values: dict[str, Any]) -> None:
            super().__init__(values)
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    target = exported.with_name("static.onnx")
    quantize(exported, target, Scheme("static", calibration=calibration), map(Batch, batches(count=20)))
    assert most[0] <= 2
    assert not list(exported.parent.glob("*augmented*"))


def test_ranges_follow_the_calibration(exported: Path) -> None:
    """Fewer examples, other ranges, other outputs: the data count."""
    outputs = []
    for count in (1, 8):
        target = exported.with_name(f"{count}.onnx")
        quantize(exported, target, Scheme("static"), batches(count=count))
        outputs.append(OnnxModel(target)(next(batches()))["logits"])
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_excluded_nodes_stay_as_they_are(mode: Any, exported: Path) -> None:
    def quantized(exclude: list[str]) -> int:
        target = exported.with_name("small.onnx")
        quantize(exported, target, Scheme(mode, ("MatMul",), exclude=tuple(exclude)), batches())
        operators = describe_graph(target)["operators"]
        return operators.get("DynamicQuantizeLinear", 0) + operators.get("QuantizeLinear", 0)

    some, every = (matching_nodes([exported], [p]) for p in ("*layer.0*/MatMul*", "*"))
    assert 0 < len(some) < len(every)
    assert quantized([]) > quantized(some) > quantized(every) == 0


def test_only_the_products_with_weights_read_rounded_activations(exported: Path) -> None:
    """Residual sums, norms and attention scores get the true values: else errors add up from layer to layer."""
    target = exported.with_name("small.onnx")
    quantize(exported, target, Scheme("static", ("MatMul",)), batches())
    graph = onnx.load(target).graph
    makers = {name: node for node in graph.node for name in node.output}
    rounded = {name for name, node in makers.items() if node.op_type == "DequantizeLinear"}
    readers = [node for node in graph.node if rounded & set(node.input)]
    assert readers
    for node in readers:
        assert node.op_type == "MatMul"
        weight = makers[node.input[1]].input[0]
        assert weight not in makers  # a constant


def test_a_pattern_that_fits_no_node_is_refused(exported: Path) -> None:
    with pytest.raises(UserError, match="no node of the graph fits 'layer99'"):
        matching_nodes([exported], ["layer99"])

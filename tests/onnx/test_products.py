"""Groups of what can be quantized: found, timed, and left out as if they had never been quantized."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor.onnx.export import export_onnx
from compressor.onnx.products import group_times, groups, leave_out
from compressor.onnx.quantize import Scheme, calibrate, quantize, quantize_with
from compressor.onnx.runtime import OnnxModel
from tests.zoo import LAYERS, padded_batch, tiny_model

Arrays = dict[str, np.ndarray]
MATMUL, EVERYTHING = ("MatMul",), ("MatMul", "Gather")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("products") / "model.onnx"
    export_onnx(tiny_model("bert"), "text-classification", 18, path)
    return path


@pytest.fixture(scope="module")
def batch() -> Arrays:
    return {name: values.numpy() for name, values in padded_batch("bert", batch=2, length=9).items()}


def small(exported: Path, scheme: Scheme, batch: Arrays) -> Path:
    target, ranges = exported.with_name("small.onnx"), exported.with_name("ranges.json")
    if scheme.mode == "dynamic":
        quantize(exported, target, scheme)
    else:
        ranges.exists() or calibrate(exported, ranges, Scheme("static"), [batch])
        quantize_with(exported, target, scheme, ranges)
    return target


def test_what_reads_the_same_is_one_group(exported: Path) -> None:
    found = groups(exported, MATMUL)
    assert [len(group.nodes) for group in found] == [3, 1, 1, 1] * LAYERS + [1, 1]
    assert all(name.endswith(("query/MatMul", "key/MatMul", "value/MatMul")) for name in found[0].nodes)
    assert len(groups(exported, EVERYTHING)) == len(found) + 3  # words, positions, types
    assert len(groups(exported, ("Gather",))) == 3


@pytest.mark.parametrize(("mode", "operators"), [("dynamic", EVERYTHING), ("static", MATMUL)])
def test_leaving_out_is_never_having_quantized(mode, operators, exported: Path, batch: Arrays) -> None:
    quantized = onnx.load(small(exported, Scheme(mode, operators), batch))
    every = groups(exported, operators)
    for left_out in (every[:1], every[2:5], every[-2:], every[1:], every):
        nodes = tuple(node for group in left_out for node in group.nodes)
        direct = small(exported, Scheme(mode, operators, exclude=nodes), batch)
        spliced = exported.with_name("spliced.onnx")
        onnx.save(leave_out(onnx.load(exported), quantized, nodes), spliced)
        onnx.checker.check_model(spliced)
        assert np.array_equal(OnnxModel(spliced)(batch)["logits"], OnnxModel(direct)(batch)["logits"])
    assert np.allclose(OnnxModel(spliced)(batch)["logits"], OnnxModel(exported)(batch)["logits"], atol=1e-5)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_every_group_has_a_time_before_and_after(mode, exported: Path, batch: Arrays) -> None:
    """Names in the profile are onnxruntime's: a group without a time would never be left out."""
    every = groups(exported, MATMUL)
    target = small(exported, Scheme(mode, MATMUL), batch)
    fp32, int8 = (group_times(path, batch, 1, every) for path in (exported, target))
    assert min(fp32) > 0
    assert min(int8) > 0
    reading = [g for g in every if g.reads.endswith("LayerNormalization_output_0")]
    assert len(reading) == 2 * LAYERS

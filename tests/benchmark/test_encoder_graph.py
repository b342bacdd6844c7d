"""Graphs built directly are those that the exporter makes: the same operators, the same numbers."""

from collections import Counter

import numpy as np
import onnx
import pytest

from compressor.benchmark.encoder_graph import ROWS, EncoderShape, encoder_graph
from compressor.benchmark.latency_setting import shape_of, widths_of
from compressor.models.architecture import architecture_of, structure_of
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.onnx.export import export_onnx
from compressor.onnx.quantize import Scheme, quantize
from compressor.onnx.runtime import OnnxModel
from tests.zoo import TIMED, padded_batch, random_structure, tiny_model

CLASSIFIERS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
    "camembert": ("classifier.dense", "classifier.out_proj"),
    "electra": ("classifier.dense", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "classifier"),
}


def weights_of(model):
    """A model's weights by the names that the builder asks for."""
    architecture = architecture_of(model.config)
    base, stack = model.base_model, architecture.stacks[0]
    paths = {
        "embeddings.norm": (base, architecture.embeddings_norm),
        "embeddings.projection": (base, architecture.embeddings_projection),
    }
    for name, path in zip(("words", "positions", "types"), architecture.embeddings, strict=False):
        paths[f"embeddings.{name}"] = (base, path)
    inner, outer = CLASSIFIERS[model.config.model_type]
    paths |= {"classifier.inner": (model, inner), "classifier.outer": (model, outer)}
    for number, layer in enumerate(architecture.layers(model, stack)):
        for table in stack.sublayers:
            prefix = f"layer.{number}.{table.name}"
            paths |= {f"{prefix}.output": (layer, table.output), f"{prefix}.norm": (layer, table.norm)}
            for index, path in enumerate(table.inputs):
                paths[f"{prefix}.input.{index}"] = (layer, path)

    def get(name, *shape):
        key, _, kind = name.rpartition(".")
        owner, path = paths.get(name) or paths[key]
        module = owner.get_submodule(path)
        values = (module.weight if name in paths else getattr(module, kind)).detach().numpy()
        if kind == "weight" and values.ndim == 2 and not key.startswith("classifier"):
            values = values.T
        if name == "embeddings.words":
            values = np.resize(values, (ROWS, values.shape[1]))
        return np.ascontiguousarray(values)

    return get


def everything(dense: Structure) -> Structure:
    """Constant, absent and a part of both kinds of sub-layer."""
    kept = {
        (0, "attention"): SubLayer(),
        (0, "ffn"): SubLayer((1, 2, 5)),
        (1, "attention"): SubLayer(absent=True),
        (1, "ffn"): SubLayer(),
        (2, "attention"): SubLayer((0, 3)),
        (2, "ffn"): SubLayer(absent=True),
    }
    return dense.keeping({("encoder", layer, name): sub for (layer, name), sub in kept.items()})


STRUCTURES = {
    "dense": lambda dense: dense,
    "everything": everything,
    "hidden": lambda dense: random_structure(dense, 3, hidden=True),
}


def operators(path):
    """How often each operator stands in a file; how constants are written down is left out."""
    nodes = onnx.load(path).graph.node
    return Counter(node.op_type for node in nodes if node.op_type not in ("Constant", "Identity"))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("family", TIMED)
def test_built_is_exported(family, structure, tmp_path):
    model = tiny_model(family)
    small = slice_model(model, STRUCTURES[structure](structure_of(model)))
    export_onnx(small, "text-classification", 18, tmp_path / "exported.onnx")
    shape = shape_of(small.config)
    built = encoder_graph(shape, widths_of(structure_of(small)), weights_of(small))
    onnx.checker.check_model(built, full_check=True)
    onnx.save(built, tmp_path / "built.onnx")

    assert operators(tmp_path / "built.onnx") == operators(tmp_path / "exported.onnx")
    inputs = {name: values.numpy() for name, values in padded_batch(family).items()}
    ours, theirs = (OnnxModel(tmp_path / f"{kind}.onnx")(inputs) for kind in ("built", "exported"))
    assert np.abs(ours["logits"] - theirs["logits"]).max() < 1e-5

    for kind in ("built", "exported"):
        quantize(tmp_path / f"{kind}.onnx", tmp_path / f"{kind}-int8.onnx", Scheme())
    assert operators(tmp_path / "built-int8.onnx") == operators(tmp_path / "exported-int8.onnx")


def test_no_layer_at_all_and_hidden_states(tmp_path):
    shape = EncoderShape("bert", 2, 16, 2, 8, 32, embedding=16, positions=64, classifier=None)
    onnx.save(encoder_graph(shape, []), tmp_path / "none.onnx")
    model = OnnxModel(tmp_path / "none.onnx")
    assert model.inputs == ["input_ids", "token_type_ids"]
    ids = np.ones((2, 5), np.int64)
    assert model({"input_ids": ids, "token_type_ids": 0 * ids})["last_hidden_state"].shape == (2, 5, 16)


def test_a_weight_of_the_wrong_shape_is_refused():
    shape = EncoderShape("bert", 1, 16, 2, 8, 32, embedding=16, positions=64, classifier=16)
    with pytest.raises(ValueError, match=r"embeddings\.words is \(3,\), not \(1024, 16\)"):
        encoder_graph(shape, [shape.dense], lambda name, *size: np.zeros(3, np.float32))


def test_relu_is_exported_as_built(tmp_path):
    model = tiny_model("bert", hidden_act="relu")
    export_onnx(model, "text-classification", 18, tmp_path / "exported.onnx")
    shape = shape_of(model.config)
    onnx.save(encoder_graph(shape, [shape.dense] * shape.layers), tmp_path / "built.onnx")
    assert operators(tmp_path / "built.onnx") == operators(tmp_path / "exported.onnx")

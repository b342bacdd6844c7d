"""The contract over (architecture, task, structure): gated == sliced == reloaded == ONNX, in float32.

`make test` runs a pairwise part of the matrix, `make test-all` all of it.
"""

import itertools
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compressor.benchmark.latency_setting import shape_of
from compressor.errors import GateError, UserError
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.onnx.export import check_parity, export_onnx, parity
from compressor.onnx.graph import describe_graph
from compressor.onnx.quantize import Scheme, quantize
from compressor.onnx.runtime import OnnxModel
from compressor.pruning.base import METHODS, method_class
from compressor.pruning.cofi.fold import fold_gates
from compressor.pruning.cofi.gates import LearnedGates
from compressor.pruning.cofi.masking import Masking
from compressor.pruning.fold import fold_constants, fold_dead_units
from compressor.pruning.head_gates.gates import BinaryGates, Gating
from compressor.pruning.layer_drop import without
from compressor.pruning.movement.masks import Masks
from tests.pruning.gated import KINDS
from tests.pruning.gated import scatter as scatter_gates
from tests.pruning.masked import movement, scatter
from tests.pruning.speed.made import database
from tests.zoo import (
    CONFIGS,
    CUTTABLE,
    FFN,
    HEAD_CLASSES,
    HEADS,
    HIDDEN,
    LAYERS,
    TIMED,
    logits,
    padded_batch,
    random_structure,
    tiny_model,
)


def nothing_kept(dense: Structure) -> Structure:
    """Every sub-layer constant in one layer, absent in another, the third dropped."""
    first, second, _ = dense.layers
    kept = {("encoder", 0, name): SubLayer() for name in first.sublayers}
    kept |= {("encoder", 1, name): SubLayer(absent=name == "attention") for name in second.sublayers}
    return Structure(dense.sizes, dense.keeping(kept).layers[:2])


STRUCTURES = {
    "dense": lambda dense: dense,
    "nothing": nothing_kept,
    "one-head": lambda d: d.keeping(
        {(la.stack, la.index, n): SubLayer(s.kept[1:2]) for la, n, s in d.each()}
    ),
    "random-1": lambda dense: random_structure(dense, 1),
    "random-2": lambda dense: random_structure(dense, 2),
    "random-hidden": lambda dense: random_structure(dense, 3, hidden=True),
}
OF_LAYERS = {"dense", "random-1", "random-2"}
"""Those that a family whose layers are all one can have."""


def possible(family: str, shape: str) -> bool:
    return family in CUTTABLE or shape in OF_LAYERS


MATRIX = [c for c in itertools.product(CONFIGS, HEAD_CLASSES, STRUCTURES) if possible(c[0], c[2])]
# Every pair of two of the three is there at least once.
PAIRWISE = {
    (f, t, s)
    for (i, f), (j, t), (k, s) in itertools.product(*map(enumerate, (CONFIGS, HEAD_CLASSES, STRUCTURES)))
    if (i + j + k) % 3 == 0 and possible(f, s)
}


@pytest.mark.parametrize(
    ("family", "task", "shape"),
    [pytest.param(*c, marks=[] if c in PAIRWISE else pytest.mark.slow) for c in MATRIX],
)
def test_gated_sliced_reloaded_onnx(family: str, task: str, shape: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(family, task), padded_batch(family)
    structure = STRUCTURES[shape](structure_of(model))
    with Gates(model, structure):
        gated = logits(model, inputs)
    checkpoint.save(slice_model(model, structure), tmp_path)
    small = checkpoint.load(tmp_path)
    torch.testing.assert_close(logits(small, inputs), gated, atol=1e-5, rtol=0)
    export_onnx(small, task, 18, tmp_path / "model.onnx")
    assert parity(small, tmp_path / "model.onnx")["max_abs_error"] < 1e-4


def pruned_by_movement(model: Any, inputs: Any) -> tuple[torch.Tensor, Structure]:
    """Random scores stand for learned ones."""
    masks = Masks(model, movement(attention_block=[HIDDEN // HEADS, HIDDEN // HEADS]))
    scatter(masks, seed=1, mean=-2.2, spread=1.0)
    masked = logits(model, inputs)
    masks.fold()
    return masked, fold_dead_units(model)


def pruned_by_layer_drop(model: Any, inputs: Any) -> tuple[torch.Tensor, Structure]:
    structure = without(structure_of(model), [1])
    with Gates(model, structure):
        return logits(model, inputs), structure


def pruned_by_heads(model: Any, inputs: Any) -> tuple[torch.Tensor, Structure]:
    structure = structure_of(model).keeping({("encoder", 0, "attention"): SubLayer((1, 2))})
    fold_constants(model, structure)
    with Gates(model, structure):
        return logits(model, inputs), structure


def pruned_by_cofi(model: Any, inputs: Any) -> tuple[torch.Tensor, Structure]:
    """Random soft gates of all five kinds stand for learned ones."""
    gates = LearnedGates(structure_of(model), KINDS, lambda _: 0.0, seed=0)
    masking = Masking(model, gates)
    scatter_gates(gates, seed=2)
    gated, values = logits(model, inputs), gates.decided()
    masking.remove()
    return gated, fold_gates(model, values)


def pruned_by_speed(model: Any, inputs: Any) -> tuple[torch.Tensor, Structure]:
    """Least-squares weights at made-up sizes, one sub-layer constant and one absent."""
    with TemporaryDirectory() as folder:
        made = database(model, Path(folder), model.config.model_type)
        sizes = [1, 13, 0, FFN, HEADS, None]
        choice = dict(zip(made.places, sizes, strict=True))
        with made.holding(choice):
            held = logits(model, inputs)
        made.apply(choice)
        return held, made.structure_of(choice)


def pruned_by_head_gates(model: Any, inputs: Any) -> tuple[torch.Tensor, Structure]:
    """Decided gates with output scaling; one layer loses all its heads."""
    gating = Gating(model, BinaryGates(model, 0.0), scale_outputs=True)
    with torch.no_grad():
        for logits_ in gating.gates.logits:
            logits_.copy_(torch.tensor([1.0, -1.0, 1.0, 1.0]))
        gating.gates.logits[1].fill_(-1.0)
    return logits(model, inputs), gating.fold()[0]


PRUNED = {
    "movement": pruned_by_movement,
    "cofi": pruned_by_cofi,
    "layer-drop": pruned_by_layer_drop,
    "greedy": pruned_by_layer_drop,
    "heads": pruned_by_heads,
    "speed": pruned_by_speed,
    "head-gates": pruned_by_head_gates,
}
"""What each method leaves behind: the logits before anything is cut, and the structure."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("task", HEAD_CLASSES)
def test_every_method_on_every_family_and_task(method: str, family: str, task: str, tmp_path: Path) -> None:
    """What a method leaves behind slices and exports exactly."""
    model, inputs = tiny_model(family, task), padded_batch(family)
    if family not in CUTTABLE and not method_class(method).whole_layers:
        with pytest.raises(
            UserError, match=f"{method}: the layers of {family} share their weights.*take one of bert"
        ):
            method_class(method).model_construct(method=method).check_family(model.config)
        return
    if method == "speed" and family not in TIMED:
        with pytest.raises(UserError, match=f"no latency tables of the family '{family}'"):
            shape_of(model.config)
        return
    masked, structure = PRUNED[method](model, inputs)
    with Gates(model, structure):
        torch.testing.assert_close(logits(model, inputs), masked, atol=1e-5, rtol=0)
    checkpoint.save(slice_model(model, structure), tmp_path)
    small = checkpoint.load(tmp_path)
    torch.testing.assert_close(logits(small, inputs), masked, atol=1e-5, rtol=0)
    if task == "text-classification":
        export_onnx(small, task, 18, tmp_path / "model.onnx")
        check_parity(small, tmp_path / "model.onnx", 1e-4)


def test_the_graph_is_really_smaller(tmp_path: Path) -> None:
    model = tiny_model("bert")
    structure = structure_of(model).keeping(
        {("encoder", i, "attention"): SubLayer((0, 2)) for i in range(LAYERS)}
        | {("encoder", i, "ffn"): SubLayer(tuple(range(7 + i))) for i in range(LAYERS)}
    )
    small = slice_model(model, structure)
    export_onnx(small, "text-classification", 18, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    shapes = sorted(tuple(t.dims) for t in graph.initializer if len(t.dims) == 2 and "MatMul" in t.name)
    width = HIDDEN // HEADS * 2
    ffn = [(HIDDEN, 7 + i) for i in range(LAYERS)] + [(7 + i, HIDDEN) for i in range(LAYERS)]
    assert shapes == sorted(ffn + [(HIDDEN, width)] * 3 * LAYERS + [(width, HIDDEN)] * LAYERS)
    assert describe_graph(tmp_path / "model.onnx")["elements"] < sum(p.numel() for p in model.parameters())
    assert FFN not in {d for shape in shapes for d in shape}


def test_a_wrong_graph_fails(tmp_path: Path) -> None:
    model = tiny_model("bert")
    export_onnx(model, "text-classification", 18, tmp_path / "model.onnx")
    with torch.no_grad():
        model.classifier.bias += 0.01
    with pytest.raises(GateError, match="differs from PyTorch"):
        check_parity(model, tmp_path / "model.onnx", 1e-4)


def test_nan_is_not_parity(tmp_path: Path) -> None:
    model = tiny_model("bert")
    export_onnx(model, "text-classification", 18, tmp_path / "model.onnx")
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(GateError):
        check_parity(model, tmp_path / "model.onnx", 1e-4)


def test_a_model_left_in_training_mode_exports_without_dropout(tmp_path: Path) -> None:
    model = tiny_model("bert").train()
    export_onnx(model, "text-classification", 18, tmp_path / "model.onnx")
    assert parity(model.eval(), tmp_path / "model.onnx")["max_abs_error"] < 1e-4


def test_every_application_of_a_shared_layer_becomes_int8_and_its_weights_are_stored_once(
    tmp_path: Path,
) -> None:
    files = {}
    for layers in (2, 4):
        files[layers] = tmp_path / f"{layers}.onnx"
        export_onnx(
            tiny_model("albert", num_hidden_layers=layers), "text-classification", 18, tmp_path / "fp32.onnx"
        )
        quantize(tmp_path / "fp32.onnx", files[layers], Scheme())
    found = {layers: describe_graph(file) for layers, file in files.items()}
    assert [found[layers]["operators"]["MatMulInteger"] for layers in (2, 4)] == [
        1 + 6 * 2 + 2,
        1 + 6 * 4 + 2,
    ]
    assert found[4]["elements"] == pytest.approx(found[2]["elements"], rel=0.01)


@pytest.mark.parametrize("family", CONFIGS)
def test_dynamic_int8_is_close_and_smaller(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    before = list(logging.getLogger().filters)
    small = slice_model(model, random_structure(structure_of(model), 2))
    export_onnx(small, "text-classification", 18, tmp_path / "model.onnx")
    quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", Scheme())
    assert logging.getLogger().filters == before
    inputs = {k: v.numpy() for k, v in padded_batch(family).items()}
    one, other = OnnxModel(tmp_path / "model.onnx")(inputs), OnnxModel(tmp_path / "int8.onnx")(inputs)
    assert np.abs(one["logits"] - other["logits"]).max() < 0.3
    operators = describe_graph(tmp_path / "int8.onnx")["operators"]
    assert operators["MatMulInteger"] > 0

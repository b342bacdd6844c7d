"""`evaluate` and `inspect`: checkpoints, exported models, bare ONNX files, and all that is none of these."""

import shutil
import sys
from dataclasses import replace
from importlib import metadata

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from compressor.onnx.quantize import Scheme, quantize
from compressor.views.inspect import matmul_widths
from tests.benchmark.graphs import encoder
from tests.cli.conftest import LABELS, TEXTS
from tests.zoo import tiny_model

PRUNED = {
    ("encoder", 0, "attention"): SubLayer((1, 3)),
    ("encoder", 0, "ffn"): SubLayer(tuple(range(10))),
    ("encoder", 1, "attention"): SubLayer(),
    ("encoder", 2, "ffn"): SubLayer(absent=True),
}


@pytest.fixture(scope="session")
def pruned(tmp_path_factory, tiny, tokenizer):
    """The tiny model pruned: folders of the gated and of the sliced checkpoint."""
    folder = tmp_path_factory.mktemp("pruned")
    model = checkpoint.load(tiny)
    structure = structure_of(model).keeping(PRUNED)
    checkpoint.save(model, folder / "gated", tokenizer, gates=structure)
    checkpoint.save(slice_model(checkpoint.load(tiny), structure), folder / "sliced", tokenizer)
    return folder


@pytest.fixture(scope="session")
def expected(tiny, tokenizer):
    """Accuracy computed by hand."""
    with torch.no_grad():
        logits = checkpoint.load(tiny)(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    right = [LABELS[found] == LABELS[n % 2] for n, found in enumerate(logits.argmax(-1).tolist())]
    return f"accuracy {100 * np.mean(right):.2f} % primary: what gates judge"


def test_evaluate_a_checkpoint_and_its_export(call, recipe, tiny, exported, expected):
    for folder, runtime in ((tiny, "PyTorch 2."), (exported, "onnxruntime 1.")):
        said = call("evaluate", folder, "--recipe", recipe)
        assert said.code == 0, said.err
        assert said.rows[0].startswith(f"{folder} by {runtime}")
        assert said.rows[0].endswith("on 6 validation examples")
        assert expected in said.rows
        assert any(row.startswith("matthews") for row in said.rows)


def test_evaluate_runs_on_the_gpu_build_too(call, recipe, exported, monkeypatch):
    def version(package):
        if package == "onnxruntime":  # compressor[gpu] installs it under another name
            raise metadata.PackageNotFoundError(package)
        return known(package)

    known = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.delitem(sys.modules, "compressor.views.evaluate", raising=False)
    assert call("evaluate", exported, "--recipe", recipe).code == 0


def test_evaluate_holds_a_pruned_checkpoint_to_its_gates(call, recipe, pruned):
    gated = call("evaluate", pruned / "gated", "--recipe", recipe)
    sliced = call("evaluate", pruned / "sliced", "--recipe", recipe)
    assert gated.code == sliced.code == 0
    assert gated.rows[1:] == sliced.rows[1:]


def test_evaluate_takes_overrides(call, recipe, tiny):
    said = call(
        "evaluate", tiny, "--recipe", recipe, "--set", "task.limit.validation=3", "--set", "task.metric=f1"
    )
    assert said.rows[0].endswith("on 3 validation examples")
    assert next(row for row in said.rows if "primary" in row).startswith("F1")


@pytest.mark.parametrize("kind", ["tiny", "exported"])
def test_evaluate_refuses_labels_in_another_order(call, recipe, kind, request):
    folder = request.getfixturevalue(kind)
    said = call("evaluate", folder, "--recipe", recipe, "--set", "task.labels=[good, bad]")
    assert said.code == 2
    assert "labels are in another order (['bad', 'good'])" in said.err


def test_evaluate_takes_generic_labels_by_their_number(call, recipe, tiny, tmp_path, expected):
    folder = shutil.copytree(tiny, tmp_path / "generic")
    text = (folder / "config.json").read_text(encoding="utf-8")
    generic = text.replace('"bad"', '"LABEL_0"').replace('"good"', '"LABEL_1"')
    (folder / "config.json").write_text(generic, encoding="utf-8")
    assert expected in call("evaluate", folder, "--recipe", recipe).rows


def test_evaluate_refuses_what_has_no_such_head_or_no_tokenizer(call, recipe, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "other")
    for path in folder.glob("token*"):
        path.unlink()
    assert "holds no tokenizer" in call("evaluate", folder, "--recipe", recipe).err
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8").replace("BertForSequenceClassification", "BertModel")
    config.write_text(text, encoding="utf-8")
    said = call("evaluate", folder, "--recipe", recipe)
    assert said.code == 2
    assert "holds BertModel with the labels" in said.err
    assert "no head for text-classification" in said.err


@pytest.mark.parametrize("verb", ["evaluate", "inspect"])
def test_what_is_no_model_is_said_to_be_none(call, recipe, finished, tmp_path, verb):
    rest = ["--recipe", recipe] if verb == "evaluate" else []
    run = finished("run")
    said = call(verb, run, *rest)
    assert said.code == 2
    assert f"its released model is in {run / 'artifact'}" in said.err
    assert "there is nothing at" in call(verb, tmp_path / "gone", *rest).err
    assert "is not a checkpoint folder" in call(verb, tmp_path, *rest).err


def test_evaluate_wants_the_folder_of_a_graph(call, recipe, exported):
    said = call("evaluate", exported / "model.onnx", "--recipe", recipe)
    assert (said.code, "is a file; give a checkpoint folder" in said.err) == (2, True)


def test_inspect_a_dense_and_a_sliced_checkpoint(call, tiny, pruned):
    dense = call("inspect", tiny)
    assert dense.code == 0
    assert "0 ████████████ 4 of 4 ████████████ 40 of 40" in dense.rows
    sliced = call("inspect", pruned / "sliced")
    assert "0 ██████░░░░░░ 2 of 4 ███░░░░░░░░░ 10 of 40" in sliced.rows
    assert "1 constant ████████████ 40 of 40" in sliced.rows
    assert "2 ████████████ 4 of 4 absent" in sliced.rows
    assert "not sliced yet" not in sliced.out
    assert any(row.startswith("sliced density 4") for row in sliced.rows)


def test_inspect_shows_what_slicing_will_leave_and_says_so(call, pruned):
    gated = call("inspect", pruned / "gated")
    assert gated.code == 0
    assert "0 ██████░░░░░░ 2 of 4 ███░░░░░░░░░ 10 of 40" in gated.rows
    assert gated.rows[0].startswith("pruned, not sliced yet")
    assert not any(row.startswith("sliced density") for row in gated.rows)


def test_inspect_an_exported_model(call, exported):
    said = call("inspect", exported)
    assert said.code == 0
    assert "0 ████████████ 4 of 4 ████████████ 40 of 40" in said.rows
    assert "operators" in said.out
    assert "MatMul" in said.out


def test_inspect_an_exported_model_whose_layers_nobody_knows(call, exported, tmp_path):
    shutil.copy(exported / "model.onnx", tmp_path)
    said = call("inspect", tmp_path)
    assert said.code == 0
    assert said.rows[0].startswith("layers unknown:")
    assert "MatMul 48 40 3" in said.rows


def test_inspect_an_onnx_file(call, exported, tmp_path):
    onnx.save(encoder(["batch", 8], work=3), tmp_path / "any.onnx")
    said = call("inspect", tmp_path / "any.onnx")
    assert said.code == 0
    assert "MatMul 16 16 3" in said.rows
    assert any("input_ids [batch, 8]" in row for row in said.rows)
    quantize(exported / "model.onnx", tmp_path / "int8.onnx", Scheme(operators=("MatMul",)))
    assert "MatMulInteger 48 40 3" in call("inspect", tmp_path / "int8.onnx").rows


def test_widths_of_a_transposed_product():
    weight = numpy_helper.from_array(np.zeros((3, 5), np.float32), "w")
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "gemm", values[:1], values[1:], [weight])
    assert matmul_widths(graph) == {("Gemm", 5, 3): 1}


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_inspect_refuses_other_files(call, tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    said = call("inspect", tmp_path / "x.onnx")
    assert said.code == 2
    assert "is no ONNX file" in said.err


def test_similarity_of_layers(call, recipe, tiny, exported):
    for options in ((), ("--recipe", recipe)):
        said = call("inspect", tiny, "--similarity", *options)
        assert said.code == 0, said.err
        assert said.rows[0].split() == ["layer", "0", "1", "2", "3"]
        matrix = [[float(value) for value in said.rows[2 + i].split()[1:]] for i in range(4)]
        assert all(matrix[i][i] == 1.0 for i in range(4))
        assert np.allclose(matrix, np.transpose(matrix))
        assert ("docstrings" in said.out) == (not options)
    refused = call("inspect", exported / "model.onnx", "--similarity")
    assert refused.code == 2
    assert "needs a checkpoint folder" in refused.err


def test_inspect_says_what_shared_layers_mean(call, tmp_path):
    model = tiny_model("albert")
    dense = structure_of(model)
    checkpoint.save(slice_model(model, replace(dense, layers=dense.layers[:2])), tmp_path / "fewer")
    said = call("inspect", tmp_path / "fewer")
    assert said.code == 0, said.err
    assert "fewer layers are less to compute, not less to store" in " ".join(said.out.split())
    assert "layer removed" in said.out
    assert any(row.startswith("density of the layers 100") for row in said.rows)

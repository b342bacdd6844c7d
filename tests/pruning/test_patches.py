"""NoNorm and ReLU in place of LayerNorm and GELU: gradual, exact when folded, and still there after a reload."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.norms import AffineNorm
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure
from compressor.onnx.export import check_parity, export_onnx
from compressor.pruning.fold import fold_dead_units
from compressor.pruning.movement.patches import FadingActivation, FadingNorm
from compressor.training.trainer import train
from tests.pruning.masked import masked_model, part_of, scatter
from tests.training.test_training import rows, run_of
from tests.zoo import CUTTABLE, HIDDEN, LAYERS, logits, padded_batch, random_structure, tiny_model


def norm_with_statistics() -> tuple[FadingNorm, nn.LayerNorm]:
    torch.manual_seed(0)
    plain = nn.LayerNorm(16)
    nn.init.normal_(plain.weight, mean=1.0, std=0.2)
    nn.init.normal_(plain.bias, std=0.3)
    fading = FadingNorm(plain).train()
    for _ in range(20):
        fading(torch.randn(4, 7, 16) * 2 + 0.5)
    return fading, plain


def test_a_norm_begins_as_layer_norm_and_ends_affine() -> None:
    fading, plain = norm_with_statistics()
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(fading(x), plain(x), atol=5e-7, rtol=1e-6)
    fading.share = 0.0
    kept = fading.statistics.clone()
    ended = fading(x)
    assert torch.equal(fading.statistics, kept)  # nothing is learned at the end
    torch.testing.assert_close(fading.eval()(x), ended)
    assert torch.equal(fading.statistics, kept)  # nor in eval mode
    torch.testing.assert_close(fading.fixed()(x), ended, atol=1e-6, rtol=1e-6)
    assert (ended - plain(x)).abs().max() > 0.1
    mean, variance, count = kept.tolist()
    assert mean / count == pytest.approx(0.5, abs=0.2)
    assert variance / count == pytest.approx(4.0, abs=0.8)
    assert count == pytest.approx(1 - 0.99**21, rel=1e-4)


def test_statistics_are_running_means() -> None:
    fading = FadingNorm(nn.LayerNorm(8)).train()
    fading.share = 0.5
    x, expected = torch.randn(2, 3, 8), torch.zeros(3)
    for _ in range(3):
        fading(x)
        new = torch.tensor([x.mean(-1).mean(), x.var(-1, unbiased=False).mean(), 1.0])
        expected = new + 0.995 * (expected - new)
    torch.testing.assert_close(fading.statistics, expected)


def test_an_activation_fades_to_relu() -> None:
    fading, x = FadingActivation(nn.GELU()).train(), torch.randn(100)
    assert torch.equal(fading(x), nn.GELU()(x))
    fading.share = 0.25
    torch.testing.assert_close(fading(x), 0.25 * nn.GELU()(x) + 0.75 * x.relu())
    fading.share = 0.0
    assert torch.equal(fading(x), x.relu())
    fading.share = 1.0
    assert torch.equal(fading.eval()(x), x.relu())


def test_patches_reach_every_norm_and_activation_and_follow_the_steps() -> None:
    _, masks = masked_model(nonorm=0.5, relu=20)
    part = part_of(masks)
    assert len(part.patches.norms) == 1 + 2 * LAYERS
    assert len(part.patches.activations) == LAYERS
    for step, norm, activation in ((0, 1.0, 1.0), (10, 0.8, 0.5), (50, 0.0, 0.0), (90, 0.0, 0.0)):
        part.before_step(step, 100)
        assert {n.share for n in part.patches.norms} == {norm}
        assert {a.share for a in part.patches.activations} == {activation}


def test_none_is_there_unless_asked_for() -> None:
    model, masks = masked_model()
    part_of(masks)
    assert not [m for m in model.modules() if isinstance(m, FadingNorm | FadingActivation)]


@pytest.mark.parametrize("family", CUTTABLE)
def test_trained_folded_sliced_reloaded_exported(family: str, tmp_path: Path) -> None:
    inputs = padded_batch(family)
    model, masks = masked_model(family, nonorm=0.5, relu=0.5, warmup=1, cooldown=5)
    part = part_of(masks)
    train(model, run_of(tmp_path / "run", rows(), part=part))
    scatter(masks, mean=-2.0)
    expected = logits(model, inputs)
    masks.fold()
    part.patches.fold()
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=0)
    assert not [m for m in model.modules() if isinstance(m, nn.LayerNorm | FadingNorm | FadingActivation)]
    structure = fold_dead_units(model)
    checkpoint.save(model, tmp_path / "gated", gates=structure)
    gated = checkpoint.load(tmp_path / "gated")
    torch.testing.assert_close(logits(gated, inputs), expected, atol=1e-5, rtol=0)
    small = slice_model(model, structure)
    checkpoint.save(small, tmp_path / "sliced")
    again = checkpoint.load(tmp_path / "sliced")
    assert torch.equal(logits(again, inputs), logits(small, inputs))
    torch.testing.assert_close(logits(again, inputs), expected, atol=1e-5, rtol=0)
    export_onnx(again, "text-classification", 18, tmp_path / "model.onnx")
    check_parity(again, tmp_path / "model.onnx", 1e-4)
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not operators & {"LayerNormalization", "ReduceMean"}
    assert ("Erf" in operators) == family.startswith("electra")  # the GELU of its head, which is no layer's
    assert "Relu" in operators


def test_affine_norms_lose_hidden_dimensions_too() -> None:
    model, masks = masked_model("bert", nonorm=0.5, warmup=1, cooldown=5)
    part = part_of(masks)
    model.train()
    model(**padded_batch("bert"))
    masks.fold()
    part.patches.fold()
    dense, inputs = structure_of(model), padded_batch("bert")
    structure = random_structure(dense, 3, hidden=True)
    assert isinstance(structure, Structure)
    with Gates(model, structure):
        expected = logits(model, inputs)
    small = slice_model(model, structure)
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=0)
    widths = {m.weight.numel() for m in small.modules() if isinstance(m, AffineNorm)}
    assert widths == {HIDDEN // 2}
    assert tiny_model("bert").config.hidden_act == "gelu"

"""Exact rules for dead heads and neurons: cutting them never changes the function."""

from typing import Any

import pytest
import torch

from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.pruning.fold import fold_dead_units
from tests.pruning.masked import masked_model, parts, values
from tests.zoo import CUTTABLE, HEADS, HIDDEN, logits, padded_batch, tiny_model

SIZE = HIDDEN // HEADS


@torch.no_grad()
def kill(model: Any, what: str, head: int, bias: bool) -> None:
    """Zero the head's part of the named projections, with its biases where `bias`."""
    rows = slice(head * SIZE, (head + 1) * SIZE)
    for name in what:
        linear = parts(model)[name]
        if name == "o":
            linear.weight[:, rows] = 0
        else:
            linear.weight[rows] = 0
            if bias and linear.bias is not None:
                linear.bias[rows] = 0


@pytest.mark.parametrize("family", CUTTABLE)
@pytest.mark.parametrize("bias", [True, False], ids=["biases-too", "biases-stay"])
@pytest.mark.parametrize(
    ("what", "removed"), [("v", True), ("o", True), ("qkvo", True), ("q", False), ("k", False), ("qk", False)]
)
def test_a_dead_head_goes_only_where_that_is_exact(family: str, bias: bool, what: str, removed: bool) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    kill(model, what, 2, bias)
    expected = logits(model, inputs)
    structure = fold_dead_units(model)
    assert (2 not in structure.layers[0].sublayers["attention"].kept) == removed
    with Gates(model, structure):
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(slice_model(model, structure), inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CUTTABLE)
def test_a_neuron_without_input_leaves_its_constant(family: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    with torch.no_grad():
        parts(model)["in"].weight[[3, 8]] = 0
        parts(model)["out"].weight[:, [5]] = 0
    expected = logits(model, inputs)
    unfolded = parts(model)["out"].bias.clone()
    structure = fold_dead_units(model)
    assert not {3, 5, 8} & set(structure.layers[0].sublayers["ffn"].kept)
    small = slice_model(model, structure)
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=0)
    # The guard of this test: without the constants the function changes.
    with torch.no_grad():
        parts(model)["out"].bias.copy_(unfolded)
    assert (logits(slice_model(model, structure), inputs) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", CUTTABLE)
def test_everything_dead_in_a_layer(family: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    with torch.no_grad():
        for linear in parts(model, 1).values():
            linear.weight.zero_()
    expected = logits(model, inputs)
    structure = fold_dead_units(model)
    assert not any(sub.active for sub in structure.layers[1].sublayers.values())
    torch.testing.assert_close(logits(slice_model(model, structure), inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(50))
def test_random_scores_with_most_blocks_dead(seed: int) -> None:
    family = list(CUTTABLE)[seed % len(CUTTABLE)]
    inputs = padded_batch(family, seed=seed)
    model, masks = masked_model(family, attention_block=[SIZE, SIZE], mask_biases=seed % 2 == 0)
    torch.manual_seed(seed)
    for scores in values(masks):
        with torch.no_grad():
            scores.copy_(torch.where(torch.rand_like(scores) < 0.7, -9.0, 1.0))
    expected = logits(model, inputs)
    masks.fold()
    structure = fold_dead_units(model)
    small = slice_model(model, structure)
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=0)
    assert structure.density() < 1


def test_folding_a_sliced_model_keeps_original_numbers() -> None:
    model, inputs = tiny_model("bert"), padded_batch("bert")
    kill(model, "v", 1, True)
    small = slice_model(model, fold_dead_units(model))
    kill(small, "o", 1, True)  # the second head that is left: number 2 of the original
    expected = logits(small, inputs)
    structure = fold_dead_units(small)
    assert structure.layers[0].sublayers["attention"].kept == (0, 3)
    assert structure.within(structure_of(small))
    torch.testing.assert_close(logits(slice_model(small, structure), inputs), expected, atol=1e-5, rtol=0)

"""Every method on decoders with memory: what it leaves behind slices exactly, or it says why it can't."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.benchmark.latency_setting import shape_of
from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.pruning import layer_measures
from compressor.pruning.base import METHODS
from compressor.pruning.cofi import Cofi
from compressor.pruning.cofi.fold import fold_gates
from compressor.pruning.cofi.gates import LearnedGates
from compressor.pruning.cofi.masking import Masking
from compressor.pruning.fold import fold_constants, fold_dead_units
from compressor.pruning.head_gates.gates import BinaryGates, Gating
from compressor.pruning.layer_drop import without
from compressor.pruning.movement.masks import Masks
from tests.decoders import FAMILIES, read, tiny_decoder, tokens
from tests.pruning import gated, masked

IDS = tokens()


def by_movement(model: Any) -> tuple[Tensor, Structure]:
    masks = Masks(model, masked.movement(attention_block=[8, 8]))
    masked.scatter(masks, seed=1, mean=-2.2, spread=1.0)
    found, _ = read(model, IDS)
    masks.fold()
    return found, fold_dead_units(model)


def by_cofi(model: Any) -> tuple[Tensor, Structure]:
    kinds = [kind for kind in gated.KINDS if kind != "hidden"]
    gates = LearnedGates(structure_of(model), kinds, lambda _: 0.0, seed=0)
    masking = Masking(model, gates)
    gated.scatter(gates, seed=2)
    (found, _), values = read(model, IDS), gates.decided()
    masking.remove()
    return found, fold_gates(model, values)


def by_layers(model: Any) -> tuple[Tensor, Structure]:
    structure = without(structure_of(model), [1])
    with Gates(model, structure):
        return read(model, IDS)[0], structure


def by_heads(model: Any) -> tuple[Tensor, Structure]:
    structure = structure_of(model).keeping({("decoder", 0, "attention"): SubLayer((1, 2))})
    fold_constants(model, structure)
    with Gates(model, structure):
        return read(model, IDS)[0], structure


def by_head_gates(model: Any) -> tuple[Tensor, Structure]:
    gating = Gating(model, BinaryGates(model, 0.0), scale_outputs=True)
    with torch.no_grad():
        for values in gating.gates.logits:
            values.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        gating.gates.logits[1].fill_(-1.0)
    found, _ = read(model, IDS)
    return found, gating.fold()[0]


PRUNED = {
    "movement": by_movement,
    "cofi": by_cofi,
    "layer-drop": by_layers,
    "greedy": by_layers,
    "heads": by_heads,
    "head-gates": by_head_gates,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method(method: str, family: str, tmp_path: Path) -> None:
    model = tiny_decoder(family)
    if method == "speed":
        with pytest.raises(UserError, match=f"no latency tables of the family '{family}'"):
            shape_of(model.config)
        return
    expected, structure = PRUNED[method](model)
    assert structure != structure_of(model)
    with Gates(model, structure):
        torch.testing.assert_close(read(model, IDS)[0], expected, atol=1e-5, rtol=0)
    checkpoint.save(slice_model(model, structure), tmp_path)
    found, _ = read(checkpoint.load(tmp_path), IDS, [7, 8])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_head_without_values_lives_by_its_persistent_ones() -> None:
    model = tiny_decoder()
    core = model.transformer.layers[0].core
    with torch.no_grad():
        core.v.weight[:16] = 0
        core.persistent_values[:, :8] = 0
    assert fold_dead_units(model).layers[0].sublayers["attention"].kept == (1, 2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hidden_width_is_not_pruned(family: str) -> None:
    model = tiny_decoder(family)
    with pytest.raises(UserError, match=f"hidden width of {family} cannot change; leave hidden out"):
        Cofi(method="cofi").check(model.config)
    Cofi(method="cofi", granularity=["head", "layer"]).check(model.config)


def test_blocks_are_checked_where_there_is_no_ffn() -> None:
    model = tiny_decoder()
    masked.movement(variant="block", attention_block=[8, 8]).check(model.config)
    with pytest.raises(UserError, match="does not divide the attention matrices"):
        masked.movement(variant="block", attention_block=[5, 5]).check(model.config)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_measured(family: str) -> None:
    """A layer that is bypassed leaves the states of all tokens as they are."""
    model = tiny_decoder(family)
    batches = [{"input_ids": IDS, "labels": IDS}]
    structure = structure_of(model).keeping(
        {("decoder", 1, name): SubLayer(absent=True) for name in structure_of(model).layers[1].sublayers}
    )
    with Gates(model, structure):
        found = layer_measures.similarity(model, batches)
    assert found.shape == (4, 4)
    assert found[1, 2].item() == pytest.approx(1.0)
    assert found[0, 1].item() < 0.999
    assert found[2, 3].item() < 0.999

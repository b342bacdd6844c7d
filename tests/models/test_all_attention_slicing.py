"""Removing heads of decoders with memory, their persistent vectors with them: gated == sliced == reloaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.models import checkpoint
from compressor.models.architecture import architecture_of, structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from tests.decoders import ADAPTIVE, FAMILIES, HEADS, HIDDEN, LAYERS, MEMORY, read, tiny_decoder, tokens
from tests.zoo import random_structure

SIZE = HIDDEN // HEADS
BLOCKS = ("core.q.weight", "core.k.weight", "core.v.weight", "core.r.weight")
COLUMNS = (
    "core.content_bias",
    "core.position_bias",
    "core.persistent_keys",
    "core.persistent_values",
    "output.weight",
)
"""Parameters a head owns rows of, and those it owns a part of the last axis of."""


def keeping(model: Any, *heads: tuple[int, ...] | None) -> Structure:
    """The heads of every layer; `None`: absent."""
    return structure_of(model).keeping(
        {
            ("decoder", at, "attention"): SubLayer(absent=True) if kept is None else SubLayer(kept)
            for at, kept in enumerate(heads)
        }
    )


PATTERNS = [
    ((0,), (1, 2), (3,)),
    ((), (0, 1, 2, 3), (2, 3)),
    ((0, 3), (), ()),
    (None, (1,), ()),
    ((), (), ()),
]


def check_sliced(model: Any, structure: Structure, folder: Path) -> None:
    ids = tokens()
    with Gates(model, structure):
        expected, memory = read(model, ids, [6, 7])
    small = slice_model(model, structure)
    found, kept = read(small, ids, [6, 7])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    remembering = [
        at
        for at, layer in enumerate(structure.layers)
        if layer.sublayers["attention"].active and not layer.absent
    ]
    assert len(kept) == len(remembering)
    originals = [structure.layers[at].index for at in remembering]
    if remembering:
        assert kept.shape == (len(remembering), 2, MEMORY, HIDDEN)
        torch.testing.assert_close(kept, memory[originals], atol=1e-5, rtol=0)
    checkpoint.save(small, folder)
    again = checkpoint.load(folder)
    assert torch.equal(read(again, ids, [6, 7])[0], found)
    assert structure_of(again) == structure.simplified()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", PATTERNS)
def test_heads_go_with_all_that_is_theirs(family: str, heads: tuple[Any, ...], tmp_path: Path) -> None:
    model = tiny_decoder(family, **ADAPTIVE)
    structure = keeping(model, *heads)
    check_sliced(model, structure, tmp_path)
    removed = LAYERS * HEADS - structure.heads()
    head = 5 * HIDDEN * SIZE + 2 * SIZE + (2 * 6 * SIZE if family == "all-attention" else 0)
    gone = sum(kept is None for kept in heads) * 3 * HIDDEN
    small = slice_model(model, structure)
    assert model.num_parameters() - small.num_parameters() == removed * head + gone


@pytest.mark.parametrize("family", FAMILIES)
def test_random_structures(family: str, tmp_path: Path) -> None:
    model = tiny_decoder(family)
    for seed in range(4):
        check_sliced(model, random_structure(structure_of(model), seed), tmp_path / str(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_dropped_whole(family: str, tmp_path: Path) -> None:
    model = tiny_decoder(family)
    dense = structure_of(model)
    check_sliced(model, Structure(dense.sizes, (dense.layers[0], dense.layers[2])), tmp_path)


def test_the_hidden_width_stays() -> None:
    model = tiny_decoder()
    dense = structure_of(model)
    narrow = Structure(dense.sizes, dense.layers, tuple(range(HIDDEN // 2)))
    for use in (Gates, slice_model):
        with pytest.raises(ValueError, match="hidden width of all-attention cannot change"):
            use(model, narrow)


def test_slicing_twice_equals_slicing_once() -> None:
    model, ids = tiny_decoder(), tokens()
    first, second = keeping(model, (0, 2, 3), (1,), ()), keeping(model, (2,), (), ())
    twice = slice_model(slice_model(model, first), second)
    assert torch.equal(read(twice, ids)[0], read(slice_model(model, second), ids)[0])


def test_constant_layers_train() -> None:
    model = tiny_decoder()
    small = slice_model(model, keeping(model, (), (0,), ())).train()
    ids = tokens()
    small(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for name, p in small.named_parameters() if name.endswith("output.bias"))


@torch.no_grad()
def test_the_order_of_heads_does_not_matter() -> None:
    model, ids = tiny_decoder(), tokens()
    expected, _ = read(model, ids)
    other = copy.deepcopy(model)
    order = [2, 0, 3, 1]
    rows = [head * SIZE + i for head in order for i in range(SIZE)]
    for layer in other.transformer.layers:
        for name in BLOCKS:
            layer.get_parameter(name).copy_(layer.get_parameter(name)[rows])
        for name in COLUMNS:
            layer.get_parameter(name).copy_(layer.get_parameter(name)[..., rows])
    assert not torch.equal(
        other.transformer.layers[0].core.q.weight, model.transformer.layers[0].core.q.weight
    )
    torch.testing.assert_close(read(other, ids)[0], expected, atol=1e-5, rtol=0)
    kept = slice_model(model, keeping(model, (1, 3), (0, 2), (2,)))
    moved = slice_model(other, keeping(other, (2, 3), (0, 1), (0,)))  # the same heads at their new places
    torch.testing.assert_close(read(moved, ids)[0], read(kept, ids)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*BLOCKS, *COLUMNS[:-1]])
@torch.no_grad()
def test_what_a_closed_head_has_does_not_matter(name: str) -> None:
    """Its persistent vectors neither: every head has a softmax of its own."""
    model, ids = tiny_decoder(), tokens()
    structure = keeping(model, (0, 1, 3), (0, 1, 2, 3), (0, 1, 2, 3))
    before = read(model, ids)[0]
    with Gates(model, structure):
        expected, _ = read(model, ids)
        parameter = model.transformer.layers[0].get_parameter(name)
        part = parameter[2 * SIZE : 3 * SIZE] if name in BLOCKS else parameter[..., 2 * SIZE : 3 * SIZE]
        part += 1.0
        assert torch.equal(read(model, ids)[0], expected)
    assert not torch.allclose(read(model, ids)[0], before, atol=1e-4)
    part = parameter[:SIZE] if name in BLOCKS else parameter[..., :SIZE]
    part += 1.0
    with Gates(model, structure):
        assert not torch.allclose(read(model, ids)[0], expected, atol=1e-4)


@torch.no_grad()
def test_the_scale_of_persistent_values_is_that_of_their_number_also_when_sliced() -> None:
    model = tiny_decoder()
    small = slice_model(model, keeping(model, (1,), (0, 1), (2,)))
    assert small.transformer.layers[0].core.persistent == 6
    assert small.transformer.layers[0].core.persistent_values.shape == (6, SIZE)
    assert architecture_of(small.config).stacks[0].learned_key == "persistent_vectors"

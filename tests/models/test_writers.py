"""Encoder-decoders: gated == sliced == reloaded, with parts of all three attentions and of both FFNs gone."""

from pathlib import Path

import pytest
import torch
import transformers

from compressor.models import checkpoint
from compressor.models.architecture import architecture_of, prepared, structure_of
from compressor.models.gates import Gates
from compressor.models.parity import same_function
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from tests.models.equal import cut_and_reloaded
from tests.zoo import (
    FFN,
    HEADS,
    LAYERS,
    WRITERS,
    logits,
    padded_batch,
    random_structure,
    tiny_config,
    tiny_model,
)


@pytest.mark.parametrize("family", WRITERS)
def test_a_prepared_model_computes_what_transformers_does(family: str) -> None:
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(tiny_config(family)).eval()
    inputs = padded_batch(family)
    before = logits(theirs, inputs)
    names = set(theirs.state_dict())
    ours = prepared(theirs)
    torch.testing.assert_close(logits(ours, inputs), before, atol=1e-6, rtol=0)
    assert set(ours.state_dict()) == names


@pytest.mark.parametrize("family", WRITERS)
def test_every_attention_and_ffn_of_both_stacks_is_in_the_structure(family: str) -> None:
    dense = structure_of(tiny_model(family))
    assert dense.heads() == HEADS * LAYERS * 3
    assert [layer.stack for layer in dense.layers] == ["encoder"] * LAYERS + ["decoder"] * LAYERS
    assert sum(len(sub.kept) for _, name, sub in dense.each() if name == "ffn") == 2 * LAYERS * FFN
    weights = sum(
        p.numel() for n, p in tiny_model(family).named_parameters() if p.dim() == 2 and _in_layers(n)
    )
    assert dense.linear_weights() == weights


def _in_layers(name: str) -> bool:
    return ".layers." in name or ".block." in name


@pytest.mark.parametrize("family", WRITERS)
def test_gated_equals_sliced_equals_reloaded(family: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    for seed in range(6):
        structure = random_structure(structure_of(model), seed)
        small, again = cut_and_reloaded(model, inputs, structure, tmp_path / str(seed))
        assert same_function(small, again) == 0


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("kind", [SubLayer(), SubLayer(absent=True)], ids=["constant", "absent"])
def test_whole_sub_layers_go_from_the_first_layer_on(family: str, kind: SubLayer) -> None:
    """In T5's first layer the relative positions are made, which later ones read."""
    model, inputs = tiny_model(family), padded_batch(family)
    for name in ("attention", "cross_attention", "ffn"):
        keys = [
            (la.stack, 0, name) for la in structure_of(model).layers if la.index == 0 and name in la.sublayers
        ]
        structure = structure_of(model).keeping(dict.fromkeys(keys, kind))
        with Gates(model, structure):
            gated = logits(model, inputs)
        torch.testing.assert_close(logits(slice_model(model, structure), inputs), gated, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", WRITERS)
def test_slicing_twice_equals_slicing_once(family: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    for stack, name in (("encoder", "attention"), ("decoder", "attention"), ("decoder", "cross_attention")):
        first = structure_of(model).keeping(
            {(stack, 1, name): SubLayer((0, 2, 3)), (stack, 0, "ffn"): SubLayer((1, 5))}
        )
        second = first.keeping({(stack, 1, name): SubLayer((2, 3))})
        twice = slice_model(slice_model(model, first), second)
        assert torch.equal(logits(twice, inputs), logits(slice_model(model, second), inputs))
        with Gates(slice_model(model, first), second) as gates:
            torch.testing.assert_close(logits(gates.model, inputs), logits(twice, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", WRITERS)
def test_whole_layers_dropped_opens_with_plain_transformers(family: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    dense = structure_of(model)
    small = slice_model(model, Structure(dense.sizes, (dense.layers[1], dense.layers[3], dense.layers[5])))
    checkpoint.save(small, tmp_path)
    plain, found = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    torch.testing.assert_close(logits(plain.eval(), inputs), logits(small, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", WRITERS)
def test_a_sliced_model_trains(family: str) -> None:
    model = tiny_model(family)
    structure = random_structure(structure_of(model), 3)
    small = slice_model(model, structure).train()
    loss = small(**padded_batch(family), labels=torch.zeros(3, 7, dtype=torch.long)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert architecture_of(small.config).writes_text

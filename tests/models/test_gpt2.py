"""GPT-2 made of linear maps computes, learns and stores what transformers' does, and is cut like other families."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import Tensor

from compressor.benchmark.latency_setting import shape_of
from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.models.architecture import prepared, structure_of
from compressor.models.gates import Gates
from compressor.models.heads import class_named
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.onnx.export import export_model, parity
from compressor.onnx.runtime import open_model
from compressor.pruning.base import METHODS
from compressor.pruning.cofi.fold import fold_gates
from compressor.pruning.cofi.gates import LearnedGates
from compressor.pruning.cofi.masking import Masking
from compressor.pruning.fold import fold_constants, fold_dead_units
from compressor.pruning.head_gates.gates import BinaryGates, Gating
from compressor.pruning.layer_drop import without
from compressor.pruning.layer_measures import block_influence
from compressor.pruning.movement.masks import Masks
from tests.pruning import gated, masked
from tests.zoo import random_structure

HIDDEN, HEADS, VOCABULARY = 48, 4, 60
AUTO = "AutoModelForLanguageModeling"
SIZES = {
    "vocab_size": VOCABULARY,
    "n_positions": 32,
    "n_embd": HIDDEN,
    "n_layer": 3,
    "n_head": HEADS,
    "n_inner": 40,
}
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
IDS = torch.randint(0, VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(0))


def config(**extra: Any) -> transformers.GPT2Config:
    return transformers.GPT2Config(**(SIZES | NO_DROPOUT | extra))


def tiny(**extra: Any) -> Any:
    """A random model in eval mode; nothing hides in zeros."""
    torch.manual_seed(0)
    return random_weights(prepared(class_named(AUTO).from_config(config(**extra))))


def random_weights(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("ln_" in name and "weight" in name), std=0.2)
    return model.eval()


def pair(folder: Path) -> tuple[Any, Any]:
    """transformers' own model, and the same opened here."""
    torch.manual_seed(0)
    theirs = random_weights(transformers.GPT2LMHeadModel(config()))
    theirs.save_pretrained(folder)
    return theirs, checkpoint.open_source(str(folder), AUTO, {})[0]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


def test_it_computes_the_same_and_its_head_is_trained(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=0)
    assert checkpoint.open_source(str(tmp_path), AUTO, {})[1]


def test_labels_are_the_next_tokens_and_losses_theirs(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path)
    labels = IDS[:, 1:].clone()
    found = ours(IDS[:, :-1], labels=labels)
    assert found.loss.item() == pytest.approx(theirs(IDS, labels=IDS).loss.item(), abs=1e-5)
    assert found.losses.shape == labels.shape
    labels[0, :5] = -100
    some = ours(IDS[:, :-1], labels=labels)
    assert some.losses[0, :5].abs().sum() == 0
    kept = found.losses.flatten()[5:]
    assert some.loss.item() == pytest.approx(kept.mean().item(), abs=1e-5)


def test_it_learns_the_same(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path)
    shifted = {"input_ids": IDS[:, :-1], "labels": IDS[:, 1:]}
    for model, inputs in ((theirs, {"input_ids": IDS, "labels": IDS}), (ours, shifted)):
        model.train()
        model(**inputs).loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
    stored = theirs.state_dict()
    assert set(ours.state_dict()) == set(stored)
    for name, values in ours.state_dict().items():
        torch.testing.assert_close(values, stored[name], atol=1e-5, rtol=0)


def test_keys_and_values_go_on_where_a_piece_ended() -> None:
    model = tiny()
    memory, found = model.initial_cache(2), []
    with torch.no_grad():
        for piece in IDS.split([4, 1, 8], dim=1):
            output = model(piece, memory=memory)
            memory = output.memory
            found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), logits(model), atol=1e-5, rtol=0)
    assert [part.shape for part in memory] == [(2, 2, 13, HIDDEN)] * 3
    assert model(IDS).memory is None


def test_a_token_changes_nothing_before_it() -> None:
    model, other = tiny(), IDS.clone()
    other[:, 7] = (other[:, 7] + 1) % VOCABULARY
    with torch.no_grad():
        assert torch.equal(model(other).logits[:, :7], logits(model)[:, :7])


STRUCTURES = {
    "dense": lambda dense: dense,
    "nothing": lambda dense: dense.keeping(
        {("decoder", 0, name): SubLayer() for name in ("attention", "ffn")}
    ),
    "random-1": lambda dense: random_structure(dense, 1),
    "random-2": lambda dense: random_structure(dense, 2),
}


@pytest.mark.parametrize("shape", STRUCTURES)
def test_gated_sliced_reloaded_onnx(shape: str, tmp_path: Path) -> None:
    model = tiny()
    structure = STRUCTURES[shape](structure_of(model))
    with Gates(model, structure):
        held = logits(model)
    checkpoint.save(slice_model(model, structure), tmp_path)
    small = checkpoint.load(tmp_path)
    torch.testing.assert_close(logits(small), held, atol=1e-5, rtol=0)
    assert small.lm_head.weight is small.transformer.wte.weight
    for kind in ("none", "cache"):
        export_model(small, "text-generation", 18, tmp_path / kind, memory=kind)
        assert parity(small, tmp_path / kind, kind)["max_abs_error"] < 1e-4


def test_plain_transformers_opens_it_where_only_layers_went(tmp_path: Path) -> None:
    model = tiny()
    checkpoint.save(slice_model(model, without(structure_of(model), [1])), tmp_path)
    plain = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert type(plain) is transformers.GPT2LMHeadModel
    assert len(plain.transformer.h) == 2
    torch.testing.assert_close(logits(plain), logits(checkpoint.load(tmp_path)), atol=1e-5, rtol=0)


def test_an_ffn_of_unnamed_width_is_four_times_the_hidden_one() -> None:
    assert structure_of(tiny(n_inner=None)).sizes.stacks["decoder"]["ffn"] == 4 * HIDDEN


def test_what_depends_on_the_number_of_the_layer_is_refused() -> None:
    with pytest.raises(UserError, match="only its published form is supported"):
        tiny(scale_attn_by_inverse_layer_idx=True)


def by_movement(model: Any) -> tuple[Tensor, Structure]:
    masks = Masks(model, masked.movement(attention_block=[HIDDEN // HEADS, HIDDEN // HEADS]))
    masked.scatter(masks, seed=1, mean=-2.2, spread=1.0)
    found = logits(model)
    masks.fold()
    return found, fold_dead_units(model)


def by_cofi(model: Any) -> tuple[Tensor, Structure]:
    kinds = [kind for kind in gated.KINDS if kind != "hidden"]
    gates = LearnedGates(structure_of(model), kinds, lambda _: 0.0, seed=0)
    masking = Masking(model, gates)
    gated.scatter(gates, seed=2)
    found, values = logits(model), gates.decided()
    masking.remove()
    return found, fold_gates(model, values)


def by_layers(model: Any) -> tuple[Tensor, Structure]:
    structure = without(structure_of(model), [1])
    with Gates(model, structure):
        return logits(model), structure


def by_heads(model: Any) -> tuple[Tensor, Structure]:
    structure = structure_of(model).keeping({("decoder", 0, "attention"): SubLayer((1, 2))})
    fold_constants(model, structure)
    with Gates(model, structure):
        return logits(model), structure


def by_head_gates(model: Any) -> tuple[Tensor, Structure]:
    gating = Gating(model, BinaryGates(model, 0.0), scale_outputs=True)
    with torch.no_grad():
        for values in gating.gates.logits:
            values.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        gating.gates.logits[1].fill_(-1.0)
    return logits(model), gating.fold()[0]


PRUNED = {
    "movement": by_movement,
    "cofi": by_cofi,
    "layer-drop": by_layers,
    "greedy": by_layers,
    "heads": by_heads,
    "head-gates": by_head_gates,
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, tmp_path: Path) -> None:
    """What a method leaves behind slices exactly, or it says why it can't work."""
    model = tiny()
    if method == "speed":
        with pytest.raises(UserError, match="no latency tables of the family 'gpt2'"):
            shape_of(model.config)
        return
    expected, structure = PRUNED[method](model)
    assert structure != structure_of(model)
    with Gates(model, structure):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    checkpoint.save(slice_model(model, structure), tmp_path)
    torch.testing.assert_close(logits(checkpoint.load(tmp_path)), expected, atol=1e-5, rtol=0)


def test_optimum_writes_with_the_graph(tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    model = slice_model(tiny(), random_structure(structure_of(tiny()), 1))
    export_model(model, "text-generation", 18, tmp_path)
    model.config.save_pretrained(tmp_path)
    served = ORTModelForCausalLM.from_pretrained(tmp_path, use_cache=False, use_io_binding=False)
    text = IDS[:1, :4]
    written = served.generate(text, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    wanted = text
    for _ in range(5):
        with torch.no_grad():
            following = model(wanted).logits[:, -1].argmax(dim=-1, keepdim=True)
        wanted = torch.cat([wanted, following], dim=1)
    assert torch.equal(written, wanted)


def test_the_embeddings_are_stored_once(tmp_path: Path) -> None:
    export_model(tiny(vocab_size=1000), "text-generation", 18, tmp_path)
    for name in ("model.onnx", "scores.onnx"):
        tables = [
            t for t in onnx.load(tmp_path / name).graph.initializer if 1000 in t.dims and HIDDEN in t.dims
        ]
        assert len(tables) == 1


def test_a_text_is_scored_without_a_vocabulary_of_numbers_a_token(tmp_path: Path) -> None:
    model = tiny()
    export_model(model, "text-generation", 18, tmp_path)
    found = open_model(tmp_path)({"input_ids": IDS[:, :-1], "labels": IDS[:, 1:]})
    assert list(found) == ["losses"]
    with torch.no_grad():
        losses = model(IDS[:, :-1], labels=IDS[:, 1:]).losses
    np.testing.assert_allclose(found["losses"], losses.numpy(), atol=1e-5)


def test_layers_are_measured_by_what_they_do_to_the_stream() -> None:
    """A layer whose output is nothing turns nothing."""
    model = tiny()
    with torch.no_grad():
        for module in (model.transformer.h[1].attn, model.transformer.h[1].mlp):
            module.c_proj.weight.zero_()
            module.c_proj.bias.zero_()
    first, middle, last = block_influence(model, [{"input_ids": IDS}])
    assert abs(middle) < 1e-6 < min(first, last)

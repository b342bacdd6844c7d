"""gated == sliced == reloaded, for every family, task and kind of structure."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from tests.models.equal import cut_and_reloaded
from tests.zoo import CONFIGS, CUTTABLE, HEAD_CLASSES, logits, padded_batch, random_structure, tiny_model


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("task", HEAD_CLASSES)
@pytest.mark.parametrize("hidden", [False, True], ids=["", "hidden"])
def test_gated_equals_sliced_equals_reloaded(family: str, task: str, hidden: bool, tmp_path: Path) -> None:
    model, inputs = tiny_model(family, task), padded_batch(family)
    for seed in range(4):
        cut_and_reloaded(
            model, inputs, random_structure(structure_of(model), seed, hidden), tmp_path / str(seed)
        )


@pytest.mark.parametrize("family", CUTTABLE)
def test_slicing_twice_equals_slicing_once(family: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    first = Structure.dense(structure_of(model).sizes).keeping(
        {("encoder", 0, "attention"): SubLayer((0, 2, 3)), ("encoder", 1, "ffn"): SubLayer((1, 5, 7, 30))}
    )
    second = first.keeping(
        {("encoder", 0, "attention"): SubLayer((2,)), ("encoder", 1, "ffn"): SubLayer((5, 30))}
    )
    twice = slice_model(slice_model(model, first), second)
    assert torch.equal(logits(twice, inputs), logits(slice_model(model, second), inputs))


@pytest.mark.parametrize("family", CUTTABLE)
def test_gates_hold_a_sliced_model_too(family: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    first = random_structure(structure_of(model), 11)
    small = slice_model(model, first)
    have = structure_of(small)
    second = have.keeping(
        {(la.stack, la.index, name): SubLayer(sub.kept[::2], sub.absent) for la, name, sub in have.each()}
    )
    with Gates(small, second):
        gated = logits(small, inputs)
    torch.testing.assert_close(logits(slice_model(small, second), inputs), gated, atol=1e-5, rtol=0)


def test_a_structure_beyond_the_model_is_refused() -> None:
    model = tiny_model("bert")
    dense = structure_of(model)
    small = slice_model(model, dense.keeping({("encoder", 0, "attention"): SubLayer((0,))}))
    with pytest.raises(ValueError, match="does not have"):
        slice_model(small, dense)


@pytest.mark.parametrize("family", CUTTABLE)
def test_constant_sublayers_train_like_gated_ones(family: str) -> None:
    """A constant bias drops out token by token, and gets a gradient."""
    model = tiny_model(family)
    structure = structure_of(model).keeping(
        {("encoder", 1, "ffn"): SubLayer(), ("encoder", 1, "attention"): SubLayer()}
    )
    small = slice_model(model, structure).train()
    inputs = padded_batch(family)
    small(**inputs, labels=torch.zeros(3, dtype=torch.long)).loss.backward()
    assert all(p.grad is not None for name, p in small.named_parameters() if "layer.1" in name)


@pytest.mark.parametrize("family", CONFIGS)
def test_whole_layers_dropped_opens_with_plain_transformers(family: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    dense = structure_of(model)
    small = slice_model(model, Structure(dense.sizes, (dense.layers[0], dense.layers[2])))
    assert structure_of(small).only_layers_dropped()
    checkpoint.save(small, tmp_path)
    plain, found = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(found.values())
    torch.testing.assert_close(logits(plain.eval(), inputs), logits(small, inputs), atol=1e-6, rtol=0)


def test_a_shared_layer_is_applied_fewer_times() -> None:
    model, inputs = tiny_model("albert"), padded_batch("albert")
    dense = structure_of(model)
    two = Structure(dense.sizes, dense.layers[:2])
    applied: list[int] = []
    layer = model.albert.encoder.albert_layer_groups[0].albert_layers[0]
    layer.register_forward_hook(lambda *_: applied.append(1))
    whole = logits(model, inputs)
    assert len(applied) == 3
    with Gates(model, two):
        gated = logits(model, inputs)
    assert len(applied) == 5
    assert torch.equal(logits(model, inputs), whole)
    small = slice_model(model, two)
    assert torch.equal(logits(small, inputs), gated)
    assert small.num_parameters() == model.num_parameters()
    assert two.density() == 1.0
    assert two.flops(1, 16) / dense.flops(1, 16) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["attention", "ffn"])
def test_nothing_inside_a_shared_layer_can_go(name: str) -> None:
    model = tiny_model("albert")
    structure = structure_of(model).keeping({("encoder", 0, name): SubLayer((0, 2))})
    for use in (Gates, slice_model):
        with pytest.raises(ValueError, match="dropped whole"):
            use(model, structure)


@pytest.mark.parametrize("groups", [{"num_hidden_groups": 3}, {"inner_group_num": 2}])
def test_layers_shared_in_groups_are_refused(groups: dict[str, int]) -> None:
    with pytest.raises(UserError, match="one layer stands for all"):
        structure_of(tiny_model("albert", **groups))


def test_a_pruned_unsliced_checkpoint_keeps_its_gates(tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), padded_batch("bert")
    structure = random_structure(structure_of(model), 5)
    checkpoint.save(model, tmp_path, gates=structure)
    again = checkpoint.load(tmp_path)
    with Gates(model, structure):
        torch.testing.assert_close(logits(again, inputs), logits(model, inputs))
    again.compressor_gates.remove()
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs))


def test_a_model_sliced_and_pruned_again_keeps_its_gates(tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), padded_batch("bert")
    dense = structure_of(model)
    first = dense.keeping({("encoder", 0, "attention"): SubLayer((0, 2, 3))})
    second = first.keeping({("encoder", 0, "attention"): SubLayer((2,))})
    small = slice_model(model, first)
    with Gates(small, second):
        expected = logits(small, inputs)
    checkpoint.save(small, tmp_path / "held", gates=second)
    held = checkpoint.load(tmp_path / "held")
    torch.testing.assert_close(logits(held, inputs), expected)
    gates = held.compressor_gates
    assert gates.structure == second
    gates.remove()
    held.compressor_gates = None
    smaller = slice_model(held, second)
    torch.testing.assert_close(logits(smaller, inputs), expected, atol=1e-5, rtol=0)
    checkpoint.save(smaller, tmp_path / "sliced")
    assert checkpoint.load(tmp_path / "sliced").compressor_gates is None


def test_saving_without_gates_forgets_them(tmp_path: Path) -> None:
    model = tiny_model("bert")
    checkpoint.save(model, tmp_path / "held", gates=random_structure(structure_of(model), 5))
    checkpoint.save(model, tmp_path / "free")
    assert "compressor" not in json.loads((tmp_path / "free" / "config.json").read_text())


def test_densities_and_parameters_of_published_shapes() -> None:
    """BERT-base: 84,934,656 linear weights; the published headline network keeps 26.20 % of them."""
    from compressor.models.architecture import ARCHITECTURES
    from tests.zoo import tiny_config

    config = tiny_config(
        "bert", hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12
    )
    dense = Structure.dense(ARCHITECTURES["bert"].sizes(config))
    assert dense.linear_weights() == 84_934_656
    heads = [4, 4, 6, 7, 7, 5, 6, 7, 5, 5, 5, 3]
    ffn = [552, 717, 795, 789, 833, 792, 620, 466, 283, 112, 96, 238]
    headline = dense.keeping(
        {("encoder", i, "attention"): SubLayer(tuple(range(n))) for i, n in enumerate(heads)}
        | {("encoder", i, "ffn"): SubLayer(tuple(range(n))) for i, n in enumerate(ffn)}
    )
    assert round(headline.density(), 4) == 0.2620

"""Scores and masks of block movement pruning (specification 7: structure, masks, variants)."""

import itertools
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from compressor.errors import UserError
from compressor.models.architecture import structure_of
from compressor.models.structure import SubLayer
from compressor.pruning.fold import alive_units, fold_dead_units
from compressor.pruning.movement.masks import Masks
from compressor.pruning.movement.scores import keep_largest
from tests.pruning.masked import mask_of, masked_model, movement, part_of, parts, scatter, values
from tests.zoo import CUTTABLE, FFN, HEADS, HIDDEN, LAYERS, logits, padded_batch, tiny_model

SIZE = HIDDEN // HEADS
BERTS = {"base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096)}


def on_paper(size: str = "base", **keys: Any) -> Masks:
    """The masks of a BERT without memory for its weights."""
    layers, hidden, heads, ffn = BERTS[size]
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        vocab_size=10,
    )
    with torch.device("meta"):
        model = BertForQuestionAnswering(config)
    return Masks(model, movement(attention_block=[32, 32]) if not keys else movement(**keys))


@pytest.mark.parametrize("size", BERTS)
def test_counts_and_shapes_of_bert_base_and_large(size: str) -> None:
    layers, hidden, _, ffn = BERTS[size]
    masks = on_paper(size)
    assert len(masks.masked) == 6 * layers
    assert (len(values(masks, "attention")), len(values(masks, "ffn"))) == (4 * layers, layers)
    assert {tuple(s.shape) for s in values(masks, "attention")} == {(hidden // 32, hidden // 32)}
    assert {tuple(s.shape) for s in values(masks, "ffn")} == {(ffn,)}
    if size == "base":
        assert sum(s.numel() for s in values(masks)) == 64_512
    identities = [id(p) for p in masks.model.parameters()]
    assert len(identities) == len(set(identities))
    names = [n for n in masks.model.state_dict() if "values" in n]
    assert len(names) == 5 * layers
    assert all(n.startswith("block_scores.") for n in names)


def test_shapes_of_the_other_variants() -> None:
    struct = on_paper(variant="struct")
    assert [tuple(s.shape) for s in values(struct, "attention")[:4]] == [(12, 1), (12, 1), (12, 1), (1, 12)]
    assert {tuple(s.shape) for s in values(struct, "ffn")} == {(3072,)}
    joint = on_paper(variant="struct", joint_heads=True)
    assert [tuple(s.shape) for s in values(joint, "attention")] == [(12,)] * 12
    block = on_paper(variant="block", attention_block=[16, 32])
    assert [tuple(s.shape) for s in values(block, "attention")[:4]] == [(48, 24)] * 3 + [(24, 48)]
    assert [tuple(s.shape) for s in values(block, "ffn")[:2]] == [(192, 24), (24, 192)]
    single = on_paper(variant="unstructured")
    assert [tuple(s.shape) for s in values(single, "ffn")[:2]] == [(3072, 768), (768, 3072)]
    both = on_paper(joint_heads=True, attention_block=[32, 32])
    assert [tuple(s.shape) for s in values(both, "attention")[:5]] == [(12,)] + [(24, 24)] * 4


@pytest.mark.parametrize(("keys", "words"), [({"attention_block": [5, 4]}, "do not tile")])
def test_a_block_that_does_not_tile_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        masked_model(**keys)
    with pytest.raises(UserError, match="attention_block"):
        movement(**keys).check(tiny_model("bert").config)
    with pytest.raises(UserError, match="FFN"):
        movement(variant="block", attention_block=[16, 16]).check(tiny_model("bert").config)
    movement(variant="struct").check(tiny_model("bert").config)


@pytest.mark.parametrize("variant", ["hybrid", "block", "struct", "unstructured"])
@pytest.mark.parametrize("family", CUTTABLE)
def test_open_masks_change_nothing(family: str, variant: str) -> None:
    inputs = padded_batch(family)
    expected = logits(tiny_model(family), inputs)
    model, masks = masked_model(family, variant=variant)
    rounding = 1e-6 if family == "xlnet" else 0.0  # its matrices are stored transposed; a masked one is not
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=rounding)
    assert masks.densities() == {"attention": 1.0, "ffn": 1.0, "total": 1.0}


def test_shared_ffn_scores_cut_a_row_and_a_column() -> None:
    model, masks = masked_model()
    before = {n: p.clone() for n, p in model.state_dict().items() if n.endswith("original")}
    layer = parts(model, 1)
    with torch.no_grad():
        values(masks, "ffn")[1][7] = -5.0
    inside, outside = layer["in"], layer["out"]
    assert not inside.weight[7].any()
    assert inside.bias[7] == 0
    assert not outside.weight[:, 7].any()
    others = [i for i in range(inside.out_features) if i != 7]
    assert torch.equal(inside.weight[others], inside.parametrizations.weight.original[others])
    assert torch.equal(outside.weight[:, others], outside.parametrizations.weight.original[:, others])
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items() if n in before)


def test_the_threshold_is_strict() -> None:
    model, masks = masked_model()
    cut = torch.tensor(-2.1972246)
    for offset, kept in ((-1e-3, 0.0), (1e-3, 1.0)):
        with torch.no_grad():
            values(masks, "ffn")[0].fill_(cut + offset)
        assert set(mask_of(parts(model)["in"]).flatten().tolist()) == {kept}
    model, masks = masked_model(mask="raw", threshold=0.0)
    with torch.no_grad():
        values(masks, "ffn")[0][3] = 0.5
    assert mask_of(parts(model)["in"]).flatten().tolist() == [float(i == 3) for i in range(FFN)]


@pytest.mark.parametrize("mask", ["sigmoid", "raw", "topk"])
def test_a_tighter_threshold_keeps_a_subset(mask: str) -> None:
    model, masks = masked_model(mask=mask, threshold=0.5)
    scatter(masks)
    model.train()
    steps = (1.0, 0.7, 0.4, 0.15) if mask == "topk" else (0.0, 0.02, 0.05, 0.1)
    kept = []
    for masks.cut.now in steps:
        kept.append(mask_of(parts(model)["q"]).bool())
    assert all((high <= low).all() for low, high in itertools.pairwise(kept))
    assert kept[0].sum() > kept[-1].sum() > 0


@pytest.mark.parametrize("share", [0.0, 0.15, 0.29, 0.5, 1.0])
def test_topk_keeps_exactly_its_share_also_of_ties(share: float) -> None:
    for scores in (torch.zeros(20, 5), torch.randn(100)):
        assert keep_largest(scores, share).sum() == round(100 * share)
    model, masks = masked_model(mask="topk", threshold=0.15)
    scatter(masks)
    model.eval()
    for scores in masks.scores["attention"] + masks.scores["ffn"]:
        assert scores.mask().sum() == int(0.15 * scores.values.numel())
    # A neuron's row is never cut in the middle: its score is one.
    assert set(mask_of(parts(model)["in"]).sum(1).tolist()) <= {0.0, 1.0}


def test_magnitude_keeps_the_largest_weights_or_blocks_of_them() -> None:
    model, masks = masked_model(variant="unstructured", mask="magnitude", threshold=0.25)
    query = parts(model)["q"]
    original = query.parametrizations.weight.original
    kept = query.weight != 0
    assert kept.sum() == int(0.25 * original.numel())
    assert original[kept].abs().min() >= original[~kept].abs().max()
    assert not masks.parameters()
    model, _ = masked_model(variant="struct", mask="magnitude", threshold=0.5, joint_heads=True)
    layer = parts(model)
    size = layer["in"].parametrizations.weight.original.abs().mean(1)
    size = size + layer["out"].parametrizations.weight.original.abs().mean(0)
    assert set(mask_of(layer["in"])[:, 0].nonzero().flatten().tolist()) == set(
        size.topk(FFN // 2).indices.tolist()
    )
    heads = [mask_of(layer[name]).flatten() for name in "qkvo"]
    assert all(torch.equal(heads[0], other) for other in heads)
    assert heads[0].sum() == HEADS // 2


def test_hard_concrete_masks() -> None:
    model, masks = masked_model(mask="l0", initial_score=0.5)
    expected = min(1.0, max(0.0, 1.2 * torch.sigmoid(torch.tensor(0.5)).item() - 0.1))
    assert mask_of(parts(model)["q"]).flatten().tolist() == pytest.approx([expected] * 144)
    model.train()
    masks.draw(1)
    first = mask_of(parts(model)["in"])[:, 0]
    assert torch.equal(first, mask_of(parts(model)["out"])[0])  # one unit, one gate
    assert first.unique().numel() > 5
    masks.draw(2)
    assert not torch.equal(first, mask_of(parts(model)["in"])[:, 0])
    masks.draw(1)
    assert torch.equal(first, mask_of(parts(model)["in"])[:, 0])
    noise = masks.scores["ffn"][0].noise
    by_hand = torch.sigmoid((noise + 0.5) / (2 / 3)) * 1.2 - 0.1
    torch.testing.assert_close(first, by_hand.clamp(0, 1))
    assert masks.scores["ffn"][0].penalty().item() == pytest.approx(
        torch.sigmoid(torch.tensor(0.5 - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1)).item())).item()
    )
    # The gates are learned by an ordinary gradient, not a straight-through one: closed gates get none.
    with torch.no_grad():
        values(masks, "ffn")[0][:4] = -30.0
    model(**padded_batch("bert"), labels=torch.tensor([0, 1, 0])).loss.backward()
    assert not values(masks, "ffn")[0].grad[:4].any()
    assert values(masks, "ffn")[0].grad[4:].count_nonzero() > 10


def test_the_l0_penalty_and_a_model_that_begins_open() -> None:
    _, masks = masked_model(mask="l0", initial_score=0.0)
    assert masks.scores["ffn"][0].penalty().item() == pytest.approx(0.83182, abs=1e-5)
    model, masks = masked_model(mask="l0")
    assert mask_of(parts(model)["q"]).min() > 0.97


def test_initial_scores_are_used() -> None:
    _, masks = masked_model(initial_score=1.5)
    assert all((s == 1.5).all() for s in values(masks))


@pytest.mark.parametrize("mask", ["sigmoid", "raw"])
def test_the_floor_keeps_the_best_also_among_ties(mask: str) -> None:
    masks = on_paper(attention_block=[32, 32], min_keep=0.005)
    assert masks.scores["attention"][0].least == 3
    assert masks.scores["ffn"][0].least == 16
    _, masks = masked_model(mask=mask, min_keep=0.1)
    for tied in (True, False):
        with torch.no_grad():
            for scores in values(masks):
                scores.fill_(-9.0)
                if not tied:
                    scores += torch.rand_like(scores)
        for scores in masks.scores["attention"] + masks.scores["ffn"]:
            mask_now = scores.mask()
            assert mask_now.sum() == scores.least == int(0.1 * scores.values.numel()) + 1
            if not tied:
                kept = scores.values[mask_now.bool()]
                assert kept.min() > scores.values[~mask_now.bool()].max()


def test_without_a_floor_a_matrix_may_die() -> None:
    model, masks = masked_model()
    with torch.no_grad():
        values(masks, "ffn")[0].fill_(-9.0)
    masks.fold()
    assert not fold_dead_units(model).layers[0].sublayers["ffn"].active


@pytest.mark.parametrize("mask_biases", [True, False])
def test_a_row_without_blocks_loses_its_bias_a_half_dead_one_keeps_it(mask_biases: bool) -> None:
    model, masks = masked_model(mask_biases=mask_biases)
    with torch.no_grad():
        values(masks, "attention")[0][2, :] = -9.0
        values(masks, "attention")[0][3, 1:] = -9.0
    query, original = parts(model)["q"], parts(tiny_model("bert"))["q"].bias
    assert query.bias[8:12].any() != mask_biases
    assert torch.equal(query.bias[12:], original[12:])
    assert mask_biases or torch.equal(query.bias, original)


def test_eval_uses_the_final_threshold() -> None:
    model, masks = masked_model()
    with torch.no_grad():
        values(masks, "ffn")[0].fill_(-3.0)
    masks.cut.now = 0.0
    for training in (True, False, True):
        model.train(training)
        assert parts(model)["in"].weight.any() == training
    with masks.evaluating():
        assert not parts(model)["in"].weight.any()
    assert parts(model)["in"].weight.any()


def test_joint_heads_die_together() -> None:
    model, masks = masked_model(joint_heads=True)
    with torch.no_grad():
        values(masks, "attention")[0][2] = -9.0
    rows = slice(2 * SIZE, 3 * SIZE)
    layer = parts(model)
    assert not any(layer[name].weight[rows].any() for name in "qkv")
    assert not layer["o"].weight[:, rows].any()
    assert layer["q"].weight[: 2 * SIZE].all()
    masks.fold()
    assert alive_units(model).layers[0].sublayers["attention"].kept == (0, 1, 3)


@pytest.mark.parametrize("variant", ["hybrid", "struct"])
def test_rewind_keeps_the_guide_s_heads_whole(variant: str) -> None:
    model, masks = masked_model(variant=variant)
    with torch.no_grad():
        for scores in values(masks):
            scores.fill_(-9.0)
    dense = structure_of(model)
    guide = dense.keeping({("encoder", i, "attention"): SubLayer((1, 3)) for i in range(LAYERS)})
    masks.protect(guide)
    layer = parts(model, 2)
    for name in "qkv":
        alive = layer[name].weight.ne(0).any(dim=1).view(HEADS, SIZE)
        assert alive.all(1).tolist() == [False, True, False, True]
        assert alive.any(1).tolist() == [False, True, False, True]
    assert layer["o"].weight.ne(0).all(dim=0).view(HEADS, SIZE).all(1).tolist() == [False, True, False, True]
    assert not layer["in"].weight.any()  # neurons go by their scores
    masks.fold()
    assert {la.sublayers["attention"].kept for la in alive_units(model).layers} == {(1, 3)}


def test_rewind_by_nothing_and_by_everything() -> None:
    whole = structure_of(tiny_model("bert"))
    none = whole.keeping({("encoder", i, "attention"): SubLayer() for i in range(LAYERS)})
    for guide, same_as in ((whole, "open"), (none, "scores")):
        model, masks = masked_model()
        scatter(masks)
        before = mask_of(parts(model)["q"])
        masks.protect(guide)
        expected = torch.ones_like(before) if same_as == "open" else before
        assert torch.equal(mask_of(parts(model)["q"]), expected)


def test_a_guide_of_another_shape_is_refused() -> None:
    _, masks = masked_model()
    with pytest.raises(UserError, match="of the same shape"):
        masks.protect(structure_of(tiny_model("bert", num_hidden_layers=2)))


def test_only_thresholds_on_scores_aim_at_a_sparsity() -> None:
    assert movement().targets == movement(mask="raw").targets == {"sparsity"}
    assert movement(mask="l0").targets == movement(mask="topk", threshold=0.5).targets == frozenset()


def test_densities_count_what_is_kept() -> None:
    model, masks = masked_model()
    with torch.no_grad():
        values(masks, "ffn")[0][:20] = -9.0
    figures = masks.densities()
    assert figures["attention"] == 1.0
    assert figures["ffn"] == pytest.approx(1 - 20 / (LAYERS * FFN))
    masks.fold()
    assert (parts(model)["in"].weight == 0).all(dim=1).sum() == 20


@pytest.mark.parametrize("family", CUTTABLE)
@pytest.mark.parametrize("keys", [{}, {"joint_heads": True}, {"variant": "struct"}, {"variant": "block"}])
def test_margins_say_which_units_live(family: str, keys: dict[str, Any]) -> None:
    model, masks = masked_model(family, **keys)
    scatter(masks, mean=-9.0 if masks.keys.variant == "block" else -3.0)
    alive = {key: torch.sigmoid(margin) > 0.1 for key, margin in masks.margins().items()}
    masks.fold()
    structure = alive_units(model)
    for layer, name, sub in structure.each():
        found = alive[layer.stack, layer.index, name].nonzero().flatten().tolist()
        assert tuple(found) == sub.kept
    assert 0 < structure.density() < 1


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("mask", ["sigmoid", "raw"])
def test_a_threshold_for_every_sparsity(sparsity: float, mask: str) -> None:
    model, masks = masked_model(mask=mask)
    scatter(masks, mean=0.0)
    masks.cut.final = masks.threshold_for(sparsity)
    masks.fold()
    head = SIZE * 4 * HIDDEN
    dense = structure_of(model).linear_weights()
    reached = 1 - alive_units(model).density()
    assert sparsity - head / dense <= reached <= sparsity + 1e-9


def test_widths_are_rounded_up_to_a_multiple() -> None:
    model, masks = masked_model(align=8)
    with torch.no_grad():
        for i, kept in enumerate((11, 0, 16)):
            values(masks, "ffn")[i].copy_(torch.arange(FFN) * -0.01 - 3)
            values(masks, "ffn")[i][:kept] = 1.0
    masks.align(8)
    masks.fold()
    widths = [la.sublayers["ffn"].kept for la in alive_units(model).layers]
    assert widths == [tuple(range(16)), (), tuple(range(16))]


def test_the_floor_of_the_schedule_is_open_whatever_the_mask() -> None:
    for keys in ({"mask": "sigmoid"}, {"mask": "raw"}, {"mask": "topk", "threshold": 0.2}):
        model, masks = masked_model(**keys)
        part_of(masks).before_step(0, 100)
        model.train()
        assert all(s.mask().all() for s in masks.scores["attention"] + masks.scores["ffn"])

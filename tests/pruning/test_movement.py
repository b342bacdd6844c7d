"""Block movement pruning: scores, masks, gradients, schedule, regulariser (specification, section 7)."""

import itertools

import pytest
import torch
from torch.nn.utils import parametrize
from transformers import BertConfig, BertForQuestionAnswering

from compressor.errors import UserError
from compressor.pruning.movement import Movement
from compressor.pruning.movement.masks import Masks
from compressor.pruning.movement.training import MovementPart, threshold_at
from tests.zoo import CONFIGS, logits, padded_batch, tiny_model

KEYS = {"method": "movement", "attention_block": [4, 4]}


def masked_model(family: str = "bert", threshold: float = 0.1, block: tuple[int, int] = (4, 4)):
    model = tiny_model(family)
    return model, Masks(model, block, threshold)


def scatter_scores(masks: Masks, seed: int = 0, spread: float = 3.0) -> None:
    torch.manual_seed(seed)
    for scores in [*masks.attention, *masks.ffn]:
        torch.nn.init.normal_(scores, mean=-1.0, std=spread)


def test_counts_and_shapes_of_bert_base_and_large() -> None:
    for layers, hidden, heads, ffn in ((12, 768, 12, 3072), (24, 1024, 16, 4096)):
        config = BertConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=ffn,
            vocab_size=10,
        )
        with torch.device("meta"):
            model = BertForQuestionAnswering(config)
        masks = Masks(model, (32, 32), 0.1)
        assert len(masks.masked) == 6 * layers
        assert (len(masks.attention), len(masks.ffn)) == (4 * layers, layers)
        assert {tuple(s.shape) for s in masks.attention} == {(hidden // 32, hidden // 32)}
        assert {tuple(s.shape) for s in masks.ffn} == {(ffn,)}
        if layers == 12:
            assert sum(s.numel() for s in [*masks.attention, *masks.ffn]) == 64_512
        storages = [id(p) for p in model.parameters()]
        assert len(storages) == len(set(storages))


def test_a_block_that_does_not_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="do not tile"):
        masked_model(block=(5, 4))
    with pytest.raises(UserError, match="attention_block"):
        Movement(method="movement", attention_block=[5, 4]).check(tiny_model("bert").config)


def test_the_output_projection_has_transposed_blocks() -> None:
    _, masks = masked_model(block=(4, 8))
    assert [tuple(s.shape) for s in masks.attention[:4]] == [(12, 6), (12, 6), (12, 6), (6, 12)]


@pytest.mark.parametrize("family", CONFIGS)
def test_open_masks_change_nothing(family: str) -> None:
    inputs = padded_batch(family)
    expected = logits(tiny_model(family), inputs)
    model, _ = masked_model(family)
    assert torch.equal(logits(model, inputs), expected)


def test_shared_ffn_scores_cut_a_row_and_a_column() -> None:
    model, masks = masked_model()
    before = {n: p.clone() for n, p in model.state_dict().items() if n.endswith("original")}
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        masks.ffn[1][7] = -5.0
    inside, outside = layer.intermediate.dense, layer.output.dense
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
            masks.ffn[0].fill_(cut + offset)
        weight = model.bert.encoder.layer[0].intermediate.dense.parametrizations.weight[0]
        assert set(weight.mask().flatten().tolist()) == {kept}


def test_a_higher_threshold_keeps_a_subset() -> None:
    model, masks = masked_model()
    scatter_scores(masks)
    model.train()
    mask = model.bert.encoder.layer[0].attention.self.query.parametrizations.weight[0].mask
    kept = []
    for masks.threshold_now in (0.0, 0.02, 0.05, 0.1):
        kept.append(mask().bool())
    assert all((high <= low).all() for low, high in itertools.pairwise(kept))
    assert kept[0].sum() > kept[-1].sum() > 0


def test_a_row_without_blocks_loses_its_bias_a_half_dead_one_keeps_it() -> None:
    model, masks = masked_model()
    with torch.no_grad():
        masks.attention[0][2, :] = -9.0
        masks.attention[0][3, 1:] = -9.0
    query = model.bert.encoder.layer[0].attention.self.query
    original = query.parametrizations.bias.original
    assert not query.bias[8:12].any()
    assert torch.equal(query.bias[12:], original[12:])


def test_gradients_of_scores_and_weights() -> None:
    """dL/dS is the blockwise sum of G x W, dL/dW is M x G, whatever the threshold."""
    for threshold in (0.0, 0.1):
        model, masks = masked_model()
        scatter_scores(masks, spread=2.0)
        model.train()
        masks.threshold_now = threshold
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        query = model.bert.encoder.layer[1].attention.self.query
        inside, outside = (
            model.bert.encoder.layer[1].intermediate.dense,
            model.bert.encoder.layer[1].output.dense,
        )
        with parametrize.cached():
            effective = {m: m.weight for m in (query, inside, outside)}
            for weight in effective.values():
                weight.retain_grad()
            loss = model(**padded_batch("bert"), labels=torch.tensor([0, 1, 0])).loss
            loss.backward()
        grad = {m: effective[m].grad for m in effective}
        original = {m: m.parametrizations.weight.original for m in effective}
        blocks = (grad[query] * original[query]).view(12, 4, 12, 4).sum((1, 3))
        torch.testing.assert_close(masks.attention[4].grad, blocks, atol=1e-6, rtol=1e-5)
        both = (grad[inside] * original[inside]).sum(1) + (grad[outside] * original[outside]).sum(0)
        torch.testing.assert_close(masks.ffn[1].grad, both, atol=1e-6, rtol=1e-5)
        mask = query.parametrizations.weight[0].mask()
        full = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert torch.equal(original[query].grad, grad[query] * full)
        if threshold:
            assert not original[query].grad[full == 0].any()


def test_a_dead_block_can_come_back() -> None:
    model, masks = masked_model()
    model.train()
    masks.threshold_now = 0.1
    scores = masks.attention[0]
    with torch.no_grad():
        scores.fill_(-2.3)
    model(**padded_batch("bert"), labels=torch.tensor([0, 1, 0])).loss.backward()
    wanted = scores.grad < 0
    with torch.no_grad():
        scores -= scores.grad * (1.0 / scores.grad.abs().min())
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(torch.sigmoid(scores) > 0.1, wanted)


PUBLISHED = [
    (0, 0, 0),
    (5400, 0, 0),
    (5401, 5.852402e-06, 0.00117048),
    (10000, 0.0245779387, 4.91558773),
    (20000, 0.0634201790, 12.6840358),
    (30000, 0.0859316025, 17.1863205),
    (31030, 0.0875, 17.5),
    (40000, 0.0965668784, 19.3133754),
    (50000, 0.0997806756, 19.9561351),
    (56660, 0.1, 20),
    (110659, 0.1, 20),
]


@pytest.mark.parametrize(("step", "threshold", "strength"), PUBLISHED)
def test_the_published_schedule(step: int, threshold: float, strength: float) -> None:
    _, masks = masked_model()
    part = MovementPart(masks, Movement(**KEYS, warmup=5400, cooldown=54000))
    part.before_step(step, 110_660)
    assert masks.threshold_now == pytest.approx(threshold, rel=1e-6, abs=1e-12)
    assert part.strength == pytest.approx(strength, rel=1e-5, abs=1e-9)


def test_the_default_fractions_are_the_published_ones() -> None:
    keys = Movement(**KEYS)
    assert (keys.warmup, keys.cooldown) == (0.0488, 0.488)
    assert keys.warmup * 110_660 == pytest.approx(5400, rel=1e-3)


def test_the_schedule_needs_steps_in_between() -> None:
    with pytest.raises(UserError, match="leave none"):
        threshold_at(0, 100, 60, 40, 0.1)
    values = [threshold_at(t, 100, 10, 30, 0.1) for t in range(100)]
    assert values == sorted(values)
    assert values[10] == 0 < values[11]
    assert values[70] == pytest.approx(0.1)


def test_the_regulariser() -> None:
    _, masks = masked_model()
    assert masks.regularization(1.0, 1.0).item() == pytest.approx(0.5)
    assert masks.regularization(2.0, 1.0).item() == pytest.approx(0.75)
    assert masks.regularization(1.0, 0.0).item() == pytest.approx(0.25)
    with torch.no_grad():
        for scores in [*masks.attention, *masks.ffn]:
            scores.fill_(-50.0)
    assert masks.regularization(1.0, 1.0).item() == pytest.approx(0.0, abs=1e-6)


def test_the_regulariser_s_gradient_on_bert_base() -> None:
    config = BertConfig(vocab_size=10)
    with torch.device("meta"):
        model = BertForQuestionAnswering(config)
    masks = Masks(model, (32, 32), 0.1)
    masks.attention = [torch.zeros(24, 24, requires_grad=True) for _ in masks.attention]
    masks.ffn = [torch.zeros(3072, requires_grad=True) for _ in masks.ffn]
    masks.regularization(1.0, 1.0).backward()
    assert masks.attention[0].grad.flatten()[0].item() == pytest.approx(4.521e-6, rel=1e-3)
    assert masks.ffn[0].grad[0].item() == pytest.approx(3.391e-6, rel=1e-3)


def test_warm_up_adds_no_term() -> None:
    _, masks = masked_model()
    part = MovementPart(masks, Movement(**KEYS, warmup=10, cooldown=10))
    part.before_step(5, 100)
    assert part.loss() is None
    part.before_step(95, 100)
    assert part.loss().item() == pytest.approx(20 * 0.5)


def test_eval_uses_the_final_threshold() -> None:
    model, masks = masked_model()
    with torch.no_grad():
        masks.ffn[0].fill_(-3.0)
    masks.threshold_now = 0.0
    model.train()
    assert model.bert.encoder.layer[0].intermediate.dense.weight.any()
    model.eval()
    assert not model.bert.encoder.layer[0].intermediate.dense.weight.any()
    model.train()
    assert model.bert.encoder.layer[0].intermediate.dense.weight.any()


@pytest.mark.parametrize("family", CONFIGS)
def test_folding_keeps_the_function_and_leaves_no_scores(family: str) -> None:
    inputs = padded_batch(family)
    model, masks = masked_model(family)
    scatter_scores(masks)
    names = set(tiny_model(family).state_dict())
    expected = logits(model, inputs)
    masks.fold()
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-6, rtol=0)
    assert set(model.state_dict()) == names


def test_densities_count_what_is_kept() -> None:
    model, masks = masked_model()
    with torch.no_grad():
        masks.ffn[0][:20] = -9.0
    figures = masks.densities()
    assert figures["attention"] == 1.0
    assert figures["ffn"] == pytest.approx(1 - 20 / 120)
    masks.fold()
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    assert (weight == 0).all(dim=1).sum() == 20

"""Block movement pruning: gradients, schedule, regulariser, slicing, short trainings (specification, 7)."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.nn.utils import parametrize

from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.measures import measures
from compressor.models.slicing import slice_model
from compressor.onnx.export import check_parity, export_onnx
from compressor.pruning.fold import alive_units, fold_dead_units
from compressor.pruning.movement.masks import Masks
from compressor.pruning.movement.training import progress_at
from compressor.training.fill import fill_zeros
from compressor.training.trainer import train
from tests.pruning.masked import mask_of, masked_model, movement, part_of, parts, scatter, values
from tests.pruning.test_masks import on_paper
from tests.training.test_training import rows, run_of
from tests.zoo import CUTTABLE, HEADS, HIDDEN, logits, padded_batch, tiny_model

SIZE = HIDDEN // HEADS
LABELS = torch.tensor([0, 1, 0])
VARIANTS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "hybrid-biases-stay": {"mask_biases": False},
    "joint-heads": {"joint_heads": True},
    "struct": {"variant": "struct"},
    "struct-biases-stay": {"variant": "struct", "mask_biases": False},
    "block": {"variant": "block"},
    "block-biases-stay": {"variant": "block", "mask_biases": False},
    "unstructured": {"variant": "unstructured"},
    "raw": {"mask": "raw"},
    "topk": {"mask": "topk", "threshold": 0.3},
    "magnitude": {"variant": "struct", "mask": "magnitude", "threshold": 0.4},
    "l0": {"mask": "l0"},
}


def without_dropout(model: Any) -> Any:
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ("l0", "magnitude")])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_gradients_of_scores_and_weights(variant: str, threshold: float) -> None:
    """dL/dS is the blockwise sum of G x W, dL/dW is M x G, whatever threshold, rule and variant."""
    model, masks = masked_model(**VARIANTS[variant])
    scatter(masks, spread=2.0)
    without_dropout(model)
    masks.cut.now = threshold if variant != "topk" else 1.0 - threshold
    layer = parts(model, 1)
    with parametrize.cached():
        effective = {name: layer[name].weight for name in layer}
        for weight in effective.values():
            weight.retain_grad()
        model(**padded_batch("bert"), labels=LABELS).loss.backward()
    product, original = {}, {}
    for name, linear in layer.items():
        original[name] = linear.parametrizations.weight.original
        product[name] = effective[name].grad * original[name]
        mask = mask_of(linear)
        full = mask.repeat_interleave(linear.out_features // mask.shape[0], 0)
        full = full.repeat_interleave(linear.in_features // mask.shape[1], 1)
        assert torch.equal(original[name].grad, effective[name].grad * full)
    container = dict(model.block_scores.named_modules())
    for name, scores in container.items():
        if not name.startswith("encoder_1"):
            continue
        sublayer, which = name.split("_")[2:]
        grad, names = scores.values.grad, {"attention": "qkvo", "ffn": ("in", "out")}[sublayer]
        if which == "units":
            size = SIZE if sublayer == "attention" else 1
            expected = product[names[-1]].sum(0).view(-1, size).sum(1)
            for other in names[:-1]:
                expected = expected + product[other].sum(1).view(-1, size).sum(1)
        else:
            block = product[names[int(which)]]
            r, c = grad.shape
            expected = block.view(r, block.shape[0] // r, c, block.shape[1] // c).sum((1, 3))
        torch.testing.assert_close(grad, expected, atol=1e-6, rtol=1e-4)


def test_a_dead_block_can_come_back() -> None:
    model, masks = masked_model()
    model.train()
    masks.cut.now = 0.1
    scores = values(masks, "attention")[0]
    with torch.no_grad():
        scores.fill_(-2.3)
    model(**padded_batch("bert"), labels=LABELS).loss.backward()
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
    _, masks = masked_model(warmup=5400, cooldown=54000)
    part = part_of(masks)
    part.before_step(step, 110_660)
    assert masks.cut.now == pytest.approx(threshold, rel=1e-6, abs=1e-12)
    assert part.strength == pytest.approx(strength, rel=1e-5, abs=1e-9)


def test_the_default_fractions_are_the_published_ones() -> None:
    keys = movement()
    assert (keys.warmup, keys.cooldown) == (0.0488, 0.488)
    assert keys.warmup * 110_660 == pytest.approx(5400, rel=1e-3)


def test_the_schedule_needs_steps_in_between() -> None:
    with pytest.raises(UserError, match="leave none"):
        progress_at(0, 100, 60, 40)
    shares = [progress_at(t, 100, 10, 30) for t in range(100)]
    assert shares == sorted(shares)
    assert shares[10] == 0 < shares[11]
    assert shares[70] == pytest.approx(1.0)
    assert shares[40] == pytest.approx(1 - 0.125)


@pytest.mark.parametrize(
    ("keys", "start", "end"),
    [({"mask": "raw"}, -10, -2.1972246), ({"mask": "topk", "threshold": 0.15}, 1.0, 0.15)],
)
def test_schedules_of_the_other_masks(keys: dict[str, Any], start: float, end: float) -> None:
    _, masks = masked_model(**keys, warmup=10, cooldown=30)
    part = part_of(masks)
    for step, share in ((0, 0.0), (40, 0.875), (99, 1.0)):
        part.before_step(step, 100)
        assert masks.cut.now == pytest.approx(start + share * (end - start))
        assert part.strength == pytest.approx(0.0 if "topk" in keys.values() else 20 * share)


def test_the_regulariser() -> None:
    for attention, ffn, expected in ((1.0, 1.0, 0.5), (2.0, 1.0, 0.75), (1.0, 0.0, 0.25), (0.0, 4.0, 1.0)):
        _, masks = masked_model(attention_regularization=attention, ffn_regularization=ffn)
        assert masks.regularization().item() == pytest.approx(expected)
    _, masks = masked_model()
    scatter(masks)
    assert 0 < masks.regularization().item() < 1
    with torch.no_grad():
        for scores in values(masks):
            scores.fill_(-50.0)
    assert masks.regularization().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "attention", "ffn"),
    [({}, 4.521e-6, 3.391e-6), ({"variant": "struct"}, 2.170e-4, 3.391e-6)],
)
def test_the_regulariser_s_gradient_on_bert_base(keys: dict[str, Any], attention: float, ffn: float) -> None:
    masks = on_paper(**(keys or {"attention_block": [32, 32]}))
    for scores in masks.scores["attention"] + masks.scores["ffn"]:
        scores.values = torch.nn.Parameter(torch.zeros(scores.values.shape))
    masks.regularization().backward()
    assert values(masks, "attention")[0].grad.flatten()[0].item() == pytest.approx(attention, rel=1e-3)
    assert values(masks, "ffn")[0].grad[0].item() == pytest.approx(ffn, rel=1e-3)


def test_warm_up_adds_no_term() -> None:
    _, masks = masked_model(warmup=10, cooldown=10)
    part = part_of(masks)
    part.before_step(5, 100)
    assert part.loss() is None
    part.before_step(95, 100)
    assert part.loss().item() == pytest.approx(20 * 0.5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", CUTTABLE)
def test_masked_equals_folded_equals_sliced_equals_reloaded(
    family: str, variant: str, tmp_path: Path
) -> None:
    inputs = padded_batch(family)
    model, masks = masked_model(family, **VARIANTS[variant])
    names = set(tiny_model(family).state_dict())
    spread = {"block": -9.0, "block-biases-stay": -9.0, "struct": -1.5, "struct-biases-stay": -1.5}
    scatter(masks, mean=spread.get(variant, -3.0))
    expected = logits(model, inputs)
    masks.fold()
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-6, rtol=0)
    assert set(model.state_dict()) == names
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    structure = fold_dead_units(model)
    with Gates(model, structure):
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=0)
    small = slice_model(model, structure)
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=0)
    figures = measures(small)
    assert figures["sliced_density"] == pytest.approx(structure.density())
    assert figures["nonzero_density"] <= figures["sliced_density"]
    checkpoint.save(small, tmp_path)
    assert torch.equal(logits(checkpoint.load(tmp_path), inputs), logits(small, inputs))
    # Folding what is folded changes nothing more.
    assert fold_dead_units(model).to_json() == structure.to_json()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]
    assert all(name.endswith("bias") for name in changed)


@pytest.mark.parametrize("family", CUTTABLE)
def test_blocks_that_leave_a_constant_behind_an_activation_without_a_zero(family: str) -> None:
    """Row of the first FFN matrix dead, column of the second alive, act(0) != 0."""
    inputs = padded_batch(family)
    model, masks = masked_model(family, variant="block")
    for module in list(model.modules()):
        for name in {"intermediate_act_fn", "activation", "activation_function"} & set(
            dict(module.named_children())
        ):
            setattr(module, name, torch.nn.Sigmoid())
    with torch.no_grad():
        masks.scores["ffn"][0].values[2] = -9.0
    expected = logits(model, inputs)
    masks.fold()
    structure = fold_dead_units(model)
    assert set(structure.layers[0].sublayers["ffn"].kept) & {8, 9, 10, 11} == set()
    torch.testing.assert_close(logits(slice_model(model, structure), inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dead", ["q", "k"])
def test_reference_heads_are_lossy_where_exact_ones_are_not(dead: str) -> None:
    inputs = padded_batch("bert")
    model = tiny_model("bert")
    with torch.no_grad():
        for i in range(3):
            linear = parts(model, i)[dead]
            linear.weight[:SIZE] = 0
            linear.bias[:SIZE] = 0
    expected = logits(model, inputs)
    exact, lossy = alive_units(model), alive_units(model, "reference")
    assert exact.heads() == 3 * HEADS
    assert exact.heads() - lossy.heads() == 3
    assert alive_units(model, "uniform").to_json() == lossy.to_json()
    fold_dead_units(model, "reference")
    assert (logits(slice_model(model, lossy), inputs) - expected).abs().max() > 1e-3


def test_the_reference_rule_keeps_a_layer_s_first_head_and_looks_at_no_output() -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        parts(model, 0)["k"].weight.zero_()
        parts(model, 1)["o"].weight[:, :SIZE] = 0
    kept = [la.sublayers["attention"].kept for la in alive_units(model, "reference").layers]
    assert kept == [(0,), (0, 1, 2, 3), (0, 1, 2, 3)]
    kept = [la.sublayers["attention"].kept for la in alive_units(model, "uniform").layers]
    assert kept == [(), (1, 2, 3), (0, 1, 2, 3)]


def test_filling_leaves_no_hole() -> None:
    model, masks = masked_model()
    scatter(masks, mean=-2.0)
    masks.fold()
    small = slice_model(model, fold_dead_units(model))
    before = measures(small)
    assert before["nonzero_density"] < before["sliced_density"] < 1
    fill_zeros(small, 0.01, seed=1)
    after = measures(small)
    assert after["nonzero_density"] == after["sliced_density"] == before["sliced_density"]


@pytest.mark.parametrize("variant", ["hybrid", "struct", "block"])
def test_the_graph_has_the_pruned_widths_and_no_masks(variant: str, tmp_path: Path) -> None:
    model, masks = masked_model(**VARIANTS[variant])
    scatter(masks, mean=-9.0 if variant == "block" else -2.0)
    masks.fold()
    structure = fold_dead_units(model)
    small = slice_model(model, structure)
    export_onnx(small, "text-classification", 18, tmp_path / "model.onnx")
    check_parity(small, tmp_path / "model.onnx", 1e-4)
    graph = onnx.load(tmp_path / "model.onnx").graph
    weights = {t.name: tuple(t.dims) for t in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    widths = {w for n in products for w in weights[n.input[1]]}
    kept = [la.sublayers for la in structure.layers]
    wanted = {len(s["ffn"].kept) for s in kept} | {len(s["attention"].kept) * SIZE for s in kept}
    assert widths - {0} <= wanted | {HIDDEN}
    assert wanted - {0} <= widths
    matrices = {name for name, dims in weights.items() if len(dims) == 2 and min(dims) > 1}
    masked = [n for n in graph.node if n.op_type in ("Where", "Mul") and matrices & set(n.input)]
    assert masked == []


def test_target_sparsity_is_reached_in_the_cool_down(tmp_path: Path) -> None:
    model, masks = masked_model(warmup=2, cooldown=8, regularization=1, score_learning_rate=0.1)
    part = part_of(masks, sparsity=0.6)
    train(model, run_of(tmp_path, rows(), part=part))
    masks.cut.final = masks.threshold_for(0.6)
    masks.fold()
    assert 1 - alive_units(model).density() == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(
    ("strength", "low", "high"), [(300.0, 0.0, 0.5), (0.0, 0.9, 1.0)], ids=["strong", "none"]
)
def test_the_regulariser_drives_the_density(strength: float, low: float, high: float, tmp_path: Path) -> None:
    model, masks = masked_model(warmup=0.05, cooldown=0.3, regularization=strength, score_learning_rate=0.1)
    part = part_of(masks)
    log = train(model, run_of(tmp_path, rows(64), part=part, epochs=12.0))
    masks.fold()
    density = alive_units(model).density()
    assert low <= density <= high
    assert all(row["loss"] == row["loss"] and abs(row["loss"]) < 1e3 for row in log)
    assert structure_of(model).density() == 1


@pytest.mark.parametrize("variant", ["l0", "magnitude", "topk"])
def test_other_masks_train_and_prune(variant: str, tmp_path: Path) -> None:
    keys = {"warmup": 0.05, "cooldown": 0.3, "score_learning_rate": 0.2} | VARIANTS[variant]
    keys |= {"regularization": 400.0} if variant == "l0" else {}
    model, masks = masked_model(**keys)
    log = train(model, run_of(tmp_path, rows(64), part=part_of(masks), epochs=12.0))
    assert log[-1]["density_total"] < 0.75
    expected = logits(model, padded_batch("bert"))
    masks.fold()
    structure = fold_dead_units(model)
    assert structure.density() < 1
    small = slice_model(model, structure)
    torch.testing.assert_close(logits(small, padded_batch("bert")), expected, atol=1e-5, rtol=0)


def test_a_model_of_24_layers(tmp_path: Path) -> None:
    model, inputs = tiny_model("bert", num_hidden_layers=24), padded_batch("bert")
    masks = Masks(model, movement())
    scatter(masks, mean=-3.0)
    expected = logits(model, inputs)
    masks.fold()
    small = slice_model(model, fold_dead_units(model))
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=1e-5)
    export_onnx(small, "text-classification", 18, tmp_path / "model.onnx")
    check_parity(small, tmp_path / "model.onnx", 1e-4)

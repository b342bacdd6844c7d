"""Head gates: what they are worth, their penalty and its schedule, scaling, and what learning them leaves behind."""

import copy
from collections.abc import Callable
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from compressor.errors import UserError
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.pruning.hard_concrete import noise_like
from compressor.pruning.head_gates import HeadGates
from compressor.pruning.head_gates.gates import (
    BinaryGates,
    Gating,
    binary,
    decided,
    expected_open,
    output_scale,
)
from compressor.pruning.head_gates.training import HeadGatesPart, penalty_share
from compressor.schema import TrainingKeys
from compressor.training.optimizer import make_optimizer
from compressor.training.trainer import Run, newest_checkpoint, train
from tests.decoders import FAMILIES, HEADS, LAYERS, read, tiny_config, tiny_decoder, tokens
from tests.zoo import CUTTABLE, logits, padded_batch, tiny_model

DRAWS = 100_000
TABLE = [
    # logit, probability to be open, penalty, share of draws with a gradient
    (-2.0, 0.119, 0.231, 0.174),
    (-0.5, 0.378, 0.574, 0.360),
    (0.0, 0.500, 0.690, 0.379),
    (0.5, 0.622, 0.786, 0.360),
    (2.0, 0.881, 0.943, 0.174),
]


def keys(**given: Any) -> HeadGates:
    return HeadGates(**({"method": "head-gates"} | given))


class Trains:
    """A context that trains in a plain loop of so many `steps` on `batch(step)`."""

    target = None
    seed = 1

    def __init__(self, steps: int, batch: Callable[[int], dict[str, Tensor]]) -> None:
        self.steps, self.batch = steps, batch
        self.log: list[dict[str, float]] = []
        self.logits: list[list[Tensor]] = []

    def train(self, model: Any, training: TrainingKeys, part: Any = None) -> None:
        model.train()
        optimizer = make_optimizer(model, training, part.parameter_groups() if part else [])
        for step in range(self.steps):
            if part:
                part.before_step(step, self.steps)
            loss = model(**self.batch(step)).loss
            if part and (more := part.loss()) is not None:
                loss = loss + more
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if part:
                self.log.append(part.log())
                self.logits.append([values.detach().clone() for values in part.gates.logits])
        model.eval()


@pytest.mark.parametrize(("logit", "probability", "penalty", "slope"), TABLE)
def test_the_published_table(logit: float, probability: float, penalty: float, slope: float) -> None:
    logits_ = torch.full((DRAWS,), logit, requires_grad=True)
    gates = binary(logits_, noise_like(logits_.detach(), torch.Generator().manual_seed(0)))
    assert gates.detach().unique().tolist() == [0, 1]
    assert gates.mean().item() == pytest.approx(probability, abs=0.01)
    gates.sum().backward()
    assert logits_.grad is not None
    assert (logits_.grad >= 0).all()
    assert logits_.grad.gt(0).double().mean().item() == pytest.approx(slope, abs=0.01)
    assert expected_open(torch.tensor(logit)).item() == pytest.approx(penalty, abs=1e-3)
    assert decided(torch.tensor(logit)).item() == float(logit >= 0)


def test_the_penalty_falls_with_every_logit() -> None:
    values = torch.linspace(-5, 5, 21, requires_grad=True)
    expected_open(values).sum().backward()
    assert values.grad is not None
    assert (values.grad > 0).all()


def test_a_gate_is_closed_only_below_zero() -> None:
    assert decided(torch.tensor([-1e-6, 0.0, 1e-6])).tolist() == [0, 1, 1]


def test_after_training_nothing_is_left_to_chance() -> None:
    model = tiny_decoder()
    gates = BinaryGates(model, 2.0)
    state = torch.get_rng_state()
    gates.draw(7, 0)
    gates.eval()
    assert gates.values(0).tolist() == [1] * HEADS
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_fresh_in_every_step_and_the_same_in_the_same_one() -> None:
    gates = BinaryGates(tiny_decoder(), 0.0)
    drawn = {}
    for seed, step in product((1, 2), (0, 1, 2)):
        gates.draw(seed, step)
        drawn[seed, step] = torch.cat(gates.noise)
    for one, other in combinations(drawn, 2):
        assert not torch.equal(drawn[one], drawn[other]), (one, other)
    gates.draw(1, 2)
    assert torch.equal(torch.cat(gates.noise), drawn[1, 2])


def test_output_scaling() -> None:
    for heads in (4, 8, 12):
        for open_ in range(heads + 1):
            gates = (torch.arange(heads) < open_).float().requires_grad_()
            scale = output_scale(gates)
            assert not scale.requires_grad
            expected = min(max(heads / (open_ + 1e-3), 1.0), heads)
            assert scale.item() == pytest.approx(expected, rel=1e-6)
    assert output_scale(torch.ones(8)).item() == 1.0
    assert output_scale(torch.tensor([0.0, 1, 1, 1])).item() == pytest.approx(1.33289, abs=1e-5)


@pytest.mark.parametrize(
    ("step", "share"), [(9, 0.0), (10, 1 / 4), (11, 2 / 4), (13, 1.0), (14, 1.0), (99, 1.0)]
)
def test_the_penalty_rises_in_so_many_steps(step: int, share: float) -> None:
    assert penalty_share(step, 10, 4) == share
    assert penalty_share(step, 10, 0) == float(step >= 10)
    part = HeadGatesPart(
        BinaryGates(tiny_decoder(), 2.0), keys(penalty=0.5, penalty_start=10, penalty_warmup=4), 0
    )
    part.before_step(step, 100)
    assert part.strength == 0.5 * share
    by_share = keys(penalty=0.5, penalty_start=0.1, penalty_warmup=0.04)
    part = HeadGatesPart(BinaryGates(tiny_decoder(), 2.0), by_share, 0)
    part.before_step(step, 100)
    assert part.strength == 0.5 * share


def test_the_penalty_is_a_sum_over_all_heads() -> None:
    part = HeadGatesPart(BinaryGates(tiny_decoder(), 2.0), keys(penalty=0.02, penalty_warmup=0), 0)
    part.before_step(0, 10)
    loss = part.loss()
    assert loss is not None
    assert loss.item() == pytest.approx(0.02 * LAYERS * HEADS * 0.9426, abs=1e-4)
    assert part.log()["heads"] == LAYERS * HEADS


def test_gates_learn_faster_than_weights_and_do_not_decay() -> None:
    part = HeadGatesPart(BinaryGates(tiny_decoder(), 2.0), keys(learning_rate=1e-4), 0)
    (group,) = part.parameter_groups()
    assert group["lr"] == pytest.approx(1e-3)
    assert group["weight_decay"] == 0
    assert keys(gate_learning_rate=0.5).gate_rate == 0.5


@pytest.mark.parametrize("scale", [True, False])
def test_open_gates_change_nothing(scale: bool) -> None:
    """A converged model with new gates computes bit for bit what it did."""
    model, ids = tiny_decoder(), tokens()
    expected, _ = read(model, ids)
    gating = Gating(model, BinaryGates(model, 2.0), scale)
    assert torch.equal(read(model, ids)[0], expected)
    gating.remove()
    assert torch.equal(read(model, ids)[0], expected)
    assert not hasattr(model, "head_gates")


@pytest.mark.parametrize("family", FAMILIES)
def test_without_penalty_and_chance_it_trains_as_without_gates(family: str) -> None:
    ids = tokens()
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    plain = tiny_decoder(family)
    gated = copy.deepcopy(plain)
    torch.manual_seed(5)
    Trains(3, lambda _: batch).train(plain, TrainingKeys(learning_rate=1e-3))
    torch.manual_seed(5)
    open_ = keys(penalty=0.0, initial_logit=40.0, scale_outputs=False, learning_rate=1e-3)
    (pruned,) = open_.prune(gated, Trains(3, lambda _: batch))
    assert pruned.structure == structure_of(plain)
    changed = plain.state_dict()
    for name, value in gated.state_dict().items():
        torch.testing.assert_close(value, changed[name], atol=1e-7, rtol=0)


def scattered(model: Any, scale: bool) -> Gating:
    """Random gates, one attention with none left."""
    gating = Gating(model, BinaryGates(model, 0.0), scale)
    torch.manual_seed(3)
    with torch.no_grad():
        for values in gating.gates.logits:
            values.normal_()
        gating.gates.logits[1].fill_(-1.0)
    return gating


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [True, False])
def test_scales_become_part_of_the_weights(family: str, scale: bool) -> None:
    model, ids = tiny_decoder(family), tokens()
    gating = scattered(model, scale)
    expected, _ = read(model, ids)
    structure, report = gating.fold()
    assert 0 < structure.heads() < LAYERS * HEADS
    assert report["heads_by_layer"][1] == 0
    assert (report["output_scales"] is not None) == scale
    with Gates(model, structure):
        torch.testing.assert_close(read(model, ids)[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(read(slice_model(model, structure), ids)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CUTTABLE)
def test_encoders_have_gates_too(family: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    expected_dense = logits(model, inputs)
    gating = scattered(model, scale=True)
    expected = logits(model, inputs)
    assert not torch.allclose(expected, expected_dense, atol=1e-3)
    structure, _ = gating.fold()
    torch.testing.assert_close(logits(slice_model(model, structure), inputs), expected, atol=1e-5, rtol=0)


def test_a_model_that_was_sliced_before_is_pruned_further() -> None:
    model, ids = tiny_decoder(), tokens()
    structure, _ = scattered(model, True).fold()
    small = slice_model(model, structure)
    gating = Gating(small, BinaryGates(small, 2.0), True)
    assert [len(values) for values in gating.gates.logits] == [
        len(sub.kept) for _, _, sub in structure.each() if sub.kept
    ]
    with torch.no_grad():
        gating.gates.logits[0][0] = -1.0
    expected, _ = read(small, ids)
    further, _ = gating.fold()
    assert further.heads() == structure.heads() - 1
    assert further.within(structure)
    torch.testing.assert_close(read(slice_model(small, further), ids)[0], expected, atol=1e-5, rtol=0)


def pattern(step: int) -> dict[str, Tensor]:
    """Every token is the one two before it."""
    torch.manual_seed(step)
    pair = torch.randint(0, 12, (16, 2))
    ids = pair.repeat(1, 8)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


@pytest.fixture(scope="module")
def learned() -> Any:
    """A model that has learned the pattern, and in which the heads 1 and 6 (of 8) are of no use."""
    names = ("word_dropout", "embedding_dropout", "attention_dropout", "output_dropout", "hidden_dropout")
    torch.manual_seed(0)
    config = tiny_config(num_hidden_layers=2, vocab_size=12, **dict.fromkeys(names, 0.0))
    model = AutoModelForCausalLM.from_config(config)
    useless(model)
    context = Trains(150, pattern)
    handle = model.register_forward_pre_hook(lambda *_: useless(model))
    context.train(model, TrainingKeys(learning_rate=5e-3))
    handle.remove()
    useless(model)
    assert model(**pattern(1000)).loss.item() < 1.0
    return model


@torch.no_grad()
def useless(model: Any) -> None:
    for layer, head in ((0, 1), (1, 2)):
        model.transformer.layers[layer].output.weight[:, head * 8 : (head + 1) * 8] = 0


def pruned_with(model: Any, penalty: float, **given: Any) -> tuple[Any, Trains]:
    context = Trains(60, pattern)
    given = {"learning_rate": 1e-5, "gate_learning_rate": 0.1, "penalty_warmup": 0.05} | given
    (found,) = keys(penalty=penalty, **given).prune(copy.deepcopy(model), context)
    return found, context


def test_useless_heads_close_first_and_a_larger_penalty_leaves_fewer(learned: Any) -> None:
    found, context = pruned_with(learned, 0.02)
    kept = [set(layer.sublayers["attention"].kept) for layer in found.structure.layers]
    assert 1 not in kept[0]
    assert 2 not in kept[1]
    closed_at = {
        (at, head): next((i for i, row in enumerate(context.logits) if row[at][head] < 0), 1000)
        for at in range(2)
        for head in range(4)
    }
    first = sorted(closed_at.values())[:2]
    assert max(closed_at[0, 1], closed_at[1, 2]) <= first[-1] + 3
    counts = [pruned_with(learned, penalty)[0].structure.heads() for penalty in (0.0, 0.01, 0.1, 1.0)]
    assert all(a >= b - 1 for a, b in pairwise(counts)), counts
    assert counts[0] == 8
    assert counts[-1] < counts[0] - 2


def test_the_same_seed_prunes_the_same(learned: Any) -> None:
    one, two = (pruned_with(learned, 0.05)[0] for _ in range(2))
    assert one.structure == two.structure
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, accumulation: int) -> None:
    """Weights, gates, log and what is remembered of the text are bitwise those of a whole run."""
    text = tokens(1, 40 * 6 + 1, seed=4)[0]
    features = [
        {"input_ids": text[at : at + 6].tolist(), "labels": text[at + 1 : at + 7].tolist()}
        for at in range(0, 240, 6)
    ]

    class Killed(Exception):
        pass

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}

    def attempt(folder: Path, stop_at: float = 2.0) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        def progress(_what: str, share: float) -> None:
            if share > stop_at:
                raise Killed

        method = keys(
            penalty=0.1, epochs=2.0, batch_size=4, learning_rate=1e-3, gradient_accumulation=accumulation
        )
        model = tiny_decoder()
        gating = Gating(model, BinaryGates(model, 2.0), scale_outputs=True)
        part = HeadGatesPart(gating.gates, method, seed=3)
        log = train(model, Run(method.training, features, collate, folder, 7, progress, part=part))
        return model.state_dict(), log

    whole, log = attempt(tmp_path / "whole")
    with pytest.raises(Killed):
        attempt(tmp_path / "killed", stop_at=0.55)
    assert newest_checkpoint(tmp_path / "killed")
    resumed, resumed_log = attempt(tmp_path / "killed")
    assert "head_gates.logits.0" in whole
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [row["loss"] for row in resumed_log] == [row["loss"] for row in log]
    assert log[-1]["expected_heads"] < log[0]["expected_heads"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"penalty_start": 0.5, "penalty_warmup": 0.5}, "must leave steps with the whole penalty"),
        ({"evaluate_every": 0.1}, "pruned least: leave it out"),
        ({"penalty": -1.0}, "greater than or equal to 0"),
        ({"gate_learning_rate": 0.0}, "greater than 0"),
        ({"target": 0.5}, "unknown key"),
    ],
)
def test_keys_that_do_not_fit_together(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        keys(**given)


def test_a_training_too_short_for_its_schedule_is_refused() -> None:
    part = HeadGatesPart(BinaryGates(tiny_decoder(), 2.0), keys(penalty_warmup=20), 0)
    with pytest.raises(UserError, match="10 optimiser steps end before the penalty is whole"):
        part.before_step(0, 10)

"""The parts by hand: moments, windows, divergence, scores, costs, the second pass."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from compressor.pruning.speed.divergence import Probe, divergence
from compressor.pruning.speed.moments import Moments, input_moments, inputs_of
from compressor.pruning.speed.places import places_of
from compressor.pruning.speed.recovery import Passes, second_pass
from compressor.pruning.speed.scores import (
    HARM,
    NEURON_BLOCK,
    ORDERS,
    _gradients,
    _output_information,
    _own_loss,
    fisher,
    kprune,
    least_together,
    magnitude,
)
from compressor.pruning.speed.sizes import price, probed
from compressor.pruning.speed.window import recorded, window
from tests.pruning.speed.made import batches, database, evidence
from tests.zoo import FFN, HEADS, HIDDEN, LAYERS, TIMED, logits, padded_batch, tiny_model

SIZE = HIDDEN // HEADS


def test_moments_do_not_depend_on_batches() -> None:
    rows = torch.randn(300, 7, generator=torch.Generator().manual_seed(0)) * 0.1 + 100
    moments = Moments()
    for part in rows.split(64):
        moments.add(part)
    exact = rows.double()
    torch.testing.assert_close(moments.mean, exact.mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(exact.T, correction=0), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("family", TIMED)
def test_padding_is_no_input(family: str) -> None:
    model = tiny_model(family)
    place = places_of(model)[1]
    found = input_moments(model, [place], batches(family))[place.key]
    assert found.count == sum(int(batch["attention_mask"].sum()) for batch in batches(family))
    again = input_moments(
        model, [place], [shorter(batch, row) for batch in batches(family) for row in range(6)]
    )
    torch.testing.assert_close(found.mean, again[place.key].mean, atol=1e-6, rtol=1e-5)


def shorter(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    length = int(batch["attention_mask"][row].sum())
    return {name: values[row : row + 1, :length] for name, values in batch.items() if values.dim() == 2}


@pytest.mark.parametrize("family", TIMED)
def test_a_window_computes_what_the_whole_would(family: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    with torch.no_grad(), recorded(model) as outputs:
        model(**inputs)
    whole = logits(model, inputs)
    for start in range(LAYERS):
        with window(model, start, below=outputs[start - 1]):
            assert torch.equal(logits(model, inputs), whole)
    assert torch.equal(logits(model, inputs), whole)


def test_divergence_by_hand() -> None:
    dense, ours = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p, q = dense.softmax(-1), ours.softmax(-1)
    expected = (p * (p / q).log()).sum()
    mask = torch.tensor([[True, True], [True, False]])
    found = divergence({"logits": ours}, {"logits": dense}, mask)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    tokens = {"logits": torch.stack([ours, ours])}, {"logits": torch.stack([dense, dense])}
    found = divergence(*tokens, mask)  # the first text's mean over two tokens, the second's first token
    each = (p * (p / q).log()).sum(-1)
    assert found.item() == pytest.approx((each.mean() + each[0]).item(), rel=1e-5)
    spans = {"start_logits": torch.tensor([[1.0, 9.0]])}, {"start_logits": torch.tensor([[5.0, -9.0]])}
    assert divergence(*spans, torch.tensor([[True, False]])).item() == pytest.approx(0, abs=1e-6)
    scores = {"logits": torch.tensor([[1.0]])}, {"logits": torch.tensor([[3.0]])}
    assert divergence(*scores, torch.tensor([[True]])).item() == pytest.approx(2.0)


def test_a_probe_stops_where_a_candidate_is_certainly_worse() -> None:
    model = tiny_model("bert")
    probe = Probe(model, batches())
    assert probe.loss() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        model.classifier.weight *= -1
    found = probe.loss()
    assert 0 < found < float("inf")
    assert probe.loss(LAYERS - 1) == pytest.approx(found, rel=1e-6)
    assert probe.loss(limit=found / 100) == float("inf")


def test_fisher_is_of_every_example_s_own_gradients() -> None:
    model = tiny_model("bert")
    found, place = fisher(evidence(model)), places_of(model)[1]
    assert place.key == ("encoder", 0, "ffn")
    gradients = []
    for batch in batches():
        for row in range(6):
            gate = torch.ones(FFN, requires_grad=True)
            handle = place.projection.register_forward_pre_hook(lambda _m, args, gate=gate: (args[0] * gate,))
            loss = model(**{name: values[row : row + 1] for name, values in batch.items()}).loss
            gradients.append(torch.autograd.grad(loss, gate)[0].double())
            handle.remove()
    together, gone = torch.zeros(len(gradients), dtype=torch.float64), []
    of_unit = torch.stack(gradients).T
    for _ in range(FFN):
        harm = {u: float((together + of_unit[u]).square().sum()) for u in range(FFN) if u not in gone}
        gone.append(min(harm, key=lambda unit: harm[unit]))
        together += of_unit[gone[-1]]
    assert found[place.key] == gone


@pytest.mark.parametrize("seed", range(10))
def test_gradients_that_cancel_go_together_and_no_set_is_worse_than_by_squares(seed: int) -> None:
    """What a rearrangement of masks promises: as many units, and no more harm by the block-diagonal Fisher."""
    random = torch.Generator().manual_seed(seed)
    common = 0.3 * torch.randn(40, 1, generator=random)
    gradients = torch.randn(40, 64, generator=random) * torch.rand(64, generator=random) + common
    products = (gradients.T @ gradients).double()
    order, by_squares = least_together(products), products.diagonal().argsort().tolist()
    assert sorted(order) == list(range(64))
    harm = [
        [float(products[s][:, s].sum()) for n in range(1, 65) if (s := o[:n])] for o in (order, by_squares)
    ]
    assert all(one <= other * (1 + 1e-9) for one, other in zip(*harm, strict=True))
    assert sum(harm[0]) < sum(harm[1])
    # Twice a gradient, against once each of two others: alone it is the worst, with them it costs nothing.
    cancelling = torch.tensor([[1.0, 1.0, -2.0, 0.9]])
    assert set(least_together(cancelling.T @ cancelling)[:3]) != {0, 1, 3}


@pytest.mark.parametrize("score", [s for s in ORDERS if s != "random"])
def test_what_every_score_goes_by(score: str) -> None:
    """One neuron always shouts at no one, another has large weights and never says anything."""
    loud, silent = 5, 9
    model = tiny_model("bert")
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        layer.intermediate.dense.bias[loud] = 50.0
        layer.output.dense.weight[:, loud] = 0.0
        layer.intermediate.dense.bias[silent] = -50.0
        layer.output.dense.weight[:, silent] *= 4.0
    order = ORDERS[score](evidence(model))["encoder", 1, "ffn"]
    assert sorted(order) == list(range(FFN))
    last = {"activation": loud, "magnitude": silent}.get(score)
    for neuron in (loud, silent):
        if neuron == last:
            assert order[-1] == neuron
        else:
            # Second order takes neurons in blocks, and what was never seen for a little by its damping.
            assert order.index(neuron) < (FFN - NEURON_BLOCK if score == "second-order" else 2)


def test_kprune_s_knowledge_is_there_before_anything_is_pruned() -> None:
    model = tiny_model("bert")
    plain, found = magnitude(evidence(model)), kprune(evidence(model))
    assert all(sorted(found[key]) == sorted(plain[key]) for key in plain)
    assert found == kprune(evidence(model))
    with torch.no_grad():
        for place in places_of(model):
            place.projection.weight[:, : place.size] = 0
    dead = kprune(evidence(model))
    assert all(order[0] == 0 for order in dead.values())


def test_at_the_dense_model_the_divergence_has_no_slope_and_labels_of_its_own_do() -> None:
    def published(output: Any, inputs: Any, _random: Any) -> Tensor:
        dense = {"logits": output.logits.detach()}
        return divergence({"logits": output.logits}, dense, inputs["attention_mask"].bool()) / 6

    proof = evidence(tiny_model("bert"))
    steepest = [each.abs().max() for of in _gradients(proof, published) for each in of.values()]
    flattest = [each.abs().amax(0).min() for of in _gradients(proof, _own_loss) for each in of.values()]
    assert float(max(steepest)) < 1e-5
    assert float(min(flattest)) > 1e-5


def test_a_candidate_is_held_and_given_back(tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), padded_batch("bert")
    made = database(model, tmp_path)
    before = logits(model, inputs)
    with made.holding({("encoder", 1, "ffn"): 8, ("encoder", 2, "attention"): None}):
        assert not torch.allclose(logits(model, inputs), before)
        assert int(model.bert.encoder.layer[1].output.dense.weight.abs().sum(0).count_nonzero()) == 8
    assert torch.equal(logits(model, inputs), before)
    whole = {key: len(place.units) for key, place in made.places.items()}
    assert made.structure_of(whole) == structure_of(model)
    some = made.structure_of(whole | {("encoder", 0, "attention"): 0, ("encoder", 1, "attention"): None})
    subs = [layer.sublayers["attention"] for layer in some.layers]
    assert [(sub.active, sub.absent) for sub in subs] == [(False, False), (False, True), (True, False)]


def test_costs_are_measured_once(tmp_path: Path) -> None:
    model = tiny_model("bert")
    made, probe = database(model, tmp_path), Probe(model, batches())
    wanted = {("encoder", 0, "ffn"): [None, 0, 4, 20], ("encoder", 2, "attention"): [None, 0, 1, 3]}
    *_, found = made.costs(probe, wanted)
    assert all(cost > 0 for costs in found.values() for cost in costs.values())
    made.loss = None  # type: ignore[assignment]
    *_, again = made.costs(probe, wanted)
    assert again == found


def test_costs_between_those_measured() -> None:
    units = (None, 0, 2, 4, 6, 8)
    assert probed(units) == [None, 0, 2, 6]
    assert price(units, {None: 9.0, 0: 5.0, 2: 4.0, 6: 1.0}).tolist() == [9.0, 5.0, 4.0, 2.5, 1.0, 0.0]


@pytest.mark.parametrize("family", TIMED)
def test_a_second_pass_over_an_unpruned_model_changes_nothing(family: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    before = logits(model, inputs)
    second_pass(model, tiny_model(family), structure_of(model), batches(family))
    torch.testing.assert_close(logits(model, inputs), before, atol=2e-4, rtol=1e-4)


def test_a_second_pass_comes_closer_to_the_dense_stream(tmp_path: Path) -> None:
    model, dense = tiny_model("bert"), tiny_model("bert")
    made, probe = database(model, tmp_path), Probe(dense, batches())
    choice = {key: max(1, len(place.units) * 3 // 5) for key, place in made.places.items()}
    made.apply(choice)
    structure = made.structure_of(choice)
    with Gates(model, structure):
        probe.model = model
        before = probe.loss()
        second_pass(model, dense, structure, batches())
        assert probe.loss() < before
    for place in places_of(model):
        kept = choice[place.key] * place.size
        assert int(place.projection.weight.abs().sum(0).count_nonzero()) == kept


def test_a_second_pass_goes_through_layers_that_only_hand_on_a_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tiny_model("bert", num_hidden_layers=3)
    gone = {("encoder", 1, "attention"): SubLayer(absent=True), ("encoder", 1, "ffn"): SubLayer()}
    model = slice_model(whole, structure_of(whole).keeping(gone))
    seen: list[tuple[int, Tensor]] = []
    advance = Passes.advance

    def watched(passes: Passes, layer: int) -> None:
        advance(passes, layer)
        seen.append((layer, passes._below[0][0]))

    monkeypatch.setattr(Passes, "advance", watched)
    second_pass(model, deepcopy(model), structure_of(model), batches())
    assert [layer for layer, _ in seen] == [0, 0, 1, 1, 2, 2]  # ours and the dense model's
    expected = model(**inputs_of(model, batches()[0]), output_hidden_states=True).hidden_states
    for layer, stream in seen[::2]:
        torch.testing.assert_close(stream, expected[layer + 1], atol=2e-4, rtol=1e-4)


def test_errors_count_by_what_they_change_in_the_answers() -> None:
    """Where the classifier reads nothing of half the hidden width, the last FFN's errors there are free."""
    model = tiny_model("bert")
    place = places_of(model)[-1]
    with torch.no_grad():
        place.norm.weight[: HIDDEN // 2] = 0
    proof = evidence(model)
    information = _output_information(proof)[place.key]
    assert information.diagonal().mean().item() == pytest.approx(1)
    felt = information.diagonal() - HARM
    assert felt[: HIDDEN // 2].mean() < 0.5 * felt[HIDDEN // 2 :].mean()
    unlabelled = [{n: v for n, v in batch.items() if n != "labels"} for batch in proof.batches]
    again = _output_information(replace(proof, batches=unlabelled))[place.key]
    assert torch.equal(again, information)

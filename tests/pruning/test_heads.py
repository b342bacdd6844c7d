"""Removing heads by a score: the scores by hand, what they choose, and what is left behind."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compressor.errors import UserError
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates, gate_input
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from compressor.pruning.head_scores import magnitude, sensitivity
from compressor.pruning.heads import Heads, _keep_best
from tests.pruning.masked import parts
from tests.zoo import CUTTABLE, HEADS, HIDDEN, LAYERS, logits, padded_batch, tiny_model

SIZE = HIDDEN // HEADS
LABELS = torch.tensor([0, 1, 0])


def keys(**given: Any) -> Heads:
    return Heads(**({"method": "heads"} | given))


class Labelled:
    """A context with a few labelled batches."""

    seed = 3
    target = None

    def __init__(self, family: str = "bert") -> None:
        self.family = family
        self.passes = 0

    def labelled_batches(self) -> Iterable[dict[str, torch.Tensor]]:
        self.passes += 1
        for seed in range(2):
            yield padded_batch(self.family, seed=seed) | {"labels": LABELS}


def kept(structure: Any) -> list[tuple[int, ...]]:
    return [layer.sublayers["attention"].kept for layer in structure.layers]


def test_sensitivity_by_hand() -> None:
    """|d loss / d gate| of one example and one head at a time, averaged, and divided by the layer's norm."""
    model = tiny_model("bert")
    found = sensitivity(model, structure_of(model), Labelled())
    sums = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
    for batch in Labelled().labelled_batches():
        for row in range(3):
            one = {name: values[row : row + 1] for name, values in batch.items()}
            gates = [torch.ones(HEADS, requires_grad=True) for _ in range(LAYERS)]
            handles = [
                gate_input(parts(model, i)["o"], lambda gate=gate: gate, SIZE) for i, gate in enumerate(gates)
            ]
            grads = torch.autograd.grad(model(**one).loss, gates)
            sums += torch.stack(grads).abs().double()
            for handle in handles:
                handle.remove()
    expected = sums / sums.norm(dim=1, keepdim=True)
    for i in range(LAYERS):
        torch.testing.assert_close(found["encoder", i, "attention"], expected[i], atol=1e-5, rtol=1e-4)
    inputs = padded_batch("bert")
    assert torch.equal(logits(model, inputs), logits(tiny_model("bert"), inputs))  # no hook is left


def test_magnitude_by_hand() -> None:
    model = tiny_model("bert")
    weight = parts(model, 1)["o"].weight
    found = magnitude(model, structure_of(model), Labelled())["encoder", 1, "attention"]
    for head in range(HEADS):
        columns = weight[:, head * SIZE : (head + 1) * SIZE]
        assert found[head].item() == pytest.approx(columns.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("family", CUTTABLE)
@pytest.mark.parametrize("score", ["sensitivity", "magnitude", "random"])
def test_it_keeps_so_many_and_slices_exactly(family: str, score: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    (pruned,) = keys(score=score, keep=0.5).prune(model, Labelled(family))
    assert pruned.structure.heads() == LAYERS * HEADS // 2
    with Gates(model, pruned.structure):
        expected = logits(model, inputs)
    small = slice_model(model, pruned.structure)
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=0)


def test_what_removed_heads_always_output_stays() -> None:
    """Values that are the same at every token are no loss: their bias moves on."""
    model, inputs = tiny_model("bert"), padded_batch("bert")
    with torch.no_grad():
        parts(model)["v"].weight[: 2 * SIZE] = 0
    expected = logits(model, inputs)
    (pruned,) = keys(score="explicit", drop={0: [0, 1]}).prune(model, Labelled())
    assert kept(pruned.structure)[0] == (2, 3)
    torch.testing.assert_close(
        logits(slice_model(model, pruned.structure), inputs), expected, atol=1e-5, rtol=0
    )


def scores(*rows: list[float]) -> Any:
    return {("encoder", i, "attention"): torch.tensor(row) for i, row in enumerate(rows)}


def test_global_and_layerwise_choices() -> None:
    structure = structure_of(tiny_model("bert"))
    table = scores([0.9, 0.8, 0.7, 0.6], [0.5, 0.1, 0.1, 0.1], [0.2, 0.3, 0.1, 0.0])
    assert kept(_keep_best(structure, table, 5, "global")) == [(0, 1, 2, 3), (0,), ()]
    assert kept(_keep_best(structure, table, 6, "layer")) == [(0, 1), (0, 1), (0, 1)]
    assert kept(_keep_best(structure, table, 0, "global")) == [(), (), ()]
    assert kept(_keep_best(structure, table, 12, "global")) == [(0, 1, 2, 3)] * 3


def test_steps_score_again() -> None:
    context = Labelled()
    (pruned,) = keys(score="sensitivity", keep=3, steps=3).prune(tiny_model("bert"), context)
    assert context.passes == 3
    assert pruned.structure.heads() == 3


def test_heads_that_are_gone_are_not_scored() -> None:
    model = tiny_model("bert")
    structure = structure_of(model).keeping(
        {("encoder", 0, "attention"): SubLayer((1, 3)), ("encoder", 1, "attention"): SubLayer()}
    )
    with Gates(model, structure):
        found = sensitivity(model, structure, Labelled())
    assert {key[1]: len(values) for key, values in found.items()} == {0: 2, 2: 4}
    small = slice_model(model, structure)
    again = sensitivity(small, structure, Labelled())
    for key, values in found.items():
        torch.testing.assert_close(again[key], values, atol=1e-5, rtol=1e-4)


def test_random_heads_follow_the_seed() -> None:
    chosen = []
    for seed in (1, 1, 2):
        context = Labelled()
        context.seed = seed
        (pruned,) = keys(score="random", keep=6).prune(tiny_model("bert"), context)
        chosen.append(pruned.structure)
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "say how many heads"),
        ({"score": "explicit"}, "name the heads"),
        ({"keep": 0.5, "drop": {0: [1]}}, "name the heads"),
        ({"score": "explicit", "drop": {0: [1]}, "keep": 3}, "leave `keep` out"),
        ({"score": "random", "keep": 3, "steps": 2}, "does not"),
        ({"keep": 0.0}, "greater than 0"),
        ({"score": "explicit", "drop": {}}, "`drop` names no head"),
        ({"score": "explicit", "drop": {0: []}}, "`drop` names no head"),
        ({"score": "explicit", "drop": {0: [1]}, "scope": "layer"}, "`scope` is for scores that choose"),
    ],
)
def test_keys_that_do_not_fit_together(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        keys(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"score": "explicit", "drop": {3: [0]}}, "no layer 3: this model has 0 to 2"),
        ({"score": "explicit", "drop": {0: [4]}}, "no head 4 in layer 0"),
        ({"keep": 13}, "more than the 12 heads"),
    ],
)
def test_what_the_model_does_not_have_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        keys(**given).check(tiny_model("bert").config)

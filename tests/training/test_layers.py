"""Distillation of hidden states: which layers meet, what it starts from, that it teaches (CoFi specification, 3)."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import UserError
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.schema import Distill
from compressor.training.layers import CONTAINER, LayerDistiller, match_layers, quarters, transform_of
from compressor.training.trainer import train
from tests.training.test_training import rows, run_of
from tests.zoo import HIDDEN, padded_batch, tiny_model


def distiller(student: Any, teacher: Any = None, **keys: Any) -> LayerDistiller:
    return LayerDistiller(
        teacher or tiny_model("bert"), student, Distill(teacher="t", alpha=0.1, layers=0.9, **keys)
    )


def states_of(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    return model(**inputs, output_hidden_states=True).hidden_states


@pytest.mark.parametrize(
    ("layers", "taught"),
    [
        (12, [2, 5, 8, 11]),
        (24, [5, 11, 17, 23]),
        (6, [1, 2, 4, 5]),
        (4, [0, 1, 2, 3]),
        (3, [0, 1, 2]),
        (2, [0, 1]),
        (1, [0]),
    ],
)
def test_the_last_layer_of_every_quarter_is_taught(layers: int, taught: list[int]) -> None:
    assert quarters(layers) == taught


BY_INDEX = [[abs(j - i) + 0.1 for j in range(12)] for i in (2, 5, 8, 11)]
"""A student's layer is the nearer to the teacher's the nearer their numbers are."""
BACKWARDS = [[abs(11 - j - i) + 0.1 for j in range(12)] for i in (2, 5, 8, 11)]


@pytest.mark.parametrize(
    ("distances", "candidates", "ordered"),
    [
        (BY_INDEX, range(12), [2, 5, 8, 11]),
        (BACKWARDS, range(12), [0, 0, 0, 0]),
        (BY_INDEX, [1, 7, 9, 10], [1, 1, 7, 10]),
        (BY_INDEX, [3], [3, 3, 3, 3]),
        (BY_INDEX, [4, 8], [4, 4, 4, 8]),
        (BY_INDEX, [], [11, 11, 11, 11]),
    ],
)
def test_ordered_matching(distances: Any, candidates: Any, ordered: list[int]) -> None:
    assert match_layers(distances, list(candidates), ordered=True) == ordered


def test_ordered_matching_goes_down_while_there_are_layers() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        chosen = match_layers(torch.rand(4, 12).tolist(), list(range(12)), ordered=True)
        assert all(a < b or (a == b == 0) for a, b in pairwise(chosen))


def test_matching_is_by_row_and_free_matching_forgets_what_exists() -> None:
    torch.manual_seed(1)
    table = torch.rand(4, 12)
    moved = (table + torch.tensor([[5.0], [-3.0], [0.5], [9.0]])).tolist()
    for ordered in (True, False):
        assert match_layers(table.tolist(), list(range(12)), ordered) == match_layers(
            moved, list(range(12)), ordered
        )
    assert match_layers(table.tolist(), list(range(12)), ordered=False) == table.argmin(dim=1).tolist()


def test_a_copy_of_the_teacher_begins_without_a_loss_on_the_diagonal() -> None:
    teacher, student, inputs = tiny_model("bert"), tiny_model("bert"), padded_batch("bert")
    for match in ("ordered", "nearest", "same", "windows"):
        layers = distiller(student, teacher, match=match)
        loss = layers.loss(inputs, states_of(student, inputs))
        assert loss.item() == pytest.approx(0.0, abs=1e-10)
    other = tiny_model("bert", seed=1)
    assert distiller(other, teacher).loss(inputs, states_of(other, inputs)).item() > 0.1


def test_the_loss_is_the_sum_of_mean_squares_at_real_tokens() -> None:
    teacher, student, inputs = tiny_model("bert"), tiny_model("bert", seed=1), padded_batch("bert")
    layers = distiller(student, teacher, match="same")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = states_of(student, inputs), states_of(teacher, inputs)
        by_hand = sum((a[real] - b[real]).square().mean() for a, b in zip(ours[1:], theirs[1:], strict=True))
        torch.testing.assert_close(layers.loss(inputs, ours), by_hand)
        beyond = [state.clone() for state in ours]
        for state in beyond:
            state[~real] = 99.0
        torch.testing.assert_close(layers.loss(inputs, beyond), by_hand)


def test_layers_that_do_nothing_are_not_matched() -> None:
    teacher, student, inputs = tiny_model("bert"), tiny_model("bert"), padded_batch("bert")
    dense = structure_of(student)
    gone = {("encoder", 2, name): SubLayer(absent=True) for name in ("attention", "ffn")}
    half = {("encoder", 1, "attention"): SubLayer(absent=True)}
    with Gates(student, dense.keeping(gone | half)):
        states = states_of(student, inputs)
    assert torch.equal(states[3], states[2])
    seen: list[Any] = []
    layers = distiller(student, teacher)
    choose = layers._match
    layers._match = lambda *args: seen.append(choose(*args)) or seen[-1]
    layers.loss(inputs, states)
    assert 2 not in seen[0]
    layers.keys = Distill(teacher="t", alpha=0.1, layers=0.9, match="same")
    layers.loss(inputs, states)
    assert seen[1] == [0, 1, -1]


def test_the_same_layer_is_found_where_others_were_cut_away() -> None:
    """Of a student of three whose middle layer is gone the second is the teacher's third."""
    teacher, student, inputs = tiny_model("bert"), tiny_model("bert"), padded_batch("bert")
    gone = {("encoder", 1, name): SubLayer(absent=True) for name in ("attention", "ffn")}
    student = slice_model(student, structure_of(student).keeping(gone))
    layers, states = distiller(student, teacher, match="same"), states_of(student, inputs)
    assert len(states) == 3
    real = inputs["attention_mask"].bool()
    theirs = states_of(teacher, inputs)
    expected = sum((states[ours][real] - theirs[at][real]).square().mean() for ours, at in ((1, 1), (2, 3)))
    torch.testing.assert_close(layers.loss(inputs, states), expected)


def test_a_student_without_layers_still_learns_from_its_embeddings() -> None:
    student, inputs = tiny_model("bert"), padded_batch("bert")
    small = slice_model(student, Structure(structure_of(student).sizes, ()))
    layers = distiller(small)
    loss = layers.loss(inputs, states_of(small, inputs))
    assert loss.item() > 0
    loss.backward()
    assert layers.transform.weight.grad is not None


def test_the_map_starts_from_each_dimension_to_its_own_and_is_cut_with_the_student() -> None:
    teacher = student = tiny_model("bert")
    dense = structure_of(student)
    small = slice_model(student, Structure(dense.sizes, dense.layers, (1, 4, 7)))
    fresh = transform_of(small, teacher)
    assert fresh.weight.shape == (HIDDEN, 3)
    assert torch.equal(fresh(torch.eye(3)), torch.eye(HIDDEN)[[1, 4, 7]])
    weights = {"weight": torch.randn(HIDDEN, HIDDEN), "bias": torch.randn(HIDDEN)}
    learned = transform_of(small, teacher, weights)
    assert torch.equal(learned.weight, weights["weight"][:, [1, 4, 7]])
    assert torch.equal(learned.bias, weights["bias"])


def test_a_teacher_that_reads_more_is_refused() -> None:
    with pytest.raises(UserError, match=r"distill\.layers: the teacher reads"):
        distiller(tiny_model("distilbert"))


@pytest.mark.parametrize("match", ["same", "nearest", "ordered", "random", "windows"])
def test_it_teaches(match: str, tmp_path: Path) -> None:
    """Hidden states come nearer, the map and the student learn, the teacher does not, nothing of it stays behind."""
    teacher, student = tiny_model("bert"), tiny_model("bert", seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    names = student.state_dict().keys()
    layers = distiller(student, teacher, match=match)
    inputs = padded_batch("bert")
    layers.keys = layers.keys.model_copy(update={"match": "same"})
    far = layers.loss(inputs, states_of(student, inputs)).item()
    layers.keys = layers.keys.model_copy(update={"match": match})
    features = rows(24)
    outputs = {"logits": [np.zeros(2, dtype=np.float32) for _ in features]}
    run = run_of(tmp_path, features, epochs=20.0, learning_rate=3e-3, distill=layers.keys, teacher=outputs)
    run.layers = layers
    train(student, run)
    assert not hasattr(student, CONTAINER)
    assert student.state_dict().keys() == names
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(layers.transform.weight, torch.eye(HIDDEN))
    layers.keys = layers.keys.model_copy(update={"match": "same"})
    assert layers.loss(inputs, states_of(student, inputs)).item() < 0.7 * far

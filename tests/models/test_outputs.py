"""What models return for whole data sets, without padding, and the difference between two of them."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import GateError
from compressor.models.outputs import collect_outputs, torch_runner
from compressor.models.parity import largest_difference, same_function
from compressor.tasks.collate import Collator
from compressor.training.distillation import FAR, PREFIX, collate_with_teacher
from tests.zoo import padded_batch, tiny_model

ROWS = [{"input_ids": list(range(5, 5 + n)), "attention_mask": [1] * n} for n in (3, 1, 6, 4)]


def collate(left: bool) -> Collator:
    return Collator({}, left, frozenset())


def echo(inputs: Any) -> dict[str, np.ndarray]:
    """Answers each token with its id, and each text with the sum of its ids, twice."""
    ids = inputs["input_ids"].numpy().astype(np.float32)
    return {
        "start_logits": ids,
        "tags": np.stack([ids, -ids], axis=-1),
        "logits": ids.sum(1)[:, None] * [1, 2],
    }


@pytest.mark.parametrize("left", [False, True])
def test_every_feature_gets_what_its_own_tokens_gave(left: bool) -> None:
    names = ["start_logits", "tags", "logits"]
    outputs = collect_outputs(echo, ROWS, collate(left), names, lambda *_: None, batch_size=3)
    for number, row in enumerate(ROWS):
        ids = np.array(row["input_ids"])
        assert outputs["start_logits"][number].tolist() == ids.tolist()
        assert outputs["tags"][number].tolist() == np.stack([ids, -ids], axis=-1).tolist()
        assert outputs["logits"][number].tolist() == [ids.sum(), 2 * ids.sum()]


def test_a_model_ignores_inputs_of_another_family() -> None:
    model, inputs = tiny_model("distilbert"), padded_batch("bert")
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    found, expected = (torch_runner(model)(given)["logits"] for given in (inputs, plain))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("left", [False, True])
def test_the_teachers_outputs_stand_at_the_tokens_they_are_of(left: bool) -> None:
    rows = [
        row
        | {
            f"{PREFIX}start_logits": np.array(row["input_ids"], np.float32),
            f"{PREFIX}logits": np.array([n, 7.0], np.float32),
        }
        for n, row in enumerate(ROWS)
    ]
    batch = collate_with_teacher(collate(left))(rows)
    real = batch["attention_mask"].bool()
    starts = batch[f"{PREFIX}start_logits"]
    assert torch.equal(starts[real], batch["input_ids"][real].float())
    assert (starts[~real] == FAR).all()
    assert batch[f"{PREFIX}logits"].tolist() == [[0, 7], [1, 7], [2, 7], [3, 7]]


def test_no_difference_hides_behind_what_is_no_number() -> None:
    numbers, spoilt = np.array([1.0, 2.0]), np.array([1.0, np.nan])
    assert largest_difference(numbers, numbers + 0.5) == 0.5
    assert largest_difference(numbers, spoilt) == largest_difference(spoilt, spoilt) == math.inf
    assert largest_difference(numbers, np.array([np.inf, 2.0])) == math.inf


def test_a_model_that_computes_nan_is_not_the_same_function() -> None:
    one, other = tiny_model("bert"), tiny_model("bert")
    assert same_function(one, other) == 0.0
    with torch.no_grad():
        other.classifier.bias[0] = float("nan")
    with pytest.raises(GateError, match="differs from the gated one by inf"):
        same_function(one, other)

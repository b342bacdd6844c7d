"""What layers do to the data: measures of hidden states, by hand and by what must not matter."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from compressor.models.architecture import structure_of
from compressor.models.slicing import slice_model
from compressor.pruning import layer_measures
from compressor.pruning.layer_drop import without
from tests.zoo import LAYERS, padded_batch, tiny_model


def test_measures_do_not_depend_on_batches_or_padding() -> None:
    model = tiny_model("bert")
    rows = [padded_batch("bert", seed=seed) for seed in range(2)]
    longer = [{k: torch.nn.functional.pad(v, (0, 4)) for k, v in batch.items()} for batch in rows]
    single = [{k: v[i : i + 1] for k, v in batch.items()} for batch in rows for i in range(3)]
    for one in (layer_measures.contribution, layer_measures.block_influence):
        expected = one(model, rows)
        for other in (longer, single, reversed(single)):
            np.testing.assert_allclose(one(model, other), expected, atol=1e-6)


def test_measures_do_not_depend_on_the_scale_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_model("bert"), [padded_batch("bert")]
    measures = (layer_measures.contribution, layer_measures.block_influence)
    expected = [one(model, batches) for one in measures]
    states = layer_measures._hidden_states

    def scaled(*args: Any) -> Iterable[Any]:
        return ((tuple(7.5 * state for state in layers), mask) for layers, mask in states(*args))

    monkeypatch.setattr(layer_measures, "_hidden_states", scaled)
    for one, before in zip(measures, expected, strict=True):
        np.testing.assert_allclose(one(model, batches), before, atol=1e-6)


def test_the_token_of_the_text_is_the_last_where_the_family_puts_it_there() -> None:
    """XLNet: padding on the left, `[CLS]` at the end."""
    model, batch = tiny_model("xlnet"), padded_batch("xlnet")
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"][1:, 0].any()
    with torch.no_grad():
        states = model.transformer(**batch, output_hidden_states=True).hidden_states
    expected = [
        torch.nn.functional.cosine_similarity(a[:, -1], b[:, -1], dim=-1).mean().item()
        for a, b in itertools.pairwise(states)
    ]
    np.testing.assert_allclose(layer_measures.contribution(model, [batch]), expected, atol=1e-6)
    longer = {name: torch.nn.functional.pad(values, (4, 0)) for name, values in batch.items()}
    np.testing.assert_allclose(layer_measures.contribution(model, [longer]), expected, atol=1e-6)
    found = layer_measures.similarity(model, [batch]).diagonal(1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_block_influence_by_hand() -> None:
    model, batch = tiny_model("bert"), padded_batch("bert")
    with torch.no_grad():
        states = model.bert(**batch, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    expected = [
        1 - torch.nn.functional.cosine_similarity(a[real], b[real], dim=-1).mean().item()
        for a, b in itertools.pairwise(states)
    ]
    np.testing.assert_allclose(layer_measures.block_influence(model, [batch]), expected, atol=1e-6)


def test_similarity_is_a_cosine_matrix() -> None:
    model, batches = tiny_model("bert"), [padded_batch("bert", seed=seed) for seed in range(3)]
    found = layer_measures.similarity(model, batches)
    assert found.shape == (LAYERS + 1, LAYERS + 1)
    torch.testing.assert_close(found.diagonal(), torch.ones(LAYERS + 1, dtype=torch.float64))
    torch.testing.assert_close(found, found.T)
    between = [found[i, i + 1].item() for i in range(LAYERS)]
    np.testing.assert_allclose(between, layer_measures.contribution(model, batches), atol=1e-9)


def test_hidden_states_of_a_dropped_model_are_those_of_its_layers() -> None:
    model = tiny_model("bert")
    small = slice_model(model, without(structure_of(model), [1]))
    outputs = small(**padded_batch("bert"), output_hidden_states=True, output_attentions=True)
    assert (len(outputs.hidden_states), len(outputs.attentions)) == (LAYERS, LAYERS - 1)

"""The shape that a latency table is made for, out of a model's config."""

from dataclasses import replace

import pytest

from compressor.benchmark.latency_setting import shape_of
from compressor.errors import UserError
from compressor.models.architecture import structure_of
from compressor.models.slicing import slice_model
from tests.zoo import FFN, HEADS, HIDDEN, LAYERS, random_structure, tiny_config, tiny_model


def test_the_shape_of_a_cut_model_is_that_of_its_origin():
    model = tiny_model("electra")
    shape = shape_of(model.config)
    assert (shape.layers, shape.hidden, shape.heads, shape.ffn) == (LAYERS, HIDDEN, HEADS, FFN)
    assert (shape.embedding, shape.classifier) == (16, HIDDEN)
    structure = random_structure(structure_of(model), 4, hidden=True)
    assert shape_of(slice_model(model, structure).config) == replace(shape, hidden=HIDDEN // 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "silu"}, "the activation 'silu'"),
        ({"compressor": {"norm": "affine"}}, "the norm 'affine'"),
    ],
)
def test_models_that_no_table_is_of(changes, says):
    config = tiny_config("bert")
    config.update(changes)
    with pytest.raises(UserError, match=says):
        shape_of(config)

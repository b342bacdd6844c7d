"""Made-up inputs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.benchmark.inputs import parse_input_shapes, random_inputs
from compressor.benchmark.sessions import open_session
from compressor.errors import UserError
from tests.benchmark.graphs import VOCABULARY, encoder, passes_through


def opened(path):
    return open_session(path, "cpu", 1)


def test_ids_fill_the_vocabulary_masks_are_ones_token_types_zeros(saved):
    arrays = random_inputs(opened(saved(encoder(["batch_size", "sequence_length"]))), 3, 400, seed=0)
    assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(arrays, (3, 400))
    assert arrays["input_ids"].dtype == np.int64
    assert arrays["input_ids"].min() == 0
    assert arrays["input_ids"].max() == VOCABULARY - 1
    assert (arrays["attention_mask"] == 1).all()
    assert (arrays["token_type_ids"] == 0).all()


def test_made_up_inputs_run_whatever_the_ids_are_called(saved):
    session = opened(saved(encoder(["batch", "sequence"], ids="tokens")))
    arrays = random_inputs(session, 2, 300, seed=0)
    assert session.run(None, arrays)[0].shape == (2, 300, 16)
    assert arrays["tokens"].max() > 1


def test_ids_are_found_behind_a_transposition(saved):
    """As XLNet reads them: length first."""
    words = numpy_helper.from_array(np.ones((VOCABULARY, 8), np.float32), "words")
    nodes = [
        helper.make_node("Transpose", ["ids"], ["turned"], perm=[1, 0]),
        helper.make_node("Gather", ["words", "turned"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "turned", given, out, [words])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    assert random_inputs(opened(saved(model)), 4, 60, seed=0)["ids"].max() > VOCABULARY // 2


def test_the_same_seed_gives_the_same_inputs(saved):
    session = opened(saved(encoder(["batch", "seq_len"])))
    first, again, other = (random_inputs(session, 1, 64, seed)["input_ids"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_fused_embedding_is_looked_into(saved):
    words, types, scale = (
        numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("words", (70, 8)), ("types", (2, 8)), ("scale", (8,)))
    )
    positions = numpy_helper.from_array(np.ones((64, 8), np.float32), "positions")
    node = helper.make_node(
        "EmbedLayerNormalization",
        ["ids", "kinds", "words", "positions", "types", "scale", "scale"],
        ["y", "mask_index"],
        domain="com.microsoft",
    )
    given = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "seq"]) for name in ("ids", "kinds")
    ]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "fused", given, out, [words, positions, types, scale])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    session = opened(saved(helper.make_model(graph, opset_imports=opsets, ir_version=9)))
    arrays = random_inputs(session, 4, 60, seed=0)
    assert arrays["ids"].max() > 60
    assert arrays["kinds"].max() <= 1


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(TensorProto.FLOAT, np.float32), (TensorProto.FLOAT16, np.float16), (TensorProto.BOOL, np.bool_)],
)
def test_other_types(saved, kind, dtype):
    arrays = random_inputs(opened(saved(passes_through("pixels", kind, ["batch", 3]))), 5, 128, seed=0)
    assert arrays["pixels"].shape == (5, 3)
    assert arrays["pixels"].dtype == dtype


def test_positions_count_up(saved):
    session = opened(saved(passes_through("position_ids", TensorProto.INT64, ["batch", "seq"])))
    assert random_inputs(session, 2, 2, seed=0)["position_ids"].tolist() == [[0, 1], [0, 1]]


def test_a_dimension_nobody_gave_is_named_with_the_flag_that_gives_it(saved):
    session = opened(
        saved(passes_through("past", TensorProto.FLOAT, ["batch", 12, "past_sequence_length", 64]))
    )
    with pytest.raises(UserError, match=r"'past'.*'past_sequence_length'.*--input past=8x8x8x8"):
        random_inputs(session, 1, 128, seed=0)
    arrays = random_inputs(session, 1, 128, seed=0, overrides={"past": (1, 12, 5, 64)})
    assert arrays["past"].shape == (1, 12, 5, 64)


def test_a_model_of_fixed_shape_runs_at_that_shape_only(saved):
    session = opened(saved(encoder([1, 32])))
    assert random_inputs(session, 1, 32, seed=0)["input_ids"].shape == (1, 32)
    with pytest.raises(UserError, match=r"fixed to 1x32.*batch 1 with 64 tokens"):
        random_inputs(session, 1, 64, seed=0)
    with pytest.raises(UserError, match=r"fixed to 1x32.*batch 8"):
        random_inputs(session, 8, 32, seed=0)


def test_an_override_of_no_input_is_an_error(saved):
    session = opened(saved(encoder(["batch", "sequence"])))
    with pytest.raises(UserError, match=r"--input input_id:.*did you mean 'input_ids'"):
        random_inputs(session, 1, 8, seed=0, overrides={"input_id": (1, 8)})


def test_texts_cannot_be_made_up(saved):
    session = opened(saved(passes_through("words", TensorProto.STRING, ["batch"])))
    with pytest.raises(UserError, match=r"'words' is a tensor\(string\)"):
        random_inputs(session, 1, 8, seed=0)


def test_shapes_are_parsed():
    assert parse_input_shapes(["ids=1x128", "a=b=3"]) == {"ids": (1, 128), "a=b": (3,)}
    assert parse_input_shapes([]) == {}


@pytest.mark.parametrize("text", ["ids", "ids=", "=1x2", "ids=1x", "ids=0x2", "ids=1,128", "ids=axb"])
def test_what_is_no_shape_is_an_error(text):
    with pytest.raises(UserError, match="name=shape"):
        parse_input_shapes([text])


def test_a_file_that_was_replaced_is_read_again(saved):
    path = saved(encoder(["batch", "sequence"]))
    random_inputs(opened(path), 1, 8, seed=0)
    model = encoder(["batch", "sequence"])
    wider = numpy_helper.from_array(np.ones((5000, 16), np.float32), "words")
    model.graph.initializer[0].CopyFrom(wider)
    onnx.save(model, path)
    assert random_inputs(opened(path), 1, 64, seed=0)["input_ids"].max() > VOCABULARY

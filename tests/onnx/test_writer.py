"""Encoder-decoders on onnxruntime: logits and texts as in PyTorch, whatever is left of the layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from compressor.errors import GateError
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from compressor.models.writer import TorchSteps
from compressor.onnx.export import check_parity, parity
from compressor.onnx.quantize import Scheme, quantize
from compressor.onnx.runtime import OnnxModel, open_generator
from compressor.onnx.writer import export_writer
from compressor.parts import graphs_of, part_of, write_parts
from compressor.serve.generation import Settings, generate
from tests.zoo import VOCABULARY, WRITERS, padded_batch, random_structure, tiny_model

END = 7


def texts(family: str, rows: int) -> dict[str, torch.Tensor]:
    """Random texts of many lengths."""
    pad = int(WRITERS[family]["pad_token_id"])  # type: ignore[call-overload]
    random = np.random.default_rng(5)
    ids = random.integers(3, VOCABULARY, (rows, 20))
    mask = (np.arange(20)[None] < random.integers(1, 21, rows)[:, None]).astype(np.int64)
    return {"input_ids": torch.tensor(np.where(mask, ids, pad)), "attention_mask": torch.tensor(mask)}


def settings(model: PreTrainedModel, **keys: Any) -> Settings:
    config = model.config
    first, pad = config.decoder_start_token_id, config.pad_token_id
    return Settings(**{"first": first, "end": END, "pad": pad, "max_tokens": 14, **keys})


def by_transformers(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], **keys: Any
) -> NDArray[np.int64]:
    """What transformers' own generation writes, without what it begins with."""
    pad = model.config.pad_token_id
    usual = {
        "max_new_tokens": 14,
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": END,
        "pad_token_id": pad,
    }
    usual |= {"forced_eos_token_id": None, "forced_bos_token_id": None, "use_cache": False}
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        found: NDArray[np.int64] = model.generate(**ids, **(usual | keys))[:, 1:].numpy()
    return found


def same(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Equal up to each row's end: what stands behind it is padding."""
    return [cut(row) for row in one.tolist()] == [cut(row) for row in other.tolist()]


@torch.inference_mode()
def likelihood(model: PreTrainedModel, inputs: dict[str, torch.Tensor], row: int, tokens: list[int]) -> float:
    """The sum of the tokens' log-probabilities after that text."""
    own = {name: inputs[name][row : row + 1] for name in ("input_ids", "attention_mask")}
    before = torch.tensor([[model.config.decoder_start_token_id, *tokens[:-1]]])
    found = model(**own, decoder_input_ids=before).logits[0].log_softmax(-1)
    return float(found[range(len(tokens)), tokens].sum())


def cut(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_logits_and_texts_are_pytorch_s(family: str, seed: int | None, tmp_path: Path) -> None:
    """Greedy, on 50 texts: by transformers, by our loop in PyTorch, and by our loop on onnxruntime."""
    model, inputs = tiny_model(family), texts(family, 50)
    small = model
    if seed is not None:
        structure = random_structure(structure_of(model), seed)
        small = slice_model(model, structure)
        with Gates(model, structure):
            gated = by_transformers(model, inputs)
    keys = settings(small)
    expected = by_transformers(small, inputs)
    if seed is None:  # what is left of a model may not depend on the text
        assert len({tuple(row) for row in expected.tolist()}) > 3
    if seed is not None:
        assert same(gated, expected)
    assert same(generate(TorchSteps(small), inputs, keys), expected)
    export_writer(small, 18, tmp_path, tokens=6)
    assert check_parity(small, tmp_path, 1e-4)["inputs"] > 10
    assert same(generate(open_generator(tmp_path), inputs, keys), expected)


@pytest.mark.parametrize("family", WRITERS)
def test_beams_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """With all that a recipe can say about writing."""
    model, inputs = tiny_model(family, seed=2), texts(family, 12)
    export_writer(model, 18, tmp_path, tokens=6)
    generator = open_generator(tmp_path)
    for keys in (
        {"beams": 3},
        {"beams": 4, "length_penalty": 2.0, "min_tokens": 5, "no_repeat_ngram": 2},
        {"beams": 2, "no_repeat_ngram": 3, "forced": 9},
        {"no_repeat_ngram": 2, "min_tokens": 4},
    ):
        theirs: dict[str, Any] = {
            "num_beams": keys.get("beams", 1),
            "early_stopping": "beams" in keys,
            "length_penalty": keys.get("length_penalty", 1.0),
            "no_repeat_ngram_size": keys.get("no_repeat_ngram", 0),
            "min_new_tokens": keys.get("min_tokens", 0),
            "forced_bos_token_id": keys.get("forced"),
        }
        expected = by_transformers(model, inputs, **theirs)
        made = settings(model, **keys)
        for row, pair in enumerate(zip(generate(generator, inputs, made), expected, strict=True)):
            mine, other = (cut(one.tolist()) for one in pair)
            if mine != other:  # two candidates may be as likely as each other
                assert likelihood(model, inputs, row, mine) == pytest.approx(
                    likelihood(model, inputs, row, other), abs=1e-4
                ), (keys, mine, other)


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("kind", [SubLayer(), SubLayer(absent=True)], ids=["constant", "absent"])
def test_decoders_without_any_attention_of_a_kind_write_too(
    family: str, kind: SubLayer, tmp_path: Path
) -> None:
    model, inputs = tiny_model(family), texts(family, 6)
    for name in ("attention", "cross_attention"):
        keys = [
            (la.stack, la.index, name)
            for la in structure_of(model).layers
            if la.stack == "decoder" and name in la.sublayers
        ]
        small = slice_model(model, structure_of(model).keeping(dict.fromkeys(keys, kind)))
        folder = tmp_path / name
        folder.mkdir()
        export_writer(small, 18, folder, tokens=4)
        check_parity(small, folder, 1e-4)
        expected, made = by_transformers(small, inputs), settings(small)
        assert same(generate(open_generator(folder), inputs, made), expected)


def test_the_past_has_as_many_heads_as_each_layer_has_left(tmp_path: Path) -> None:
    model = tiny_model("bart")
    structure = structure_of(model).keeping(
        {
            ("decoder", 0, "attention"): SubLayer((1,)),
            ("decoder", 1, "attention"): SubLayer(),
            ("decoder", 2, "cross_attention"): SubLayer((0, 2, 3)),
        }
    )
    export_writer(slice_model(model, structure), 18, tmp_path, tokens=4)
    shapes = {node.name: node.shape for node in OnnxModel(tmp_path / "decoder.onnx").session.get_inputs()}
    assert shapes["past.0.key"][1] == 1
    assert "past.1.key" not in shapes
    assert shapes["past.2.value"][1] == 4
    assert shapes["cross.2.key"][1] == 3
    assert part_of(tmp_path, "next_token").sizes == {"length": 1, "past_length": 2}


def test_a_wrong_graph_fails(tmp_path: Path) -> None:
    model = tiny_model("t5")
    export_writer(model, 18, tmp_path, tokens=4)
    with torch.no_grad():
        model.decoder.block[1].layer[1].EncDecAttention.o.weight += 0.05
    with pytest.raises(GateError, match="differs from PyTorch"):
        check_parity(model, tmp_path, 1e-4)


@pytest.mark.parametrize("family", WRITERS)
def test_int8_of_both_graphs_is_close(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    small = slice_model(model, random_structure(structure_of(model), 2))
    fp32, int8 = tmp_path / "fp32", tmp_path / "int8"
    for folder in (fp32, int8):
        folder.mkdir()
    export_writer(small, 18, fp32, tokens=4)
    assert graphs_of(fp32) == ["decoder.onnx", "encoder.onnx"]
    for name in graphs_of(fp32):
        quantize(fp32 / name, int8 / name, Scheme())
    write_parts(int8, [part_of(fp32, "generation"), part_of(fp32, "encoder")])
    assert 0 < parity(small, int8)["max_abs_error"] < 3
    inputs = {k: v.numpy() for k, v in padded_batch(family).items()}
    assert generate(open_generator(int8), inputs, settings(small)).shape[0] == 3

"""Pooling inside the model: padding takes no part, plain encoders load into it, slicing keeps its width."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.embedding import embedding_loss, stated
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure
from compressor.models.weights import read_weights
from compressor.onnx.export import export_onnx, parity
from compressor.onnx.quantize import Scheme, quantize
from compressor.onnx.runtime import OnnxModel
from tests.zoo import CONFIGS, HIDDEN, MEAN, padded_batch, plain_encoder, tiny_model

AUTO = "AutoModelForSentenceEmbedding"
WAYS = [{"pooling": pooling, "normalize": normal} for pooling in ("mean", "cls") for normal in (True, False)]


def embeddings(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).sentence_embedding
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_plain_encoder_s_states_are_pooled(tmp_path: Path, family: str, way: dict[str, Any]) -> None:
    plain_encoder(family).save_pretrained(tmp_path)
    model, trained = checkpoint.open_source(str(tmp_path), AUTO, {"sentence_embedding": way})
    assert trained
    inputs = padded_batch(family)
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path).eval()(**inputs).last_hidden_state
    for row, found in enumerate(embeddings(model, inputs)):
        real = states[row, inputs["attention_mask"][row].bool()]
        cls = -1 if family == "xlnet" else 0
        expected = real[cls] if way["pooling"] == "cls" else real.mean(dim=0)
        expected = expected / expected.norm() if way["normalize"] else expected
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_pool_is_in_the_graph(tmp_path: Path, way: dict[str, Any]) -> None:
    model = tiny_model("bert", "feature-extraction", sentence_embedding=way)
    export_onnx(model, "feature-extraction", 18, tmp_path / "model.onnx")
    assert parity(model, tmp_path / "model.onnx")["max_abs_error"] < 1e-4
    graph = OnnxModel(tmp_path / "model.onnx")
    assert graph.inputs == ["input_ids", "attention_mask", "token_type_ids"]
    assert [(o.name, o.shape) for o in graph.session.get_outputs()] == [
        ("sentence_embedding", ["batch_size", HIDDEN])
    ]
    quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", Scheme())
    inputs = {name: values.numpy() for name, values in padded_batch("bert").items()}
    one, other = (m(inputs)["sentence_embedding"] for m in (graph, OnnxModel(tmp_path / "int8.onnx")))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert ((one * other).sum(axis=1) / lengths).min() > 0.9


def test_padding_takes_no_part() -> None:
    model, inputs = tiny_model("bert", "feature-extraction"), padded_batch("bert")
    length = int(inputs["attention_mask"][2].sum())
    alone = {name: values[2:, :length] for name, values in inputs.items()}
    torch.testing.assert_close(embeddings(model, alone)[0], embeddings(model, inputs)[2], atol=1e-6, rtol=0)


def test_a_narrower_model_s_vectors_are_as_wide_as_before(tmp_path: Path) -> None:
    """An index that holds the dense model's vectors can be asked with them."""
    model, inputs = tiny_model("bert", "feature-extraction"), padded_batch("bert")
    dense = structure_of(model)
    structure = Structure(dense.sizes, dense.layers, tuple(range(0, HIDDEN, 3)))
    with Gates(model, structure):
        gated = embeddings(model, inputs)
    small = slice_model(model, structure)
    assert small.base_model.encoder.layer[0].output.dense.out_features == HIDDEN // 3
    torch.testing.assert_close(embeddings(small, inputs), gated, atol=1e-5, rtol=0)
    dead = [d for d in range(HIDDEN) if d % 3]
    assert gated.shape == (3, HIDDEN)
    assert (gated[:, dead] == 0).all()


def test_nothing_unused_is_kept(tmp_path: Path) -> None:
    """A pooler that a checkpoint brings is left behind, and plain transformers opens what is saved."""
    model = AutoModel.from_config(tiny_model("bert").config)
    model.save_pretrained(tmp_path / "plain")
    pooled, _ = checkpoint.open_source(str(tmp_path / "plain"), AUTO, {"sentence_embedding": MEAN})
    checkpoint.save(pooled, tmp_path / "pooled")
    weights = read_weights(tmp_path / "pooled")
    assert weights
    assert not any("pooler" in name for name in weights)
    again = AutoModel.from_pretrained(tmp_path / "pooled").eval()
    inputs = padded_batch("bert")
    with torch.no_grad():
        one, other = (m(**inputs).last_hidden_state for m in (model.eval(), again))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        embeddings(checkpoint.load(tmp_path / "pooled"), inputs), embeddings(pooled, inputs)
    )


def test_another_way_to_pool_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tiny_model("bert", "feature-extraction"), tmp_path)
    wanted = {"sentence_embedding": {"pooling": "cls", "normalize": True}}
    with pytest.raises(
        UserError, match="made with pooling mean, normalize true, the recipe says pooling cls"
    ):
        checkpoint.open_source(str(tmp_path), AUTO, wanted)


def test_a_pruned_classifier_is_no_encoder_to_pool(tmp_path: Path) -> None:
    model = tiny_model("bert")
    checkpoint.save(slice_model(model, structure_of(model)), tmp_path)
    with pytest.raises(UserError, match="BertForSequenceClassification"):
        checkpoint.open_source(str(tmp_path), AUTO, {"sentence_embedding": MEAN})


def test_the_loss_is_the_cosine_s_for_vectors_of_length_one() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.functional.normalize(torch.randn(5, 7), dim=-1) for _ in range(2))
    cosine = (ours * theirs).sum(dim=-1).mean()
    torch.testing.assert_close(embedding_loss(ours, theirs), 2 - 2 * cosine)
    torch.testing.assert_close(embedding_loss(3 * ours, 3 * theirs), embedding_loss(ours, theirs))
    assert embedding_loss(ours, ours) == 0


def sentence_model(folder: Path, modules: list[str], **modes: bool) -> str:
    """The files by which sentence-transformers knows how a model makes its vectors."""
    rows = [{"path": f"{n}_{kind}", "type": f"a.models.{kind}"} for n, kind in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    keys = {"word_embedding_dimension": 8, "include_prompt": True} | {
        f"pooling_mode_{k}": v for k, v in modes.items()
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    return str(folder)


def test_a_sentence_model_says_how_it_pools(tmp_path: Path) -> None:
    assert stated(str(tmp_path)) is None
    folder = sentence_model(
        tmp_path, ["Transformer", "Pooling", "Normalize"], cls_token=True, mean_tokens=False
    )
    assert stated(folder) == {"pooling": "cls", "normalize": True}


@pytest.mark.parametrize(
    ("modules", "mode"),
    [(["Transformer", "Pooling", "Dense"], "mean_tokens"), (["Transformer", "Pooling"], "max_tokens")],
)
def test_what_is_more_than_pooling_is_refused(tmp_path: Path, modules: list[str], mode: str) -> None:
    folder = sentence_model(tmp_path, modules, **{mode: True})
    with pytest.raises(UserError, match=f"by Transformer, Pooling.*{mode}; only pooling"):
        stated(folder)

"""Language models on onnxruntime: ragged pieces are one pass, what is remembered goes on, and nothing is random."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compressor.benchmark.harness import measure
from compressor.cell import Cell
from compressor.errors import GateError
from compressor.models.architecture import structure_of
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from compressor.onnx.export import check_parity, export_model
from compressor.onnx.quantize import Scheme, quantize
from compressor.onnx.runtime import OnnxModel, open_graph
from compressor.onnx.streaming import MODEL_FILE, SCORES_FILE, initial_state, stream_parity
from compressor.parts import parts_of
from compressor.serve.streaming import Reader, chooser, extend, score
from tests.decoders import ADAPTIVE, FAMILIES, MEMORY, tiny_decoder, tokens

TASK = "text-generation"
KINDS = ("hidden", "cache")


def cut(model: Any) -> Any:
    """Two heads in the first layer, none in the second."""
    kept = {("decoder", 0, "attention"): SubLayer((1, 3)), ("decoder", 1, "attention"): SubLayer()}
    return slice_model(model, structure_of(model).keeping(kept))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["empty", "zeros"])
def test_ragged_pieces_are_one_pass(family: str, kind: Any, start: str, tmp_path: Path) -> None:
    model = cut(tiny_decoder(family, initial_memory=start, **ADAPTIVE))
    export_model(model, TASK, 18, tmp_path, memory=kind)
    assert stream_parity(model, tmp_path, kind)["max_abs_error"] < 1e-5


def test_the_state_is_only_of_layers_with_heads(tmp_path: Path) -> None:
    model = cut(tiny_decoder())
    for kind, names in (("hidden", ["memory"]), ("cache", ["memory.0", "memory.1"])):
        export_model(model, TASK, 18, tmp_path / kind, memory=kind)
        graph = OnnxModel(tmp_path / kind / MODEL_FILE)
        assert graph.inputs == ["input_ids", *names]
        assert graph.outputs == ["logits", *(f"{name}_out" for name in names)]
    assert initial_state(model, "hidden", 1)["memory"].shape[0] == 2


def test_a_cache_begins_with_keys_and_values_of_what_stands_before_a_text(tmp_path: Path) -> None:
    model = tiny_decoder(initial_memory="zeros")
    with torch.no_grad():
        for layer in model.transformer.layers:
            layer.norm.bias.normal_()
    export_model(model, TASK, 18, tmp_path, memory="cache")
    graph = open_graph(tmp_path, MODEL_FILE)
    found = graph.reader.begin(2)  # type: ignore[attr-defined]
    for layer, wanted in enumerate(model.initial_cache(2)):
        assert wanted.abs().max() > 0
        np.testing.assert_allclose(found[f"memory.{layer}"], wanted.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_scores_and_goes_on_as_pytorch_does(family: str, tmp_path: Path) -> None:
    model = tiny_decoder(family, **ADAPTIVE)
    export_model(model, TASK, 18, tmp_path)
    scores, steps = (open_graph(tmp_path, name).reader for name in (SCORES_FILE, MODEL_FILE))  # type: ignore[attr-defined]
    text = tokens(1, 23)
    with torch.no_grad():
        losses = model(text[:, :-1], labels=text[:, 1:]).losses[0].numpy()
    for length in (1, 4, 50):
        np.testing.assert_allclose(score(scores, text[0].tolist(), length), losses, atol=1e-5)
    wanted = text
    for _ in range(6):
        with torch.no_grad():
            wanted = torch.cat([wanted, model(wanted).logits[:, -1:].argmax(dim=-1)], dim=1)
    made = extend(steps, text[0].tolist(), 6, 4, chooser(0, 0))
    assert made == wanted[0, 23:].tolist()
    assert (
        extend(steps, text[0].tolist(), 6, 4, chooser(0, 0), end=made[2]) == made[: made.index(made[2]) + 1]
    )


def test_a_seed_draws_the_same_tokens_again_and_as_likely_as_they_are() -> None:
    logits = np.log(np.array([0.7, 0.2, 0.1]))
    drawn = [chooser(1.0, seed)(logits) for seed in range(2000)]
    assert drawn[:50] == [chooser(1.0, seed)(logits) for seed in range(50)]
    np.testing.assert_allclose(np.bincount(drawn) / 2000, [0.7, 0.2, 0.1], atol=0.04)
    assert chooser(0, 1)(logits) == 0


class Counting:
    """A session that remembers how many tokens it read and refuses more than `most`."""

    def __init__(self, most: int) -> None:
        self.most, self.reads = most, []

    def get_inputs(self) -> list[Any]:
        return [self.node("input_ids", ["b", "s"]), self.node("memory", [2, "b", "m", 1])]

    def get_outputs(self) -> list[Any]:
        return [self.node("logits", []), self.node("memory_out", [])]

    def node(self, name: str, shape: list[Any]) -> Any:
        return type("Node", (), {"name": name, "shape": shape})()

    def run(self, _names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        ids, memory = feed["input_ids"], feed["memory"]
        length = memory.shape[2] + ids.shape[1]
        assert length <= self.most
        self.reads.append(ids.tolist()[0])
        return [np.eye(9)[(ids[:, -1:] + 1) % 9], np.zeros((2, 1, length, 1))]


def test_a_text_goes_on_where_positions_end_from_its_last_half() -> None:
    session = Counting(most=6)
    reader = Reader(session, {"memory": {"length": 0, "value": 0.0, "limit": 6}})
    assert extend(reader, [0, 1, 2], 8, 6, chooser(0, 0)) == [3, 4, 5, 6, 7, 8, 0, 1]
    assert session.reads == [[0, 1, 2], [3], [4], [5], [4, 5, 6], [7], [8], [0]]


def test_a_text_goes_no_further_than_a_model_was_trained() -> None:
    session = Counting(most=4)
    reader = Reader(session, {"memory": {"length": 0, "value": 0.0, "limit": 6}})
    assert extend(reader, [0, 1, 2], 8, 4, chooser(0, 0)) == [3, 4, 5, 6, 7, 8, 0, 1]
    assert session.reads == [[0, 1, 2], [3], [3, 4], [5], [6], [6, 7], [8], [0]]


def test_no_operator_is_random_and_the_pruned_weights_are_gone(tmp_path: Path) -> None:
    model = tiny_decoder().train()
    small = cut(model)
    sizes = {}
    for name, one in (("dense", model), ("pruned", small)):
        export_model(one, TASK, 18, tmp_path / name)
        for file in (SCORES_FILE, MODEL_FILE):
            graph = onnx.load(tmp_path / name / file).graph
            names = {node.op_type for node in graph.node}
            assert not {
                op for op in names if op.startswith(("Dropout", "Random", "Bernoulli", "Multinomial"))
            }
        sizes[name] = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())
    assert sizes["dense"] - sizes["pruned"] == pytest.approx(gone, rel=0.02)


def test_a_wrong_graph_fails(tmp_path: Path) -> None:
    model = tiny_decoder()
    export_model(model, TASK, 18, tmp_path)
    with torch.no_grad():
        model.transformer.layers[2].output.bias += 0.01
    with pytest.raises(GateError, match="differs from PyTorch"):
        check_parity(model, tmp_path, 1e-4)


def test_what_is_timed_is_a_segment_scored_or_read_and_one_token_after_a_full_memory(tmp_path: Path) -> None:
    export_model(tiny_decoder(), TASK, 18, tmp_path)
    segment, prompt, step = parts_of(tmp_path)
    assert (segment.name, segment.graph, segment.sizes) == ("segment", SCORES_FILE, {"memory_length": MEMORY})
    assert (prompt.name, prompt.graph, prompt.sizes) == ("prompt", MODEL_FILE, {"memory_length": MEMORY})
    assert (step.name, step.graph) == ("step", MODEL_FILE)
    assert step.sizes == {"sequence_length": 1, "memory_length": MEMORY}


def test_int8_takes_tied_tables_that_a_softmax_reads_backwards(tmp_path: Path) -> None:
    model = tiny_decoder(**ADAPTIVE)
    export_model(model, TASK, 18, tmp_path)
    quantize(tmp_path / SCORES_FILE, tmp_path / "int8.onnx", Scheme())
    ids = tokens(2, 9)
    feed = {"input_ids": ids[:, :-1].numpy(), "labels": ids[:, 1:].numpy()}
    feed["memory"] = initial_state(model, "hidden", 2)["memory"].numpy()
    one, other = (OnnxModel(tmp_path / name)(feed)["losses"] for name in (SCORES_FILE, "int8.onnx"))
    assert 0 < np.abs(one - other).mean() < 0.1 * np.abs(one).mean()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_segment_takes_less_time_with_every_head_that_goes(family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 4, "memory_length": 64}
    wide = {"persistent_vectors": 512} if family == "all-attention" else {"intermediate_size": 512}
    model = tiny_decoder(family, **sizes, **wide)
    for heads in (8, 4, 1):
        kept = {("decoder", layer, "attention"): SubLayer(tuple(range(heads))) for layer in range(4)}
        small = slice_model(model, structure_of(model).keeping(kept))
        export_model(small, TASK, 18, tmp_path / str(heads))
    cell = Cell("cpu", 1, 1, 64, "segment")
    folders = {heads: tmp_path / heads for heads in ("8", "4", "1")}
    found = measure(folders, [cell], reference="8", seconds=0.5, processes=3)
    half, least = (found.speedup[heads][0]["value"] for heads in ("4", "1"))
    assert 1.05 < half < 0.95 * least

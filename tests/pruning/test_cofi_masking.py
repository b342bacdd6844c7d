"""Gated == folded == sliced == reloaded == ONNX, with soft gates of five kinds (CoFi specification, 1.4 and 4)."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from compressor.models import checkpoint
from compressor.models.architecture import architecture_of, structure_of
from compressor.models.gates import Gates, hidden_writers
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.onnx.export import check_parity, export_onnx
from compressor.pruning.cofi.fold import fold_gates
from compressor.pruning.cofi.gates import LearnedGates
from compressor.pruning.cofi.masking import CONTAINER, Masking, masked_norm
from compressor.pruning.cofi.values import Values
from tests.pruning.gated import KINDS, gated_model, scatter
from tests.zoo import CUTTABLE, HEAD_CLASSES, HIDDEN, LAYERS, logits, padded_batch, tiny_config, tiny_model

ATTENTION, FEED = ("encoder", "attention"), ("encoder", "ffn")
SUBSETS = [
    ("hidden",),
    ("layer",),
    ("head",),
    ("ffn",),
    ("neuron",),
    ("head", "neuron"),
    ("layer", "ffn", "hidden"),
]


def folded(masking: Masking) -> tuple[Any, Structure]:
    """The model without its gates, and what it keeps."""
    values = masking.gates.settled or masking.gates.decided()
    masking.remove()
    return masking.model, fold_gates(masking.model, values)


def opened(masking: Masking) -> None:
    """Every gate at exactly 1."""
    masking.gates.settled = masking.gates.probabilities().map(torch.ones_like)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", CUTTABLE)
def test_open_gates_change_nothing(family: str, attention: str) -> None:
    inputs = padded_batch(family)
    plain, (model, masking) = tiny_model(family), gated_model(family)
    if attention == "sdpa" and not plain._supports_sdpa:
        pytest.skip(f"transformers has no sdpa attention for {family}")
    for one in (plain, model):
        if one._supports_sdpa:
            one.set_attn_implementation(attention)
    opened(masking)
    torch.testing.assert_close(logits(model, inputs), logits(plain, inputs), atol=1e-5, rtol=0)
    masking.gates.values = lambda: masking.gates.settled
    for one in (plain, model):
        one.train()
    answers = []
    for one in (plain, model):
        torch.manual_seed(0)
        answers.append(logits(one, inputs))
    torch.testing.assert_close(answers[1], answers[0], atol=1e-5, rtol=0)
    assert (answers[0] - logits(plain.eval(), inputs)).abs().max() > 1e-3


def test_the_norm_over_what_is_left_is_that_of_the_sliced_vector() -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(10, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    gate = torch.tensor([0.5, 0, 1, 0.2, 0, 0.9, 0.7, 1, 0, 0.3])
    kept = gate > 0
    x = torch.randn(4, 3, 10) * kept
    found = masked_norm(x, gate, norm)
    small = nn.functional.layer_norm(x[..., kept], (7,), norm.weight[kept], norm.bias[kept], norm.eps)
    torch.testing.assert_close(found[..., kept], small * gate[kept])
    assert (found[..., ~kept] == 0).all()


@pytest.mark.parametrize("family", CUTTABLE)
def test_closed_dimensions_are_zero_in_every_hidden_state(family: str) -> None:
    model, masking = gated_model(family)
    scatter(masking.gates)
    with torch.no_grad():
        states = model(**padded_batch(family), output_hidden_states=True).hidden_states
    closed = masking.now.hidden == 0
    assert 0 < closed.sum() < HIDDEN
    assert all((state[..., closed] == 0).all() for state in states)
    assert all((state[..., ~closed] != 0).any() for state in states)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", CUTTABLE)
def test_a_closed_sub_layer_hands_on_its_input(family: str, training: bool) -> None:
    """Bitwise, without its LayerNorm; with both closed, the whole layer."""
    model, masking = gated_model(family, kinds=("layer", "ffn"))
    values = masking.gates.probabilities().map(lambda v: torch.ones_like(v))
    values.wholes[ATTENTION][1] = 0
    values.wholes[FEED][1] = 0
    values.wholes[ATTENTION][2] = 0
    masking.gates.settled = values
    masking.gates.values = lambda: values
    model.train(training)
    seen: dict[str, torch.Tensor] = {}
    architecture = architecture_of(model.config)
    layer = architecture.layers(model, architecture.stacks[0])[2]
    norm = layer.get_submodule(architecture.stacks[0].sublayers[0].norm)
    norm.register_forward_hook(lambda _m, args, out: seen.update(into=args[0], out=out))
    with torch.no_grad():
        states = model(**padded_batch(family), output_hidden_states=True).hidden_states
    assert torch.equal(states[2], states[1])
    assert torch.equal(seen["out"], states[2])
    assert not torch.equal(states[3], states[2])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", HEAD_CLASSES)
@pytest.mark.parametrize("family", CUTTABLE)
def test_the_fold_is_exact_in_double_precision(family: str, task: str, seed: int) -> None:
    model, masking = gated_model(family, task)
    model.double()
    scatter(masking.gates, seed)
    with torch.no_grad():
        masking.gates.logits["encoder_layer"][1] = masking.gates.logits["encoder_ffn"][0] = -4.0
    inputs = padded_batch(family)
    expected = logits(model, inputs)
    assert expected.dtype == torch.float64
    model, structure = folded(masking)
    assert structure.hidden_width < HIDDEN
    assert any(sub.absent for _, _, sub in structure.each())
    assert not hasattr(model, CONTAINER)
    with Gates(model, structure):
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(logits(slice_model(model, structure), inputs), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kinds", SUBSETS, ids="-".join)
def test_any_subset_of_kinds_is_gated_folded_sliced_reloaded_and_exported(kinds: Any, tmp_path: Path) -> None:
    inputs = padded_batch("bert")
    model, masking = gated_model(kinds=kinds)
    scatter(masking.gates, seed=3)
    with torch.no_grad():
        for gate in masking.gates.logits.values():
            gate[0, 0] = -4.0
    expected = logits(model, inputs)
    model, structure = folded(masking)
    assert structure.density() < 1
    small = slice_model(model, structure)
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=0)
    checkpoint.save(small, tmp_path)
    again = checkpoint.load(tmp_path)
    assert torch.equal(logits(again, inputs), logits(small, inputs))
    assert again.config.to_dict().keys() == small.config.to_dict().keys()
    assert not getattr(again.config, "pruned_heads", None)
    export_onnx(again, "text-classification", 18, tmp_path / "model.onnx")
    check_parity(again, tmp_path / "model.onnx", 1e-4)


def closing(values: Values, change: str) -> Values:
    """Values at the edge of what there can be."""
    units, wholes = values.units, values.wholes
    match change:
        case "no head, yet the sub-layer":
            units[ATTENTION][0] = 0
        case "no neuron, yet the sub-layer":
            units[FEED][0] = 0
        case "no layer":
            wholes[ATTENTION][:] = 0
            wholes[FEED][:] = 0
        case "one dimension":
            values.hidden[1:] = 0
        case "one head":
            units[ATTENTION][:, 1:] = 0
        case "one neuron":
            units[FEED][:, 1:] = 0
    return values.canonical()


EDGES = [
    "no head, yet the sub-layer",
    "no neuron, yet the sub-layer",
    "no layer",
    "one dimension",
    "one head",
    "one neuron",
]


@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge: str, tmp_path: Path) -> None:
    inputs = padded_batch("bert")
    model, masking = gated_model()
    scatter(masking.gates, mean=1.0, spread=0.5)
    masking.gates.settled = closing(masking.gates.decided(), edge)
    expected = logits(model, inputs)
    model, structure = folded(masking)
    small = slice_model(model, structure)
    torch.testing.assert_close(logits(small, inputs), expected, atol=1e-5, rtol=1e-5)
    checkpoint.save(small, tmp_path)
    again = checkpoint.load(tmp_path)
    torch.testing.assert_close(logits(again, inputs), expected, atol=1e-5, rtol=1e-5)
    export_onnx(again, "text-classification", 18, tmp_path / "model.onnx")
    check_parity(again, tmp_path / "model.onnx", 1e-4)
    if edge == "no layer":
        assert len(small.bert.encoder.layer) == 0


def test_the_graph_has_the_widths_no_masks_and_no_trace_of_absent_sub_layers(tmp_path: Path) -> None:
    graphs = []
    for gone in (0, 1, 2):
        model, masking = gated_model()
        values = masking.gates.decided()
        values.hidden[:5] = 0
        values.units[FEED][:, ::2] = 0
        values.wholes[FEED][:gone] = 0
        masking.gates.settled = values
        model, structure = folded(masking)
        export_onnx(slice_model(model, structure), "text-classification", 18, tmp_path / "model.onnx")
        graphs.append(onnx.load(tmp_path / "model.onnx").graph)
    nodes = [len(graph.node) for graph in graphs]
    assert nodes[0] > nodes[1] > nodes[2]
    assert nodes[0] - nodes[1] == nodes[1] - nodes[2]
    for graph in graphs:
        shapes = {t.name: tuple(t.dims) for t in graph.initializer}
        assert all(0 not in dims for dims in shapes.values())
        matrices = {name for name, dims in shapes.items() if len(dims) == 2 and min(dims) > 1}
        assert not [n for n in graph.node if n.op_type in ("Where", "Mul") and matrices & set(n.input)]
        assert "If" not in {n.op_type for n in graph.node}
        products = {
            d for n in graph.node if n.op_type == "MatMul" for i in n.input for d in shapes.get(i, ())
        }
        assert HIDDEN - 5 in products


def test_the_parameters_of_the_published_mnli_structure() -> None:
    """Heads, neurons and hidden width of the 95 % network: 4,330,279 with the norms that were dropped counted."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert"))
    heads, neurons = [1, 4, 2, 0, 0, 0, 0, 0, 2, 3, 2, 0], {0: 337, 1: 337, 8: 337}
    dense = structure_of(model)
    kept = {
        ("encoder", i, name): SubLayer(tuple(range(units)), absent=not units)
        for i, count in enumerate(heads)
        for name, units in (("attention", count), ("ffn", neurons.get(i, 0)))
    }
    structure = Structure(dense.sizes, dense.keeping(kept).layers, tuple(range(764)))
    small = slice_model(model, structure)
    encoder = sum(p.numel() for p in small.bert.encoder.parameters())
    assert encoder == 4_330_279 - 6 * 2 * 768 - 9 * 2 * 764


def test_gates_come_off_without_a_trace() -> None:
    plain, (model, masking) = tiny_model("bert"), gated_model()
    scatter(masking.gates)
    inputs = padded_batch("bert")
    assert (logits(model, inputs) - logits(plain, inputs)).abs().max() > 1e-2
    with masking.lifted():
        assert torch.equal(logits(model, inputs), logits(plain, inputs))
        assert model.state_dict().keys() == plain.state_dict().keys()
    assert (logits(model, inputs) - logits(plain, inputs)).abs().max() > 1e-2
    masking.remove()
    assert torch.equal(logits(model, inputs), logits(plain, inputs))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_every_writer_of_the_residual_stream_is_there() -> None:
    assert len(hidden_writers(tiny_model("bert"))) == 1 + 2 * LAYERS
    sizes = architecture_of(tiny_config("bert")).sizes(tiny_config("bert"))
    gates = LearnedGates(Structure.dense(sizes), KINDS, lambda _: 0.0, seed=0)
    assert sum(logits.numel() for logits in gates.logits.values()) == HIDDEN + LAYERS * (2 + 4 + 40)

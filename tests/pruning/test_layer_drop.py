"""Dropping whole layers: which ones every strategy takes, and that nothing else changes (specification, part D)."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from pydantic import ValidationError

from compressor.benchmark.harness import measure
from compressor.benchmark.schema import Cell
from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.models.architecture import architecture_of, structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from compressor.onnx.export import check_parity, export_onnx
from compressor.pruning import layer_measures
from compressor.pruning.layer_drop import PLACES, LayerDrop, most, without
from tests.zoo import CONFIGS, CUTTABLE, LAYERS, logits, padded_batch, tiny_model


def keys(**given: Any) -> LayerDrop:
    return LayerDrop(**({"method": "layer-drop"} | given))


class Told:
    """A context that knows scores by the layers that are kept."""

    target = None
    folder = Path()
    seed = 0

    def __init__(self, family: str = "bert", scores: Any = None) -> None:
        self.family, self.scores, self.asked, self.trained = family, scores, [], []

    def batches(self) -> Iterable[dict[str, torch.Tensor]]:
        return (padded_batch(self.family, seed=seed) for seed in range(3))

    def score(self, model: Any) -> float:
        gates = [g for g in MADE if g._handles]
        dropped = frozenset(range(6)) - {la.index for la in gates[-1].structure.layers}
        self.asked.append(dropped)
        return float(self.scores(dropped))

    def train(self, model: Any, training: Any, part: Any = None) -> None:
        gates = [g for g in MADE if g._handles]
        kept = [la.index for la in gates[-1].structure.layers] if gates else list(range(LAYERS))
        self.trained.append((training.epochs, kept))


MADE: list[Gates] = []


@pytest.fixture(autouse=True)
def remember_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    MADE.clear()
    before = Gates.__init__

    def remember(self: Gates, *args: Any) -> None:
        MADE.append(self)
        before(self, *args)

    monkeypatch.setattr(Gates, "__init__", remember)


# (layers, strategy) -> {how many: which}
TABLE: dict[tuple[int, str], dict[int, list[int]]] = {
    (12, "top"): {1: [11], 2: [10, 11], 3: [9, 10, 11], 4: [8, 9, 10, 11], 6: [6, 7, 8, 9, 10, 11]},
    (12, "bottom"): {1: [0], 2: [0, 1], 4: [0, 1, 2, 3], 6: [0, 1, 2, 3, 4, 5], 7: [0, 1, 2, 3, 4, 5, 6]},
    (12, "even-alternate"): {
        1: [11], 2: [9, 11], 3: [7, 9, 11], 4: [5, 7, 9, 11], 5: [3, 5, 7, 9, 11], 6: [1, 3, 5, 7, 9, 11],
    },
    (12, "odd-alternate"): {
        1: [10], 2: [8, 10], 3: [6, 8, 10], 4: [4, 6, 8, 10], 5: [2, 4, 6, 8, 10], 6: [0, 2, 4, 6, 8, 10],
    },
    (12, "symmetric"): {2: [5, 6], 4: [4, 5, 6, 7], 6: [3, 4, 5, 6, 7, 8]},
    (24, "top"): {4: [20, 21, 22, 23], 12: list(range(12, 24))},
    (24, "even-alternate"): {4: [17, 19, 21, 23], 8: list(range(9, 24, 2)), 12: list(range(1, 24, 2))},
    (24, "odd-alternate"): {4: [16, 18, 20, 22], 8: list(range(8, 24, 2)), 12: list(range(0, 24, 2))},
    (24, "symmetric"): {4: [10, 11, 12, 13], 8: list(range(8, 16)), 12: list(range(6, 18))},
    (6, "top"): {1: [5], 2: [4, 5], 3: [3, 4, 5]},
    (6, "bottom"): {1: [0], 2: [0, 1], 3: [0, 1, 2]},
    (6, "even-alternate"): {1: [5], 2: [3, 5], 3: [1, 3, 5]},
    (6, "odd-alternate"): {1: [4], 2: [2, 4], 3: [0, 2, 4]},
    (6, "symmetric"): {2: [2, 3]},
    (7, "even-alternate"): {1: [5], 3: [1, 3, 5]},
    (7, "odd-alternate"): {1: [6], 4: [0, 2, 4, 6]},
}  # fmt: skip


@pytest.mark.parametrize(("layers", "strategy"), TABLE)
def test_the_published_index_tables(layers: int, strategy: str) -> None:
    for count, expected in TABLE[layers, strategy].items():
        assert PLACES[strategy](layers, count) == expected


@pytest.mark.parametrize("layers", [2, 3, 6, 7, 12, 24])
def test_properties_of_all_sets(layers: int) -> None:
    for name, choose in PLACES.items():
        for count in range(most(name, layers) + 1):
            if name == "symmetric" and (layers - count) % 2:
                continue
            chosen = choose(layers, count)
            assert chosen == sorted(set(chosen))
            assert len(chosen) == count
            assert all(0 <= place < layers for place in chosen)
            if name == "symmetric":
                assert {layers - 1 - place for place in chosen} == set(chosen)
    half = layers // 2
    even, odd = PLACES["even-alternate"](layers, half), PLACES["odd-alternate"](layers, layers - half)
    assert sorted(even + odd) == list(range(layers))
    for count in range(layers):
        together = PLACES["top"](layers, count) + PLACES["bottom"](layers, layers - count)
        assert sorted(together) == list(range(layers))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"strategy": "top", "drop": 3}, "top can drop 0 to 2 of 3 layers, not 3"),
        ({"strategy": "even-alternate", "drop": 2}, "even-alternate can drop 0 to 1 of 3 layers"),
        ({"strategy": "symmetric", "drop": 2}, "of 3 it can drop 1, not 2"),
        ({"strategy": "explicit", "layers": [3]}, "no layer 3: this model has 0 to 2"),
        ({"strategy": "explicit", "layers": [0, 1, 2]}, "one of the 3 layers must stay"),
        ({"strategy": "top", "drop": [1, 3]}, "not 3"),
        ({"strategy": "metric", "drop": 2}, "metric can drop 0 to 1 of 3 layers"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        keys(**given).check(tiny_model("bert").config)


def test_layers_are_numbered_as_in_the_original_where_some_are_gone(tmp_path: Path) -> None:
    """Of six layers 0, 2 and 5 are left, and the model was saved."""
    model = tiny_model("bert", num_hidden_layers=6)
    checkpoint.save(slice_model(model, without(structure_of(model), [1, 3, 4])), tmp_path)
    left = checkpoint.load(tmp_path)
    for given in ({"layers": [1]}, {"layers": [3]}):
        with pytest.raises(UserError, match="this model has 0, 2 and 5"):
            keys(strategy="explicit", **given).check(left.config)
    explicit = keys(strategy="explicit", layers=[5])
    explicit.check(left.config)
    for method, gone in ((explicit, [5]), (keys(strategy="top", drop=2), [2, 5])):
        (pruned,) = method.prune(left, Told())
        assert pruned.report["dropped"] == gone
        assert [layer.index for layer in pruned.structure.layers] == [i for i in (0, 2, 5) if i not in gone]


def test_some_layer_stays_also_of_a_model_that_an_earlier_stage_cut() -> None:
    model = tiny_model("bert", num_hidden_layers=3)
    model = slice_model(model, without(structure_of(model), [0]))
    for method in (keys(strategy="explicit", layers=[1, 2]), keys(drop=2, iterative={"epochs": 1.0})):
        with pytest.raises(UserError, match=r"must stay|can drop 0 to 1 of 2 layers"):
            list(method.prune(model, Told()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"strategy": "top"}, "say how many layers"),
        ({"strategy": "explicit"}, "name the `layers`"),
        ({"strategy": "top", "layers": [1], "drop": 1}, "name the `layers`"),
        ({"strategy": "explicit", "layers": [1, 1]}, "names one twice"),
        ({"strategy": "explicit", "layers": []}, "`layers` names none"),
        ({"strategy": "explicit", "layers": [1], "drop": 1}, "leave `drop` out"),
        ({"strategy": "top", "drop": 1, "threshold": 0.9}, "is for strategy contribution"),
        ({"strategy": "contribution", "drop": 1, "threshold": 0.9}, "in place of `drop`"),
        ({"strategy": "top", "drop": [1, 1]}, "lists a number twice"),
        ({"strategy": "top", "drop": 1, "weight_statistic": "variance"}, "is for strategy weight"),
        ({"strategy": "metric", "drop": 1, "iterative": {"epochs": 2}}, "goes by place"),
        ({"strategy": "top", "drop": -1}, "greater than or equal to 0"),
    ],
)
def test_keys_that_do_not_fit_together(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        keys(**given)


@pytest.mark.parametrize("family", CONFIGS)
def test_dropped_gated_sliced_reloaded_plain_and_onnx(family: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (pruned,) = keys(strategy="explicit", layers=[1]).prune(model, Told(family))
    assert [la.index for la in pruned.structure.layers] == [0, 2]
    with Gates(model, pruned.structure):
        expected = logits(model, inputs)
    small = slice_model(model, pruned.structure)
    assert torch.equal(logits(small, inputs), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    architecture = architecture_of(model.config)
    stack = architecture.stacks[0]
    assert getattr(small.config, stack.layers_key) == LAYERS - 1
    originals, kept = architecture.layers(model, stack), architecture.layers(small, stack)
    for at, number in enumerate((0, 2)):
        theirs = originals[number].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in kept[at].state_dict().items())
    lost = sum(p.numel() for p in originals[1].parameters()) if family in CUTTABLE else 0
    assert model.num_parameters() - small.num_parameters() == lost
    around = [name for name in before if f"{stack.path}." not in name]
    assert around
    assert all(torch.equal(small.state_dict()[name], before[name]) for name in around)
    checkpoint.save(small, tmp_path)
    assert torch.equal(logits(checkpoint.load(tmp_path), inputs), logits(small, inputs))
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(plain, inputs), logits(small, inputs), atol=1e-6, rtol=0)
    export_onnx(small, "text-classification", 18, tmp_path / "model.onnx")
    check_parity(small, tmp_path / "model.onnx", 1e-4)
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {i.name for i in graph.initializer if len(i.dims) == 2}
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in stored]
    each = sum(len(table.inputs) + 1 for table in stack.sublayers)
    others = family in ("electra", "albert")  # the embeddings' projection
    assert len(products) == each * (LAYERS - 1) + others
    assert len(set(products)) == (len(products) if family in CUTTABLE else each + 1)
    assert [output.name for output in graph.output] == ["logits"]
    export_onnx(model, "text-classification", 18, tmp_path / "whole.onnx")
    whole = onnx.load(tmp_path / "whole.onnx").graph
    for operator in ("MatMul", "LayerNormalization"):
        more, fewer = (sum(node.op_type == operator for node in g.node) for g in (whole, graph))
        outside = more - LAYERS * (more - fewer)
        assert 0 <= outside <= 1 + others, "as many in every layer, and hardly any outside"
    saved = (tmp_path / "whole.onnx").stat().st_size - (tmp_path / "model.onnx").stat().st_size
    assert saved >= 4 * lost


def test_a_layer_of_bert_base_has_7_087_872_parameters() -> None:
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
        small = slice_model(model, without(structure_of(model), PLACES["top"](12, 4)))
    assert model.num_parameters() - small.num_parameters() == 4 * 7_087_872


@pytest.mark.parametrize("family", CONFIGS)
def test_numbers_of_layers_inside_the_model_are_new(family: str) -> None:
    model = tiny_model(family)
    small = slice_model(model, without(structure_of(model), [0]))
    architecture = architecture_of(small.config)
    for place, layer in enumerate(architecture.layers(small, architecture.stacks[0])):
        told = [
            module.layer_idx for module in layer.modules() if getattr(module, "layer_idx", None) is not None
        ]
        assert set(told) <= {place}
    if family == "distilbert":
        assert small.distilbert.transformer.n_layers == small.config.n_layers == LAYERS - 1


def test_a_config_that_still_counts_the_dropped_layers_is_refused(tmp_path: Path) -> None:
    model = tiny_model("bert")
    checkpoint.save(slice_model(model, without(structure_of(model), [1])), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == LAYERS - 1
    del config["compressor"]
    config["num_hidden_layers"] = LAYERS
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"does not fit its config.json: bert.encoder.layer.2"):
        checkpoint.load(tmp_path)


@pytest.mark.slow
def test_fewer_layers_are_as_much_faster(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    model = tiny_model("bert", **sizes, max_position_embeddings=128)
    files = {}
    for count in (0, 1, 3, 5):
        files[f"drop{count}"] = tmp_path / f"{count}.onnx"
        small = slice_model(model, without(structure_of(model), PLACES["top"](6, count)))
        export_onnx(small, "text-classification", 18, files[f"drop{count}"])
    timed = measure(files, [Cell("cpu", 1, 1, 128)], reference="drop0", seconds=1.0, processes=3)
    faster = {count: timed.speedup[f"drop{count}"][0]["value"] for count in (1, 3, 5)}
    assert 1 < faster[1] < faster[3] < faster[5]
    for count, times in faster.items():
        assert 0.75 <= times / (6 / (6 - count)) <= 1.1


@pytest.mark.parametrize("family", CONFIGS)
def test_dropping_the_top_is_loading_fewer_layers(family: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    model.save_pretrained(tmp_path)
    fewer = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_hidden_layers=1
    ).eval()
    (pruned,) = keys(strategy="top", drop=2).prune(model, Told())
    rounding = (
        1e-6 if family == "xlnet" else 0.0
    )  # transformers multiplies by its matrices the other way round
    found = logits(slice_model(model, pruned.structure), inputs)
    torch.testing.assert_close(found, logits(fewer, inputs), rtol=0, atol=rounding)


def test_dropping_nothing_changes_nothing() -> None:
    model, inputs = tiny_model("bert"), padded_batch("bert")
    (pruned,) = keys(strategy="top", drop=0).prune(model, Told())
    assert pruned.structure == structure_of(model)
    assert torch.equal(logits(slice_model(model, pruned.structure), inputs), logits(model, inputs))


def test_dropping_twice_is_dropping_the_union() -> None:
    model = tiny_model("bert", num_hidden_layers=6)
    (once,) = keys(strategy="explicit", layers=[1, 3, 4]).prune(model, Told())
    first = slice_model(
        model, next(iter(keys(strategy="explicit", layers=[3]).prune(model, Told()))).structure
    )
    (twice,) = keys(strategy="explicit", layers=[1, 4]).prune(first, Told())
    assert twice.structure == once.structure
    (otherwise,) = keys(strategy="explicit", layers=[4, 1, 3]).prune(model, Told())
    assert otherwise.structure == once.structure
    inputs = padded_batch("bert")
    one, other = slice_model(first, twice.structure), slice_model(model, once.structure)
    assert torch.equal(logits(one, inputs), logits(other, inputs))


def test_a_list_makes_a_family() -> None:
    model = tiny_model("bert")
    family = list(keys(strategy="top", drop=[1, 2]).prune(model, Told()))
    assert [p.member for p in family] == keys(strategy="top", drop=[1, 2]).members(None) == ["drop1", "drop2"]
    assert [len(p.structure.layers) for p in family] == [2, 1]


def silenced(model: Any, layer: int) -> None:
    """Make a layer's output all but its input: both sub-layers absent."""
    gone = {("encoder", layer, name): SubLayer(absent=True) for name in ("attention", "ffn")}
    Gates(model, structure_of(model).keeping(gone))


@pytest.mark.parametrize("family", CUTTABLE)
def test_a_layer_that_does_nothing_is_found(family: str) -> None:
    model = tiny_model(family)
    silenced(model, 1)
    context = Told(family)
    contribution = layer_measures.contribution(model, context.batches())
    assert contribution[1] == pytest.approx(1.0, abs=1e-9)
    assert max(contribution[0], contribution[2]) < 0.999
    assert layer_measures.block_influence(model, context.batches())[1] == pytest.approx(0.0, abs=1e-9)
    for strategy in ("contribution", "block-influence", "angular"):
        (pruned,) = keys(strategy=strategy, drop=1).prune(model, context)
        assert [la.index for la in pruned.structure.layers] == [0, 2]


@pytest.mark.parametrize(
    "strategy", ["contribution", "block-influence", "angular", "weight", "metric", "top"]
)
def test_every_strategy_finds_shared_layers_to_drop(strategy: str) -> None:
    model = tiny_model("albert", num_hidden_layers=4)
    (pruned,) = keys(strategy=strategy, drop=2).prune(model, Told("albert", scores=lambda _: 0.5))
    assert len(pruned.structure.layers) == 2
    inputs = padded_batch("albert")
    fewer = tiny_model("albert", num_hidden_layers=2)
    assert torch.equal(logits(slice_model(model, pruned.structure), inputs), logits(fewer, inputs))


def test_a_lower_threshold_drops_a_superset() -> None:
    model = tiny_model("bert", num_hidden_layers=6)
    similar = sorted(layer_measures.contribution(model, Told().batches()))
    chosen = []
    for threshold in (similar[-1] + 1e-6, similar[3] - 1e-6, similar[1] - 1e-6):
        (pruned,) = keys(strategy="contribution", threshold=threshold).prune(model, Told())
        chosen.append(set(range(6)) - {la.index for la in pruned.structure.layers})
    assert [len(c) for c in chosen] == [0, 3, 5]
    assert chosen[0] <= chosen[1] <= chosen[2]
    with pytest.raises(UserError, match="every layer is above the threshold"):
        list(keys(strategy="contribution", threshold=-0.99).prune(model, Told()))


def test_angular_takes_the_block_that_turns_least() -> None:
    model = tiny_model("bert", num_hidden_layers=6)
    batch = padded_batch("bert")
    with torch.no_grad():
        states = [s[:, 0].double() for s in model.bert(**batch, output_hidden_states=True).hidden_states]
    turns = [
        (
            torch.arccos(torch.nn.functional.cosine_similarity(states[i], states[i + 2], dim=-1)) / math.pi
        ).mean()
        for i in range(5)
    ]
    start = int(torch.stack(turns).argmin())
    assert layer_measures.least_turning_block(model, [batch], 2) == [start, start + 1]


@pytest.mark.parametrize("statistic", ["magnitude", "variance"])
def test_the_lightest_layers_go(statistic: str) -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[1].parameters():
            parameter *= 0.5
    (pruned,) = keys(strategy="weight", drop=1, weight_statistic=statistic).prune(model, Told())
    assert [la.index for la in pruned.structure.layers] == [0, 2]


def test_ties_go_to_the_higher_layer() -> None:
    assert layer_measures._rising([0.5, 0.5, 0.7]) == [1, 0, 2]


def test_metric_removes_what_is_missed_least_one_after_the_other() -> None:
    """Without 2 it is best; then 4 hurts more than 3 because both neighbours would be gone."""
    costs = {1: 0.30, 2: 0.01, 3: 0.02, 4: 0.03}

    def score(dropped: frozenset[int]) -> float:
        return 1 - sum(costs[d] for d in dropped) - (0.5 if {2, 3} <= dropped else 0)

    context = Told(scores=score)
    model = tiny_model("bert", num_hidden_layers=6)
    family = list(keys(strategy="metric", drop=[1, 2]).prune(model, context))
    assert [p.report["dropped"] for p in family] == [[2], [2, 4]]
    assert context.asked[:4] == [{1}, {2}, {3}, {4}]
    assert context.asked[4:] == [{1, 2}, {2, 3}, {2, 4}]
    with pytest.raises(UserError, match="metric can drop 0 to 4 of 6 layers"):
        list(keys(strategy="metric", drop=5).prune(model, context))


def test_iterative_trains_before_every_drop() -> None:
    context = Told()
    (pruned,) = keys(strategy="top", drop=2, iterative={"epochs": 2.0}).prune(tiny_model("bert"), context)
    assert context.trained == [(2.0, [0, 1, 2]), (2.0, [0, 1])]
    assert [la.index for la in pruned.structure.layers] == [0]
    bottom = Told()
    list(keys(strategy="bottom", drop=2, iterative={"epochs": 1.0}).prune(tiny_model("bert"), bottom))
    assert bottom.trained == [(1.0, [0, 1, 2]), (1.0, [1, 2])]


@pytest.mark.parametrize("layers", [6, 7, 12])
def test_what_goes_first_is_among_what_goes_in_the_end(layers: int) -> None:
    """So that dropping step by step ends at the strategy's own set, by its own smaller ones."""
    for name, choose in PLACES.items():
        for count in range(1, most(name, layers) + 1):
            assert set(choose(layers, count - 1)) < set(choose(layers, count)), name

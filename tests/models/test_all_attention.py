"""The All-attention Transformer and Transformer-XL: positions, band, memory, persistent vectors, sizes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.errors import UserError
from compressor.models import checkpoint
from compressor.models.all_attention.attention import Band
from compressor.models.all_attention.vocabulary import check_sorted
from compressor.models.architecture import architecture_of, structure_of
from compressor.models.measures import measures
from compressor.models.slicing import slice_model
from compressor.models.source import NewModel
from compressor.models.structure import SubLayer
from tests.decoders import (
    ADAPTIVE,
    FAMILIES,
    HEADS,
    HIDDEN,
    LAYERS,
    MEMORY,
    read,
    tiny_config,
    tiny_decoder,
    tokens,
)

PUBLISHED = {"distances": 512, "cutoffs": [20000, 40000, 200000]}
"""Beside the defaults: the sizes of the released model for WikiText-103."""
KEPT = {
    45.19: [8, 3, 7, 6, 6, 6, 6, 7, 6, 7, 8, 8, 7, 8, 7, 6],
    37.10: [6, 4, 6, 5, 4, 5, 5, 6, 5, 6, 7, 5, 6, 6, 6, 5],
    25.17: [5, 2, 5, 4, 3, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3],
}
"""Millions of parameters of the layers, and the published models' heads."""


def published() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("all-attention", **PUBLISHED))


def test_parameters_of_the_published_model() -> None:
    """Published counts have a gate on each of the 128 heads besides."""
    model = published()
    size = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.transformer.named_children()
    }
    assert size["layers"] + 128 == 54_567_040
    assert size["embeddings"] == 18_810_040
    assert sum(p.numel() for p in model.softmax.parameters()) == 531_418
    assert model.transformer.positions.numel() == 262_144
    assert model.num_parameters() + 128 == 74_170_642


@pytest.mark.parametrize(("millions", "heads"), KEPT.items())
def test_parameters_of_the_published_pruned_models(millions: float, heads: list[int]) -> None:
    """Every head takes 426,112 parameters with it."""
    model = published()
    structure = structure_of(model).keeping(
        {("decoder", layer, "attention"): SubLayer(tuple(range(kept))) for layer, kept in enumerate(heads)}
    )
    body = sum(p.numel() for p in slice_model(model, structure).transformer.layers.parameters())
    assert body == 54_566_912 - 426_112 * (128 - sum(heads))
    assert round(body / 1e6, 2) == millions
    assert structure.density() == pytest.approx(sum(heads) / 128)


def test_parameters_of_the_baseline() -> None:
    """The same sizes give nearly as many, but a head of Transformer-XL is only 163,968 of them."""
    config = AutoConfig.for_model("transformer-xl", **PUBLISHED)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    body = sum(p.numel() for p in model.transformer.layers.parameters())
    biases_and_norms = 2048 + 512 + 512 + 2 * 1024 + 2 * 512
    assert body == 16 * (5 * 512**2 + 2 * 512 * 2048 + biases_and_norms) == 54_624_256
    one = structure_of(model).keeping({("decoder", 0, "attention"): SubLayer(tuple(range(7)))})
    small = sum(p.numel() for p in slice_model(model, one).transformer.layers.parameters())
    assert body - small == 5 * 512 * 64 + 2 * 64


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formulas_count_what_a_sliced_model_has(family: str) -> None:
    model = tiny_decoder(family)
    structure = structure_of(model).keeping(
        {("decoder", 0, "attention"): SubLayer((1, 3)), ("decoder", 2, "attention"): SubLayer()}
    )
    found = measures(slice_model(model, structure))
    assert found["sliced_density"] == pytest.approx(structure.density())
    if family == "all-attention":
        d, e, n = HIDDEN, HIDDEN // HEADS, 6
        assert found["body_parameters"] == 6 * (5 * d * e + 2 * n * e + 2 * e) + LAYERS * 3 * d
        assert structure.linear_weights() == 6 * (5 * d * e + 2 * n * e)


def by_hand(layer: Any, h: Tensor, memory: Tensor, positions: Tensor) -> Tensor:
    """The layer's result one query, key and head at a time, with explicit distances."""
    core, norm = layer.core, layer.norm
    x, context = norm(h), norm(torch.cat([memory, h], dim=1))
    before, size = memory.shape[1], core.head_size
    read_ = torch.zeros(*h.shape[:2], core.width)
    for head in range(core.heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = core.q(x)[..., part], core.k(context)[..., part], core.v(context)[..., part]
        r = core.r(positions)[..., part]
        u, w = core.content_bias[part], core.position_bias[part]
        for row in range(h.shape[0]):
            for i in range(h.shape[1]):
                keys = [j for j in range(context.shape[1]) if 0 <= i + before - j <= MEMORY]
                scores = [
                    ((q[row, i] + u) @ k[row, j] + (q[row, i] + w) @ r[i + before - j]) / math.sqrt(size)
                    for j in keys
                ]
                values = [v[row, j] for j in keys]
                for n in range(core.persistent):
                    scores.append(q[row, i] @ core.persistent_keys[n, part])
                    values.append(math.sqrt(core.persistent) * core.persistent_values[n, part])
                read_[row, i, part] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return h + layer.output(read_)


@pytest.mark.parametrize("persistent", [0, 6])
@pytest.mark.parametrize("before", [0, 3, MEMORY])
@torch.no_grad()
def test_attention_is_what_the_formulas_say(persistent: int, before: int) -> None:
    """Without persistent vectors it is that of Transformer-XL; with them both share one softmax."""
    model = tiny_decoder(persistent_vectors=persistent).transformer
    layer, h, memory = model.layers[1], torch.randn(2, 7, HIDDEN), torch.randn(2, before, HIDDEN)
    band = Band(7, before, MEMORY, h.device)
    found, _ = layer(h, memory, model.positions, band)
    torch.testing.assert_close(found, by_hand(layer, h, memory, model.positions), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_attended_to_sums_to_one_and_hidden_places_are_exactly_zero() -> None:
    core = tiny_decoder().transformer.layers[0].core
    seen: list[Tensor] = []
    core.dropout.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    x, positions = torch.randn(2, 7, HIDDEN), torch.randn(MEMORY + 1, HIDDEN)
    context = torch.cat([torch.randn(2, 4, HIDDEN), x], dim=1)
    band = Band(7, 4, MEMORY, x.device)
    core(x, core.keys_values(context), positions, band)
    learned, scores = seen[0][..., :6], seen[0][..., 6:]
    torch.testing.assert_close(learned.sum(3) + scores.sum(3), torch.ones(2, HEADS, 7))
    assert (scores.masked_select(band.hidden) == 0).all()
    assert (scores.masked_select(~band.hidden) > 0).all()
    assert (learned > 0).all()


@torch.no_grad()
def test_positions_are_those_of_the_classic_shift() -> None:
    """Padding a column, viewing and dropping a row moves every distance to its place, as a gather does."""
    length, before = 6, 4
    band = Band(length, before, length + before, torch.device("cpu"))
    scores = torch.randn(2, 3, length, length + before)  # by distance, the farthest first
    padded = torch.cat([scores.new_zeros(2, 3, length, 1), scores], dim=3)
    shifted = padded.view(2, 3, length + before + 1, length)[:, :, 1:].reshape(scores.shape)
    gathered = scores.flip(3).gather(3, band.distance.clamp(max=length + before - 1).expand_as(scores))
    assert torch.equal(gathered.masked_fill(band.hidden, 0), shifted.masked_fill(band.hidden, 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_looks_ahead(family: str) -> None:
    model, ids = tiny_decoder(family), tokens()
    expected, _ = read(model, ids)
    ids[:, 9] = (ids[:, 9] + 1) % 50
    found, _ = read(model, ids)
    assert torch.equal(found[:, :9], expected[:, :9])
    assert not torch.allclose(found[:, 9:], expected[:, 9:])


def test_a_layer_sees_as_far_as_its_memory_is_long() -> None:
    model, ids = tiny_decoder(num_hidden_layers=1), tokens()
    expected, _ = read(model, ids)
    ids[:, 4] = (ids[:, 4] + 1) % 50
    found, _ = read(model, ids)
    changed = (found - expected).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(4, 4 + MEMORY + 1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("initial", ["empty", "zeros"])
def test_how_a_stream_is_cut_changes_nothing(family: str, initial: str) -> None:
    model, ids = tiny_decoder(family, initial_memory=initial), tokens()
    expected, memory = read(model, ids)
    for cuts in ([8], [7, 8, 14], list(range(1, 17)), [2, 4]):
        found, last = read(model, ids, cuts)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(last, memory, atol=1e-5, rtol=0)


def test_positions_are_relative() -> None:
    """A stream that begins later, with the memory of what came before, gives the same."""
    model, ids = tiny_decoder(), tokens(length=30)
    expected, _ = read(model, ids)
    _, memory = read(model, ids[:, :12])
    found, _ = read(model, ids[:, 12:], memory=memory)
    torch.testing.assert_close(found, expected[:, 12:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_memory_holds_the_last_inputs_of_every_layer() -> None:
    model, ids = tiny_decoder(), tokens()
    seen: list[Tensor] = []
    for layer in model.transformer.layers:
        layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    memory = model(ids[:, :3]).memory
    assert memory.shape == (LAYERS, 2, 3, HIDDEN)
    memory = model(ids[:, 3:5], memory).memory
    assert memory.shape == (LAYERS, 2, MEMORY, HIDDEN)
    memory = model(ids[:, 5:], memory).memory
    assert memory.shape == (LAYERS, 2, MEMORY, HIDDEN)
    for at, inputs in enumerate(seen[-LAYERS:]):
        assert torch.equal(memory[at], inputs[:, -MEMORY:])


def test_memory_has_no_gradient_and_rows_are_apart() -> None:
    model, ids = tiny_decoder(), tokens()
    output = model(ids[:, :6], labels=ids[:, 1:7])
    assert not output.memory.requires_grad
    one, _ = read(model, ids[1:])
    both, memory = read(model, ids)
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=0)
    swapped, _ = read(model, ids[:, 3:].flip(0), memory=memory.flip(1))
    torch.testing.assert_close(swapped.flip(0), read(model, ids[:, 3:], memory=memory)[0], atol=1e-5, rtol=0)


def test_a_memory_of_zeros_is_attended() -> None:
    """As released: the states before a stream are zeros, which the norm makes its bias."""
    ids = tokens()
    empty, zeros = tiny_decoder(), tiny_decoder(initial_memory="zeros")
    nothing, start = empty.initial_memory(2), zeros.initial_memory(2)
    assert nothing.shape == (LAYERS, 2, 0, HIDDEN)
    assert start.shape == (LAYERS, 2, MEMORY, HIDDEN)
    assert start.count_nonzero() == 0
    assert torch.equal(read(empty, ids)[0], read(zeros, ids, memory=nothing)[0])
    assert torch.equal(read(zeros, ids)[0], read(empty, ids, memory=start)[0])
    assert not torch.allclose(read(zeros, ids)[0], read(empty, ids)[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("initial", ["empty", "zeros"])
def test_keys_and_values_serve_as_memory(family: str, initial: str) -> None:
    """Before a stream of zeros they are not zero: the norm's bias is projected."""
    model, ids = tiny_decoder(family, initial_memory=initial), tokens()
    structure = structure_of(model).keeping(
        {("decoder", 0, "attention"): SubLayer((1, 3)), ("decoder", 1, "attention"): SubLayer()}
    )
    for each in (model, slice_model(model, structure)):
        expected, _ = read(each, ids)
        cache = each.initial_cache(2)
        found, cache = read(each, ids, [7, 8, 14], memory=cache)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert all(part.shape[:3] == (2, 2, MEMORY) for part in cache)
        assert all(not part.requires_grad for part in cache)
    assert [part.shape[3] for part in cache] == [16, 32]
    start = model.initial_cache(2)[0]
    assert start.shape[2] == (MEMORY if initial == "zeros" else 0)
    assert start.any() == (initial == "zeros")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("extra", [{}, ADAPTIVE], ids=["plain", "adaptive"])
@torch.no_grad()
def test_losses_are_those_of_the_logits(family: str, extra: dict[str, Any]) -> None:
    model, ids = tiny_decoder(family, **extra), tokens(length=18)
    labels = ids[:, 1:].clone()
    labels[0, 2] = -100
    output, chances = model(ids[:, :-1], labels=labels), read(model, ids[:, :-1])[0].log_softmax(2)
    expected = -chances.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    expected[0, 2] = 0
    torch.testing.assert_close(output.losses, expected, atol=1e-5, rtol=1e-5)
    assert output.loss.item() == pytest.approx(expected.sum().item() / 33, rel=1e-5)
    assert output.logits is None
    torch.testing.assert_close(chances.exp().sum(2), torch.ones(2, 17))


def test_the_adaptive_softmax_gives_probabilities() -> None:
    model = tiny_decoder(**ADAPTIVE)
    logits, _ = read(model, tokens())
    torch.testing.assert_close(logits.exp().sum(2), torch.ones(2, 17))


def test_embeddings_and_softmax_are_one_set_of_tensors(tmp_path: Path) -> None:
    model = tiny_decoder(**ADAPTIVE)
    tables = [name for name in model.state_dict() if "tables" in name]
    assert [model.state_dict()[name].shape for name in tables] == [(10, 32), (15, 16), (25, 8)]
    checkpoint.save(model, tmp_path)
    again = checkpoint.load(tmp_path)
    before, _ = read(again, tokens())
    with torch.no_grad():
        again.transformer.embeddings.tables[2].weight[24] += 1.0
    after, _ = read(again, tokens() % 10)  # none of those words is read
    assert not torch.allclose(after, read(model, tokens() % 10)[0])
    assert torch.equal(before, read(model, tokens())[0])


@torch.no_grad()
def test_every_word_has_the_vector_of_its_cluster() -> None:
    embeddings = tiny_decoder(**ADAPTIVE).transformer.embeddings
    words = embeddings(torch.arange(50).unsqueeze(0))[0]
    for (low, high, _), table, project in zip(
        embeddings.clusters, embeddings.tables, embeddings.projections, strict=True
    ):
        torch.testing.assert_close(words[low:high], project(table.weight))


def test_an_unsorted_vocabulary_is_refused() -> None:
    check_sorted(
        [0, 90, 50, 7, 8, 1, 2], [3, 5]
    )  # within a cluster the order does not matter, nor one rare word
    for counts in ([9, 8, 7, 10, 12, 1, 1], [90, 50, 1, 1, 9, 9, 9]):
        with pytest.raises(UserError, match="sorted by frequency"):
            check_sorted(counts, [3, 5])


def test_a_word_is_dropped_wherever_it_stands() -> None:
    embeddings = tiny_decoder(word_dropout=0.5).transformer.embeddings.train()
    torch.manual_seed(0)
    made = embeddings(torch.arange(50).repeat(2, 3))
    gone = (made == 0).all(dim=2)
    assert 10 < gone[0, :50].sum() < 40
    assert torch.equal(gone[0, :50], gone[1, 100:])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("extra", [{}, ADAPTIVE], ids=["plain", "adaptive"])
def test_everything_learns(family: str, extra: dict[str, Any]) -> None:
    model, ids = tiny_decoder(family, **extra).train(), torch.arange(50).view(2, 25)
    memory = model.initial_memory(2)
    for start in (0, 12):
        output = model(ids[:, start : start + 12], memory, ids[:, start + 1 : start + 13])
        output.loss.backward()
        memory = output.memory
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_begin_as_published(family: str) -> None:
    """Uniform, the projections of queries, keys, values and positions narrower the deeper the model is."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family))
    wide, narrow = HIDDEN**-0.5, (HIDDEN * LAYERS) ** -0.5
    for name, parameter in model.named_parameters():
        bound = parameter.abs().max().item()
        if "norm" in name:
            assert bound == float(name.endswith("weight"))
        elif name.endswith("bias"):
            assert bound == 0, name
        elif "core" in name:
            assert narrow * 0.95 < bound <= narrow, name
        elif "ffn.output" in name:
            assert bound <= 24**-0.5
        else:
            assert wide * 0.95 < bound <= wide, name


@torch.no_grad()
def test_spread_weights_tell_persistent_vectors_apart() -> None:
    """By released ones every query reads all of them alike."""
    used = {}
    for how in ("released", "spread"):
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "persistent_vectors": 128}
        model = AutoModelForCausalLM.from_config(tiny_config(**sizes, initial_weights=how)).eval()
        core = model.transformer.layers[0].core
        assert (core.persistent_values.std() * 128**0.5 == pytest.approx(1, rel=0.05)) == (how == "spread")
        seen: list[torch.Tensor] = []
        core.dropout.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        model(tokens())
        weights = seen[0][..., :128] / seen[0][..., :128].sum(dim=3, keepdim=True)
        used[how] = torch.special.entr(weights).sum(dim=3).exp().mean().item()
    assert used["spread"] < 0.6 * 128 < 0.95 * 128 < used["released"]


def test_scores_and_losses_are_fp32_where_products_are_bf16() -> None:
    model, ids = tiny_decoder(**ADAPTIVE), tokens()
    seen: list[torch.dtype] = []
    model.transformer.layers[0].core.dropout.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, labels=ids)
    assert output.losses.dtype == torch.float32
    assert seen == [torch.float32]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_makes_one_from_scratch(family: str, tmp_path: Path) -> None:
    source = NewModel(config={"model_type": family, **tiny_config(family, **ADAPTIVE).to_diff_dict()})
    model, trained = checkpoint.open_source(source, "AutoModelForCausalLM", {})
    assert not trained
    checkpoint.save(model, tmp_path)
    again, trained = checkpoint.open_source(str(tmp_path), "AutoModelForCausalLM", {})
    assert trained
    assert torch.equal(read(again, tokens())[0], read(model, tokens())[0])
    assert architecture_of(again.config).decoder


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"cutoffs": [30, 10]}, "cutoffs should rise between 0 and vocab_size 50"),
        ({"cutoffs": [50]}, "cutoffs should rise"),
        ({"cutoffs": [10, 20, 30], "divisor": 4}, "cannot be divided so often"),
        ({"num_attention_heads": 5}, "no multiple of num_attention_heads 5"),
        ({"memory_length": 0}, "memory_length should be a whole number of at least 1"),
        ({"distances": 5}, "distances should be above memory_length 5"),
        ({"initial_weights": "large"}, "initial_weights should be released or spread"),
        ({"persistant_vectors": 4}, "unknown key 'persistant_vectors'; did you mean 'persistent_vectors'"),
        ({"intermediate_size": 4}, "unknown key 'intermediate_size'"),
        ({"word_dropout": 1.5}, "word_dropout is a share"),
        ({"num_attention_heads": -4}, "num_attention_heads should be a whole number of at least 1, not -4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers should be a whole number"),
        ({"memory_length": "64"}, "memory_length should be a whole number of at least 1, not '64'"),
        ({"persistent_vectors": 2.5}, "persistent_vectors should be a whole number"),
        ({"divisor": 0}, "divisor should be a whole number"),
        ({"cutoffs": 10}, "cutoffs should be a list, not 10"),
        ({"cutoffs": [2.5]}, "cutoffs should be whole numbers"),
        ({"initial_memory": "ones"}, "initial_memory should be empty or zeros"),
        ({"model_type": "transformer-xl"}, "transformer-xl has no persistent_vectors"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, Any], words: str) -> None:
    values = tiny_config().to_diff_dict() | {"distances": None, "persistent_vectors": 6} | sizes
    with pytest.raises(UserError, match=words):
        checkpoint.open_source(NewModel(config=values), "AutoModelForCausalLM", {})

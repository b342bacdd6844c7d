"""Pruning methods on encoder-decoders: what they leave behind slices exactly; what does not fit is refused."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from compressor.errors import UserError
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.pruning.base import METHODS, method_class
from compressor.pruning.fold import alive_units, fold_constants, fold_dead_units
from compressor.pruning.heads import Heads
from compressor.pruning.layer_drop import LayerDrop
from compressor.pruning.movement import Movement
from compressor.pruning.movement.masks import Masks
from tests.zoo import HEADS, LAYERS, WRITERS, logits, padded_batch, tiny_model

FIT = ("movement", "layer-drop", "heads")


def movement(**keys: object) -> Movement:
    return Movement(**{"method": "movement", "attention_block": [4, 4], **keys})


class Batches:
    """A context that has a few labelled texts."""

    seed = 0

    def __init__(self, family: str) -> None:
        self.family = family

    def labelled_batches(self):
        for seed in range(3):
            batch = padded_batch(self.family, seed=seed)
            labels = batch.pop("decoder_input_ids")
            yield batch | {"labels": labels}


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("variant", ["hybrid", "struct", "block"])
@pytest.mark.parametrize("seed", range(3))
def test_masked_equals_folded_equals_sliced(family: str, variant: str, seed: int) -> None:
    keys = {} if variant == "struct" else {"attention_block": [4, 4]}
    model, inputs = tiny_model(family), padded_batch(family)
    masks = Masks(model, Movement(method="movement", variant=variant, **keys))
    torch.manual_seed(seed)
    for part in masks.scores.values():
        for scores in part:
            scores.values.data = torch.randn_like(scores.values) * 3 - 4
    with torch.no_grad():
        # So that whole heads go in their values, and neurons in both of their maps.
        for masked in masks.masked:
            for grid in masked.weight.grids:
                grid.scores.values.data[: grid.scores.values.shape[0] // 2] -= 5
    masked_logits = logits(model, inputs)
    masks.fold()
    torch.testing.assert_close(logits(model, inputs), masked_logits, atol=1e-6, rtol=0)
    structure = fold_dead_units(model, "exact")
    assert structure.density() < 1
    assert structure == alive_units(model, "exact")
    with Gates(model, structure):
        torch.testing.assert_close(logits(model, inputs), masked_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        logits(slice_model(model, structure), inputs), masked_logits, atol=1e-5, rtol=0
    )


def test_counts_of_bart_base_and_the_regulariser_at_the_start() -> None:
    """96 masked matrices, 84 tensors of scores, four parts that count alike; 0.5 whatever the part."""
    with torch.device("meta"):
        model = BartForConditionalGeneration(BartConfig(
            vocab_size=64, d_model=768, max_position_embeddings=8,
            **{f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in
               {"layers": 6, "attention_heads": 12, "ffn_dim": 3072}.items()},
        ))  # fmt: skip
    keys = Movement(method="movement", attention_block=[32, 32])
    masks = Masks(model.to_empty(device="cpu"), keys)
    assert len(masks.masked) == 96
    assert sum(map(len, masks.scores.values())) == 84
    assert {part: len(scores) for part, scores in masks.scores.items()} == {
        "attention": 24, "ffn": 6, "decoder_attention": 48, "decoder_ffn": 6,
    }  # fmt: skip
    assert masks.regularization().item() == pytest.approx(0.5)
    assert set(masks.densities()) == {"attention", "ffn", "decoder_attention", "decoder_ffn", "total"}
    names = [name for name, _ in model.named_parameters() if "block_scores" in name]
    assert len(set(names)) == 84


def test_the_decoder_has_strengths_of_its_own() -> None:
    model = tiny_model("bart")
    strong = movement(decoder_ffn_regularization=3.0, attention_regularization=0.0)
    assert Masks(model, strong).regularization().item() == pytest.approx((0 + 0.5 + 0 + 1.5) / 4)
    assert strong.strength_of("decoder_attention") == 0.0


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("score", ["sensitivity", "magnitude", "random"])
def test_heads_of_all_three_attentions_compete(family: str, score: str) -> None:
    model, inputs = tiny_model(family), padded_batch(family)
    (pruned,) = Heads(method="heads", score=score, keep=0.5).prune(model, Batches(family))  # type: ignore[arg-type]
    assert pruned.structure.heads() == HEADS * LAYERS * 3 // 2
    kept = {(la.stack, name): 0 for la, name, _ in pruned.structure.each() if name != "ffn"}
    for layer, name, sub in pruned.structure.each():
        if name != "ffn":
            kept[layer.stack, name] += len(sub.kept)
    assert len(kept) == 3
    assert all(0 < count < HEADS * LAYERS for count in kept.values())
    with Gates(model, pruned.structure):
        gated = logits(model, inputs)
    torch.testing.assert_close(logits(slice_model(model, pruned.structure), inputs), gated, atol=1e-5, rtol=0)


def test_value_biases_of_removed_heads_go_into_the_output() -> None:
    """A head whose values are zero but for their bias gives the same at every token, in cross-attention too."""
    model, inputs = tiny_model("bart"), padded_batch("bart")
    for layers, name in (
        (model.model.encoder.layers, "self_attn"),
        (model.model.decoder.layers, "encoder_attn"),
    ):
        with torch.no_grad():
            getattr(layers[1], name).v_proj.weight[:24] = 0
    before = logits(model, inputs)
    structure = alive_units(model, "exact")
    assert structure.heads() == HEADS * LAYERS * 3 - 4
    fold_constants(model, structure)
    torch.testing.assert_close(logits(slice_model(model, structure), inputs), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", WRITERS)
def test_layers_are_dropped_from_each_stack_by_itself(family: str) -> None:
    model = tiny_model(family)
    keys = LayerDrop(method="layer-drop", drop={"encoder": 1, "decoder": 2})
    keys.check(model.config)
    (pruned,) = keys.prune(model, None)  # type: ignore[arg-type]
    assert [(la.stack, la.index) for la in pruned.structure.layers] == [
        ("encoder", 0),
        ("encoder", 1),
        ("decoder", 0),
    ]
    named = LayerDrop(method="layer-drop", strategy="explicit", layers={"decoder": [0, 1]})
    (pruned,) = named.prune(model, None)  # type: ignore[arg-type]
    assert [(la.stack, la.index) for la in pruned.structure.layers][3:] == [("decoder", 2)]
    inputs = padded_batch(family)
    with Gates(model, pruned.structure):
        gated = logits(model, inputs)
    torch.testing.assert_close(logits(slice_model(model, pruned.structure), inputs), gated, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"drop": 1}, "name both stacks, drop: {encoder: ..., decoder: ...}"),
        ({"drop": {"encoder": 3}}, "top can drop 0 to 2 of 3 layers, not 3"),
        ({"strategy": "explicit", "layers": [0]}, "name both stacks, layers"),
        ({"strategy": "explicit", "layers": {"decoder": [3]}}, "no layer 3 of the decoder"),
        (
            {"strategy": "explicit", "layers": {"decoder": [0, 1, 2]}},
            "one of the 3 layers of the decoder must stay",
        ),
    ],
)
def test_layers_that_are_not_there_are_named(keys: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as error:
        LayerDrop(method="layer-drop", **keys).check(tiny_model("bart").config)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_keys_that_do_not_fit_the_model_are_refused() -> None:
    bart, bert = tiny_model("bart").config, tiny_model("bert").config
    with pytest.raises(UserError, match="nonorm is for encoders"):
        movement(nonorm=0.5).check(bart)
    with pytest.raises(UserError, match="decoder_ffn_regularization is for models with a decoder"):
        movement(decoder_ffn_regularization=1.0).check(bert)
    with pytest.raises(UserError, match="by stack is for encoder-decoders"):
        LayerDrop(method="layer-drop", drop={"encoder": 1}).check(bert)
    with pytest.raises(UserError, match="numbers the layers of an encoder"):
        Heads(method="heads", score="explicit", drop={0: [1]}).check(bart)
    with pytest.raises(ValueError, match="goes by place"):
        LayerDrop(method="layer-drop", strategy="contribution", drop={"encoder": 1})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", WRITERS)
def test_every_method_fits_or_says_which_ones_do(method: str, family: str) -> None:
    made = method_class(method).model_construct(method=method)
    config = tiny_model(family).config
    if method in FIT:
        made.check_family(config)
        return
    with pytest.raises(UserError, match=f"{method} is for encoders.*take one of movement, layer-drop, heads"):
        made.check_family(config)

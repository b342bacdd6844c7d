"""One small table per model family.

A new family is one `Architecture` below plus the contract tests. Only module paths and attribute names of
transformers are used, none of its pruning helpers.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from compressor.models.tables import Architecture, StackTable, SubLayerTable

BERT_LAYER = (
    SubLayerTable(
        name="attention",
        inputs=("attention.self.query", "attention.self.key", "attention.self.value"),
        output="attention.output.dense",
        norm="attention.output.LayerNorm",
        core="attention.self",
        counts=("num_attention_heads", "all_head_size"),
    ),
    SubLayerTable(
        name="ffn",
        inputs=("intermediate.dense",),
        output="output.dense",
        norm="output.LayerNorm",
        core="intermediate",
        activation="intermediate.intermediate_act_fn",
    ),
)

DISTILBERT_LAYER = (
    SubLayerTable(
        name="attention",
        inputs=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        output="attention.out_lin",
        norm="sa_layer_norm",
        core="attention",
        counts=("n_heads", "dim"),
    ),
    SubLayerTable(
        name="ffn",
        inputs=("ffn.lin1",),
        output="ffn.lin2",
        norm="output_layer_norm",
        core="ffn",
        activation="ffn.activation",
    ),
)

XLNET_LAYER = (
    SubLayerTable(
        name="attention",
        inputs=("rel_attn.core.q", "rel_attn.core.k", "rel_attn.core.r", "rel_attn.core.v"),
        output="rel_attn.o",
        norm="rel_attn.layer_norm",
        core="rel_attn.core",
        counts=("heads", "width"),
        vectors=tuple(f"rel_attn.core.{name}" for name in ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")),
        positional=("rel_attn.core.r",),
    ),
    SubLayerTable(
        name="ffn",
        inputs=("ff.layer_1",),
        output="ff.layer_2",
        norm="ff.layer_norm",
        core="ff.layer_1",
        activation="ff.activation_function",
    ),
)

MEMORY_ATTENTION = SubLayerTable(
    name="attention",
    inputs=("core.q", "core.k", "core.r", "core.v"),
    output="output",
    norm="norm",
    core="core",
    counts=("heads", "width"),
    vectors=("core.content_bias", "core.position_bias"),
    positional=("core.r",),
)
PERSISTENT = ("core.persistent_keys", "core.persistent_values")
ALL_ATTENTION_LAYER = (
    replace(MEMORY_ATTENTION, vectors=(*MEMORY_ATTENTION.vectors, *PERSISTENT), learned=PERSISTENT),
)
TRANSFORMER_XL_LAYER = (
    MEMORY_ATTENTION,
    SubLayerTable(
        name="ffn",
        inputs=("ffn.dense",),
        output="ffn.output",
        norm="ffn.norm",
        core="ffn.dense",
        activation="ffn.activation",
    ),
)

GPT2_LAYER = (
    SubLayerTable(
        name="attention",
        inputs=("attn.core.q", "attn.core.k", "attn.core.v"),
        output="attn.c_proj",
        norm="ln_1",
        core="attn.core",
        counts=("heads", "width"),
    ),
    SubLayerTable(
        name="ffn",
        inputs=("mlp.c_fc",),
        output="mlp.c_proj",
        norm="ln_2",
        core="mlp.c_fc",
        activation="mlp.act",
    ),
)

# One layer for all: its parts are named to be measured; nothing cuts them.
ALBERT_LAYER = (
    SubLayerTable(
        name="attention",
        inputs=("attention.query", "attention.key", "attention.value"),
        output="attention.dense",
        norm="attention.LayerNorm",
        core="attention",
    ),
    SubLayerTable(
        name="ffn",
        inputs=("ffn",),
        output="ffn_output",
        norm="full_layer_layer_norm",
        core="ffn",
        activation="activation",
    ),
)


def _bart_attention(name: str) -> SubLayerTable:
    core = {"attention": "self_attn", "cross_attention": "encoder_attn"}[name]
    return SubLayerTable(
        name=name,
        inputs=tuple(f"{core}.{letter}_proj" for letter in "qkv"),
        output=f"{core}.out_proj",
        norm=f"{core}_layer_norm",
        core=core,
        counts=("num_heads", "embed_dim"),
        second="",
    )


BART_FFN = SubLayerTable(
    name="ffn",
    inputs=("fc1",),
    output="fc2",
    norm="final_layer_norm",
    core="fc1",
    activation="activation_fn",
)


def _t5_attention(name: str) -> SubLayerTable:
    core = {"attention": "layer.0.SelfAttention", "cross_attention": "layer.1.EncDecAttention"}[name]
    return SubLayerTable(
        name=name,
        inputs=tuple(f"{core}.{letter}" for letter in "qkv"),
        output=f"{core}.o",
        norm=core.rpartition(".")[0] + ".layer_norm",
        core=core,
        counts=("n_heads", "inner_dim"),
        second="position_bias",
        units="units",
    )


def _t5_stacks(inputs: tuple[str, ...]) -> tuple[StackTable, ...]:
    """Encoder and decoder; `inputs` are the first maps of the FFN, two where it is gated."""

    def ffn(place: int) -> SubLayerTable:
        core = f"layer.{place}.DenseReluDense"
        return SubLayerTable(
            name="ffn",
            inputs=tuple(f"{core}.{name}" for name in inputs),
            output=f"{core}.wo",
            norm=f"layer.{place}.layer_norm",
            core=core,
            activation=f"{core}.act",
        )

    own, cross = _t5_attention("attention"), _t5_attention("cross_attention")
    keys = {"heads_key": "num_heads", "ffn_key": "d_ff"}
    return (
        StackTable("encoder", "encoder.block", (own, ffn(1)), "num_layers", **keys),
        StackTable("decoder", "decoder.block", (own, cross, ffn(2)), "num_decoder_layers", **keys),
    )


def _with_shared_positions(model: PreTrainedModel) -> None:
    from compressor.models.t5 import share_positions

    share_positions(model)


def _with_linear_attention(model: PreTrainedModel) -> None:
    from compressor.models.xlnet import make_linear

    make_linear(model)


def _with_linear_maps(model: PreTrainedModel) -> None:
    from compressor.models.gpt2 import make_linear

    make_linear(model)


TRANSFORMER_XL = Architecture(
    "transformer-xl",
    stacks=(StackTable("decoder", "layers", TRANSFORMER_XL_LAYER),),
    embeddings=("embeddings",),
    embeddings_norm=None,
    readers=(),
    inputs=("input_ids",),
    cls=-1,
    decoder=True,
    fixed_width=True,
)

WORD_POSITION = ("embeddings.word_embeddings", "embeddings.position_embeddings")
WORD_POSITION_TYPE = (*WORD_POSITION, "embeddings.token_type_embeddings")

ROBERTA = Architecture(
    "roberta",
    stacks=(StackTable("encoder", "encoder.layer", BERT_LAYER),),
    embeddings=WORD_POSITION_TYPE,
    embeddings_norm="embeddings.LayerNorm",
    readers=("classifier.dense", "classifier", "qa_outputs"),
    positions_after_padding=True,
)

ARCHITECTURES = {
    a.model_type: a
    for a in (
        Architecture(
            "bert",
            stacks=(StackTable("encoder", "encoder.layer", BERT_LAYER),),
            embeddings=WORD_POSITION_TYPE,
            embeddings_norm="embeddings.LayerNorm",
            readers=("bert.pooler.dense", "classifier", "qa_outputs"),
            inputs=("input_ids", "attention_mask", "token_type_ids"),
        ),
        ROBERTA,
        replace(ROBERTA, model_type="xlm-roberta"),
        replace(ROBERTA, model_type="camembert"),
        Architecture(
            "electra",
            stacks=(StackTable("encoder", "encoder.layer", BERT_LAYER),),
            embeddings=WORD_POSITION_TYPE,
            embeddings_norm="embeddings.LayerNorm",
            embeddings_projection="embeddings_project",
            readers=("classifier.dense", "classifier", "qa_outputs"),
            inputs=("input_ids", "attention_mask", "token_type_ids"),
        ),
        Architecture(
            "distilbert",
            stacks=(StackTable("encoder", "transformer.layer", DISTILBERT_LAYER, ffn_key="hidden_dim"),),
            embeddings=WORD_POSITION,
            embeddings_norm="embeddings.LayerNorm",
            readers=("pre_classifier", "classifier", "qa_outputs"),
            activation_key="activation",
        ),
        Architecture(
            "xlnet",
            stacks=(StackTable("encoder", "layer", XLNET_LAYER, ffn_key="d_inner"),),
            embeddings=("word_embedding",),
            embeddings_norm=None,
            readers=("sequence_summary.summary", "logits_proj", "classifier", "qa_outputs"),
            inputs=("input_ids", "attention_mask", "token_type_ids"),
            activation_key="ff_activation",
            padding_side="left",
            half_precision=False,
            cls=-1,
            prepare=_with_linear_attention,
        ),
        Architecture(
            "gpt2",
            stacks=(StackTable("decoder", "h", GPT2_LAYER, ffn_key="n_inner"),),
            embeddings=("wte", "wpe"),
            embeddings_norm=None,
            readers=("lm_head",),
            inputs=("input_ids",),
            activation_key="activation_function",
            cls=-1,
            decoder=True,
            fixed_width=True,
            prepare=_with_linear_maps,
        ),
        Architecture(
            "bart",
            stacks=(
                StackTable(
                    "encoder",
                    "encoder.layers",
                    (_bart_attention("attention"), BART_FFN),
                    "encoder_layers",
                    "encoder_attention_heads",
                    "encoder_ffn_dim",
                ),
                StackTable(
                    "decoder",
                    "decoder.layers",
                    (_bart_attention("attention"), _bart_attention("cross_attention"), BART_FFN),
                    "decoder_layers",
                    "decoder_attention_heads",
                    "decoder_ffn_dim",
                ),
            ),
            embeddings=("shared", "encoder.embed_positions", "decoder.embed_positions"),
            embeddings_norm=None,
            readers=("lm_head",),
            activation_key="activation_function",
        ),
        Architecture(
            "t5",
            stacks=_t5_stacks(("wi",)),
            gated=_t5_stacks(("wi_0", "wi_1")),
            embeddings=("shared",),
            embeddings_norm=None,
            readers=("lm_head",),
            activation_key="dense_act_fn",
            head_size_key="d_kv",
            half_precision=False,
            prepare=_with_shared_positions,
        ),
        Architecture(
            "albert",
            stacks=(
                StackTable(
                    "encoder",
                    "encoder.albert_layer_groups.0.albert_layers",
                    ALBERT_LAYER,
                    applied_by="encoder",
                ),
            ),
            embeddings=WORD_POSITION_TYPE,
            embeddings_norm="embeddings.LayerNorm",
            embeddings_projection="encoder.embedding_hidden_mapping_in",
            readers=("albert.pooler", "classifier", "qa_outputs"),
            inputs=("input_ids", "attention_mask", "token_type_ids"),
        ),
        TRANSFORMER_XL,
        replace(
            TRANSFORMER_XL,
            model_type="all-attention",
            stacks=(StackTable("decoder", "layers", ALL_ATTENTION_LAYER, learned_key="persistent_vectors"),),
        ),
    )
}

"""One small table per model family: where its layers are and what each is made of.

A new family is one `Architecture` below plus the contract tests. Only module paths and attribute names of
transformers are used, none of its pruning helpers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from compressor.errors import UserError
from compressor.models.structure import Sizes, Structure
from compressor.schema import suggest

DECODER_INPUT = "decoder_input_ids"
"""What a decoder reads: the tokens before those that it is to write."""
Kind = Literal["encoder", "decoder", "encoder-decoder"]
"""What a model does with a text: reads it whole, goes on with it, or reads it and writes another."""


@dataclass(frozen=True)
class SubLayerTable:
    """Where one sub-layer is, as paths inside its layer.

    A unit (head or neuron) owns rows of every projection in `inputs` and columns of `output`. `core` is the
    module to leave out when no unit is left; it computes what `output` projects, or contains `output`.
    `counts` names attributes of `core` that hold the number of units and their total width. `vectors` are
    parameters whose last axis is as wide as all units together, `learned` those of them that are weights: keys
    and values that heads attend to beside the tokens'; `positional` those of `inputs` that do not read the
    residual stream. The last of `inputs` makes what `output` projects (of heads: the values; of a gated FFN: what
    the gate multiplies). `second` is set where `core` gives two results: the argument that it hands back as the
    second one, if any. `units` names an attribute of `core` with the original numbers of its units.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    norm: str
    core: str
    activation: str | None = None
    counts: tuple[str, str] | None = None
    vectors: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    second: str | None = None
    units: str | None = None

    @property
    def is_attention(self) -> bool:
        """Whether units are heads."""
        return self.name != "ffn"


@dataclass(frozen=True)
class StackTable:
    """A list of layers: its path in the base model, the config keys of its sizes, and its sub-layers."""

    name: str
    path: str
    sublayers: tuple[SubLayerTable, ...]
    layers_key: str = "num_hidden_layers"
    heads_key: str = "num_attention_heads"
    ffn_key: str = "intermediate_size"
    learned_key: str | None = None
    """How many learned keys and values each head attends to."""
    applied_by: str | None = None
    """Where all layers are one: the module (in the base model) that applies it as often as its own config says."""


@dataclass(frozen=True)
class Architecture:
    """A family. `embeddings` write the hidden width in the order applied, `readers` are the heads' first linear maps.

    Paths of stacks and embeddings are inside the base model; of readers, inside the whole model. A path that
    a model lacks is skipped (token classification has no pooler).
    """

    model_type: str
    stacks: tuple[StackTable, ...]
    embeddings: tuple[str, ...]
    embeddings_norm: str | None
    readers: tuple[str, ...]
    embeddings_projection: str | None = None
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    activation_key: str = "hidden_act"
    positions_after_padding: bool = False
    """Whether position numbers begin after the padding token's, which takes so many from the longest text."""
    padding_side: Literal["right", "left"] = "right"
    """Right where positions count from the first column."""
    half_precision: bool = True
    """Whether onnxruntime runs its graph in fp16 (it crashes on XLNet's)."""
    cls: int = 0
    """Place of the token that stands for the whole text: the first (0) or the last (-1)."""
    decoder: bool = False
    """Whether it reads from left to right and predicts the next token; then norms stand before sub-layers."""
    fixed_width: bool = False
    """Whether hidden dimensions stay: memories, tables of several widths or a final norm have them too."""
    head_size_key: str | None = None
    """Where heads together are not as wide as the residual stream: the config's key of a head's width."""
    gated: tuple[StackTable, ...] = ()
    """The stacks of models whose FFN is gated, where the config says which (`is_gated_act`)."""
    prepare: Callable[[PreTrainedModel], None] | None = None
    """Puts the modules that the tables name in place of others that compute the same."""

    @property
    def shares_layers(self) -> bool:
        """Whether some layers are one and the same, so that only their number can change."""
        return any(stack.applied_by for stack in self.stacks)

    def check(self, structure: Structure) -> None:
        """That a model of the family can have this structure.

        Raises:
            ValueError: a part of a shared layer is missing, or hidden dimensions of a family that needs them.
        """
        structure.check_shared()
        if self.fixed_width and structure.hidden is not None:
            raise ValueError(f"the hidden width of {self.model_type} cannot change")

    @property
    def kind(self) -> Kind:
        """What it does with a text."""
        if self.writes_text:
            return "encoder-decoder"
        return "decoder" if self.decoder else "encoder"

    @property
    def writes_text(self) -> bool:
        """Whether an encoder reads a text and a decoder writes another."""
        return len(self.stacks) > 1

    @property
    def read(self) -> tuple[str, ...]:
        """All that the model reads: of a text, and of the tokens written so far."""
        return (*self.inputs, DECODER_INPUT) if self.writes_text else self.inputs

    def longest(self, config: PretrainedConfig) -> int | None:
        """Most tokens a model can read; `None` where nothing limits them."""
        most: int = getattr(config, "max_position_embeddings", None) or -1
        if most < 0:
            return None
        return most - config.pad_token_id - 1 if self.positions_after_padding else most

    def sizes(self, config: PretrainedConfig) -> Sizes:
        """Dense sizes, from the config alone."""
        stacks = {
            stack.name: {
                "layers": getattr(config, stack.layers_key),
                **{
                    sub.name: getattr(config, stack.heads_key if sub.is_attention else stack.ffn_key)
                    or 4 * config.hidden_size  # what a config that leaves the FFN's width open means
                    for sub in stack.sublayers
                },
            }
            for stack in self.stacks
        }
        heads = getattr(config, self.stacks[0].heads_key)
        tables = list({table.name: table for stack in self.stacks for table in stack.sublayers}.values())
        learned = {
            table.name: getattr(config, stack.learned_key) * len(table.learned)
            for stack in self.stacks
            for table in stack.sublayers
            if stack.learned_key and table.learned
        }
        return Sizes(
            stacks,
            config.hidden_size,
            getattr(config, self.head_size_key) if self.head_size_key else config.hidden_size // heads,
            projections={table.name: len(table.inputs) + 1 for table in tables},
            positional={table.name: len(table.positional) for table in tables if table.positional},
            shared=tuple(stack.name for stack in self.stacks if stack.applied_by),
            learned=learned,
        )

    def stack(self, name: str) -> StackTable:
        """The stack of that name."""
        return next(stack for stack in self.stacks if stack.name == name)

    def layers(self, model: PreTrainedModel, stack: StackTable) -> nn.ModuleList:
        """The model's own list of layers; a shared one as often as it is applied."""
        layers = model.base_model.get_submodule(stack.path)
        assert isinstance(layers, nn.ModuleList)
        if stack.applied_by:
            return nn.ModuleList([layers[0]] * getattr(model.config, stack.layers_key))
        return layers

    def reader(self, model: PreTrainedModel) -> str | None:
        """Path of the linear map of the model's head that reads the hidden width: the first there is."""
        return next((p for p in self.readers if isinstance(module_at(model, p), nn.Linear)), None)


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The sub-module at a dotted path, or `None`."""
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module if isinstance(module, nn.Module) else None


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


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The table of a model's family.

    Raises:
        UserError: the family has no table, or the config is of a kind that the table does not fit.
    """
    name = config.model_type
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(
            f"model family '{name}' is not supported{suggest(name, ARCHITECTURES)} (supported: {known})"
        )
    family = ARCHITECTURES[name]
    if family.shares_layers and (config.num_hidden_groups, config.inner_group_num) != (1, 1):
        raise UserError(
            f"{name}: only models in which one layer stands for all are supported (num_hidden_groups and "
            "inner_group_num 1, as published)"
        )
    if family.gated and config.is_gated_act:
        family = replace(family, stacks=family.gated)
    heads = {getattr(config, stack.heads_key) for stack in family.stacks}
    if len(heads) > 1:
        raise UserError(
            f"{name}: only models with as many heads in the decoder as in the encoder are supported"
        )
    return family


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, its modules as its family's table names them (in place)."""
    prepare = architecture_of(model.config).prepare
    if prepare:
        prepare(model)
    return model


def structure_of(model: PreTrainedModel) -> Structure:
    """What the model physically has."""
    return structure_in(model.config)


def structure_in(config: PretrainedConfig) -> Structure:
    """What a model of this config has: read from `config.compressor` if it was sliced, else dense.

    Raises:
        UserError: what is written there is no structure.
    """
    try:
        if stored := (getattr(config, "compressor", None) or {}).get("structure"):
            return Structure.from_json(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"config.json does not describe a model: its `compressor` entry is damaged ({error})"
        ) from error
    return Structure.dense(architecture_of(config).sizes(config))

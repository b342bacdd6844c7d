"""One small table per model family: where its layers are and what each is made of.

A new family is one `Architecture` below plus the contract tests. Only module paths and attribute names of
transformers are used, none of its pruning helpers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from compressor.errors import UserError
from compressor.models.structure import Sizes, Structure
from compressor.schema import suggest


@dataclass(frozen=True)
class SubLayerTable:
    """Where one sub-layer is, as paths inside its layer.

    A unit (head or neuron) owns rows of every projection in `inputs` and columns of `output`. `core` is the
    module to leave out when no unit is left; it computes what `output` projects, or contains `output`.
    `counts` names attributes of `core` that hold the number of units and their total width.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    norm: str
    core: str
    activation: str | None = None
    counts: tuple[str, str] | None = None

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


@dataclass(frozen=True)
class Architecture:
    """A family. `embeddings` write the hidden width in the order applied, `readers` are the heads' first linear maps.

    Paths of stacks and embeddings are inside the base model; of readers, inside the whole model. A path that
    a model lacks is skipped (token classification has no pooler).
    """

    model_type: str
    stacks: tuple[StackTable, ...]
    embeddings: tuple[str, ...]
    embeddings_norm: str
    readers: tuple[str, ...]
    embeddings_projection: str | None = None
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    activation_key: str = "hidden_act"
    positions_after_padding: bool = False
    """Whether position numbers begin after the padding token's, which takes so many from the longest text."""

    def longest(self, config: PretrainedConfig) -> int | None:
        """Most tokens a model can read; `None` where nothing limits them."""
        most: int | None = getattr(config, "max_position_embeddings", None)
        return most - config.pad_token_id - 1 if most and self.positions_after_padding else most

    def sizes(self, config: PretrainedConfig) -> Sizes:
        """Dense sizes, from the config alone."""
        stacks = {
            stack.name: {
                "layers": getattr(config, stack.layers_key),
                **{
                    sub.name: getattr(config, stack.heads_key if sub.is_attention else stack.ffn_key)
                    for sub in stack.sublayers
                },
            }
            for stack in self.stacks
        }
        heads = getattr(config, self.stacks[0].heads_key)
        projections = {s.name: len(s.inputs) + 1 for stack in self.stacks for s in stack.sublayers}
        return Sizes(stacks, config.hidden_size, config.hidden_size // heads, projections)

    def stack(self, name: str) -> StackTable:
        """The stack of that name."""
        return next(stack for stack in self.stacks if stack.name == name)

    def layers(self, model: PreTrainedModel, stack: StackTable) -> nn.ModuleList:
        """The model's own list of layers."""
        layers = model.base_model.get_submodule(stack.path)
        assert isinstance(layers, nn.ModuleList)
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

WORD_POSITION = ("embeddings.word_embeddings", "embeddings.position_embeddings")
WORD_POSITION_TYPE = (*WORD_POSITION, "embeddings.token_type_embeddings")

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
        Architecture(
            "roberta",
            stacks=(StackTable("encoder", "encoder.layer", BERT_LAYER),),
            embeddings=WORD_POSITION_TYPE,
            embeddings_norm="embeddings.LayerNorm",
            readers=("classifier.dense", "classifier", "qa_outputs"),
            positions_after_padding=True,
        ),
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
    )
}


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The table of a model's family.

    Raises:
        UserError: the family has no table.
    """
    name = config.model_type
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(
            f"model family '{name}' is not supported{suggest(name, ARCHITECTURES)} (supported: {known})"
        )
    return ARCHITECTURES[name]


def structure_of(model: PreTrainedModel) -> Structure:
    """What the model physically has."""
    return structure_in(model.config)


def structure_in(config: PretrainedConfig) -> Structure:
    """What a model of this config has: read from `config.compressor` if it was sliced, else dense."""
    stored = (getattr(config, "compressor", None) or {}).get("structure")
    if stored:
        return Structure.from_json(stored)
    return Structure.dense(architecture_of(config).sizes(config))

"""What a table of a model family says: where its layers are and what each is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from compressor.models.structure import Sizes, Structure

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

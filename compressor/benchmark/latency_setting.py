"""What a latency table belongs to: an encoder's shape, the cell, the precision, the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compressor.benchmark.encoder_graph import ACTIVATIONS, OPSET, PATTERNS, EncoderShape, Widths
from compressor.benchmark.machine import fingerprint, machine_key
from compressor.cell import Cell
from compressor.errors import UserError
from compressor.files import digest
from compressor.models.structure import Structure

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SCHEMA = 1
"""Raised when tables of older code mean something else."""


@dataclass(frozen=True)
class Setting:
    """One table's conditions. `conversion` is how the precision was made of fp32, as plain data."""

    shape: EncoderShape
    cell: Cell
    precision: str = "fp32"
    conversion: Mapping[str, Any] | None = None

    @cached_property
    def machine(self) -> dict[str, Any]:
        """This machine: the key under which timings compare, and what people call it."""
        found = fingerprint()
        onnxruntime = found["versions"].get("onnxruntime")
        return {"key": machine_key(found), "cpu": found["cpu"], "onnxruntime": onnxruntime}

    def to_json(self) -> dict[str, Any]:
        """Everything that a table depends on."""
        return {"schema": SCHEMA, "opset": OPSET, "machine": self.machine, **asdict(self)}

    @cached_property
    def key(self) -> str:
        """Hash of `to_json`."""
        return digest(self.to_json())

    @property
    def file_name(self) -> str:
        """Where the table is stored: legible, and no other setting's."""
        shape = self.shape
        size = f"{shape.family}-{shape.layers}x{shape.hidden}x{shape.heads}x{shape.ffn}"
        return f"{size}-{self.precision}-{self.cell.slug}-{self.key[:12]}.json"

    def check(self) -> None:
        """Raise UserError for what no table can be made of."""
        length = self.cell.sequence_length
        if not isinstance(length, int):
            raise UserError("a latency table is of one sequence length, not of a data set's lengths")
        counted = PATTERNS[self.shape.family].positions_counted
        longest = self.shape.positions - (self.shape.padding + 1 if counted else 0)
        if length > longest:
            raise UserError(f"a latency table for {length} tokens: this model reads at most {longest}")


def shape_of(config: PretrainedConfig) -> EncoderShape:
    """The shape of the dense encoder that a model with this config is or was cut from, at the hidden width it has.

    Raises:
        UserError: a family, activation or norm whose graphs are not known here.
    """
    from compressor.models.architecture import architecture_of

    architecture = architecture_of(config)
    if architecture.model_type not in PATTERNS:
        known = ", ".join(sorted(PATTERNS))
        raise UserError(
            f"there are no latency tables of the family '{architecture.model_type}' (of: {known})"
        )
    ours = getattr(config, "compressor", None) or {}
    activation = getattr(config, architecture.activation_key)
    if activation not in ACTIVATIONS or ours.get("norm"):
        what = f"the norm '{ours['norm']}'" if ours.get("norm") else f"the activation '{activation}'"
        raise UserError(
            f"there are no latency tables of models with {what}; gelu, relu and LayerNorm have them"
        )
    stored = ours.get("structure")
    structure = Structure.from_json(stored) if stored else Structure.dense(architecture.sizes(config))
    sizes = structure.sizes
    (counts,) = sizes.stacks.values()
    on_tokens = any(kind.endswith(ON_TOKENS) for kind in config.architectures or [])
    dense = EncoderShape(
        family=architecture.model_type,
        layers=counts["layers"],
        hidden=sizes.hidden,
        heads=counts["attention"],
        head_size=sizes.head_size,
        ffn=counts["ffn"],
        embedding=getattr(config, "embedding_size", sizes.hidden),
        positions=config.max_position_embeddings,
        classifier=None if on_tokens else sizes.hidden,
        padding=config.pad_token_id or 0,
        activation=activation,
        epsilon=getattr(config, "layer_norm_eps", 1e-12),
    )
    return dense.at_hidden(structure.hidden_width)


ON_TOKENS = ("ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
"""Classes whose heads read every token."""


def widths_of(structure: Structure) -> list[Widths]:
    """The widths of every kept layer, in order."""
    return [
        (_width(layer.sublayers["attention"]), _width(layer.sublayers["ffn"])) for layer in structure.layers
    ]


def _width(sub: Any) -> int | None:
    return None if sub.absent else len(sub.kept)

"""Which class opens each family of language models."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config, PretrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from compressor.errors import UserError
from compressor.models.all_attention import (
    AllAttentionConfig,
    AllAttentionForCausalLM,
    TransformerXLConfig,
    TransformerXLForCausalLM,
)
from compressor.models.gpt2 import GPT2LMHeadModel
from compressor.parts import Kind


class AutoModelForLanguageModeling(_BaseAutoModelClass):
    """Opens a model that reads a text from left to right and predicts every next token.

    All take `input_ids` (batch, length), `labels` of the same shape (the NEXT tokens, -100 where none is asked
    for) and, of families with one, a `memory`; they give a `LanguageOutput`.
    """

    _model_mapping: dict[type[PretrainedConfig], type] = {
        GPT2Config: GPT2LMHeadModel,
        AllAttentionConfig: AllAttentionForCausalLM,
        TransformerXLConfig: TransformerXLForCausalLM,
    }


CLASSES: dict[str, Any] = {AutoModelForLanguageModeling.__name__: AutoModelForLanguageModeling} | {
    made.__name__: made for made in AutoModelForLanguageModeling._model_mapping.values()
}
"""By name; those that transformers has too compute the same there."""


def is_language_model(model: PreTrainedModel) -> bool:
    """Whether it is one that `AutoModelForLanguageModeling` opens."""
    return isinstance(model, tuple(AutoModelForLanguageModeling._model_mapping.values()))


def check_memory(config: PretrainedConfig, kind: Kind | None) -> None:
    """That a model of this config can hand that on from one piece of a text to the next.

    Raises:
        UserError: it cannot.
    """
    if kind and type(config) not in AutoModelForLanguageModeling._model_mapping:
        raise UserError(f"export: memory is for language models; {config.model_type} is none")
    if kind == "hidden" and not memory_length(config):
        raise UserError(
            f"export: {config.model_type} has no memory of hidden states; take cache, or leave it out"
        )
    if kind == "none" and memory_length(config):
        raise UserError(f"export: {config.model_type} was trained with a memory: take hidden or cache")


def memory_length(config: PretrainedConfig) -> int:
    """How many tokens back a model's memory reaches; 0 for a family that reads every segment on its own."""
    return getattr(config, "memory_length", 0) or 0

"""Decoders with memory of our own, known to transformers' Auto classes once this is imported."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from compressor.models.all_attention.config import AllAttentionConfig, TransformerXLConfig
from compressor.models.all_attention.model import (
    AllAttentionForCausalLM,
    AllAttentionModel,
    TransformerXLForCausalLM,
    TransformerXLModel,
)

for config, model, language_model in (
    (AllAttentionConfig, AllAttentionModel, AllAttentionForCausalLM),
    (TransformerXLConfig, TransformerXLModel, TransformerXLForCausalLM),
):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForCausalLM.register(config, language_model)

__all__ = ["AllAttentionConfig", "AllAttentionForCausalLM", "TransformerXLConfig", "TransformerXLForCausalLM"]

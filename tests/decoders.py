"""Tiny decoders with memory, and streams for them to read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.models import all_attention

HIDDEN, HEADS, LAYERS, MEMORY, VOCABULARY = 32, 4, 3, 5, 50
FAMILIES = {
    all_attention.AllAttentionConfig.model_type: {"persistent_vectors": 6},
    all_attention.TransformerXLConfig.model_type: {"intermediate_size": 24},
}
ADAPTIVE = {"cutoffs": [10, 25], "divisor": 2}


def tiny_config(family: str = "all-attention", **extra: Any) -> Any:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "memory_length": MEMORY,
    }
    return AutoConfig.for_model(family, **(sizes | FAMILIES[family] | extra))


def tiny_decoder(family: str = "all-attention", seed: int = 0, **extra: Any) -> Any:
    """A random model in eval mode; nothing hides in zeros."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **extra)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def tokens(batch: int = 2, length: int = 17, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, VOCABULARY, (batch, length))


@torch.no_grad()
def read(model: Any, ids: Tensor, cuts: Sequence[int] = (), memory: Any = None) -> tuple[Tensor, Any]:
    """Logits of a whole stream that is read in pieces which begin at `cuts`, and the memory after it."""
    found = []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        output = model(ids[:, start:end], memory)
        memory = output.memory
        found.append(output.logits)
    return torch.cat(found, dim=1), memory

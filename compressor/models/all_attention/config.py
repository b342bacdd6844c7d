"""Configs of the two families of decoders with memory, in transformers' conventions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from transformers import PretrainedConfig

COUNTS = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "memory_length": 1,
    "divisor": 1,
    "persistent_vectors": 0,
    "intermediate_size": 1,
}
"""The least that each may be."""
SHARES = ("word_dropout", "embedding_dropout", "attention_dropout", "hidden_dropout", "output_dropout")


class DecoderConfig(PretrainedConfig):
    """What both families share. Source of the defaults: the released settings of Shim et al. 2021 (WikiText-103).

    A token sees itself and the `memory_length` tokens before it, of its own segment or of the memory. `cutoffs` are
    the first ids of the clusters of rarer words, each of which gets `divisor` times narrower embeddings than the
    one before (ids are sorted by frequency); without them all are as wide as `hidden_size`. The table of relative
    positions has `distances` rows, of which `memory_length` + 1 are read. What stands before a stream is
    `initial_memory`: with `empty` nothing, with `zeros` as many states of zeros as are remembered, which are attended
    (as released). `initial_weights` are `released` or, for trainings that are not as long, `spread`: attention begins
    as wide as all else, persistent keys with a standard deviation of 1, values of 1 / sqrt(their number).
    """

    def __init__(
        self,
        vocab_size: int = 267735,
        hidden_size: int = 512,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 8,
        memory_length: int = 192,
        distances: int | None = None,
        cutoffs: Sequence[int] = (),
        divisor: int = 4,
        initial_memory: Literal["empty", "zeros"] = "empty",
        initial_weights: Literal["released", "spread"] = "released",
        word_dropout: float = 0.1,
        embedding_dropout: float = 0.1,
        attention_dropout: float = 0.2,
        hidden_dropout: float = 0.1,
        output_dropout: float = 0.19,
        layer_norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.memory_length = memory_length
        if isinstance(cutoffs, str) or not isinstance(cutoffs, Sequence):
            raise ValueError(f"cutoffs should be a list, not {cutoffs!r}; [] for none")
        self.cutoffs = list(cutoffs)
        self.divisor = divisor
        self.initial_memory = initial_memory
        self.initial_weights = initial_weights
        self.word_dropout = word_dropout
        self.embedding_dropout = embedding_dropout
        self.attention_dropout = attention_dropout
        self.hidden_dropout = hidden_dropout
        self.output_dropout = output_dropout
        self.layer_norm_eps = layer_norm_eps
        self._check_numbers()
        self.distances = memory_length + 1 if distances is None else distances
        self._check_sizes()
        # Embeddings and softmax are one set of tensors by construction: nothing is left for transformers to tie.
        super().__init__(**{"tie_word_embeddings": False, **kwargs})

    def _check_numbers(self) -> None:
        for name, least in COUNTS.items():
            value = getattr(self, name, least)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} should be a whole number of at least {least}, not {value!r}")
        for name in SHARES:
            if not (isinstance(value := getattr(self, name), int | float) and 0 <= value < 1):
                raise ValueError(f"{name} is a share, at least 0 and below 1, not {value!r}")
        if not all(isinstance(cutoff, int) for cutoff in self.cutoffs):
            raise ValueError(f"cutoffs should be whole numbers, not {self.cutoffs}")

    def _check_sizes(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.distances <= self.memory_length:
            raise ValueError(f"distances should be above memory_length {self.memory_length}")
        if self.initial_memory not in ("empty", "zeros"):
            raise ValueError("initial_memory should be empty or zeros")
        if self.initial_weights not in ("released", "spread"):
            raise ValueError("initial_weights should be released or spread")
        bounds = [0, *self.cutoffs, self.vocab_size]
        if bounds != sorted(set(bounds)):
            raise ValueError(f"cutoffs should rise between 0 and vocab_size {self.vocab_size}")
        if self.hidden_size < self.divisor ** len(self.cutoffs):
            raise ValueError(f"hidden_size {self.hidden_size} cannot be divided so often: give fewer cutoffs")

    @property
    def clusters(self) -> list[tuple[int, int, int]]:
        """First and last (exclusive) id of every cluster, and the width of its embeddings."""
        bounds = [0, *self.cutoffs, self.vocab_size]
        return [
            (low, high, self.hidden_size // self.divisor**rank)
            for rank, (low, high) in enumerate(pairwise(bounds))
        ]


class AllAttentionConfig(DecoderConfig):
    """`persistent_vectors` are the learned keys and values that every head attends to, beside the tokens."""

    model_type = "all-attention"

    def __init__(self, persistent_vectors: int = 2048, **kwargs: Any) -> None:
        self.persistent_vectors = persistent_vectors
        super().__init__(**kwargs)


class TransformerXLConfig(DecoderConfig):
    """The baseline: no persistent vectors, an FFN of width `intermediate_size` in every layer instead."""

    model_type = "transformer-xl"
    persistent_vectors = 0

    def __init__(self, intermediate_size: int = 2048, **kwargs: Any) -> None:
        if kwargs.pop("persistent_vectors", 0):
            raise ValueError("transformer-xl has no persistent_vectors but an FFN: give intermediate_size")
        self.intermediate_size = intermediate_size
        super().__init__(**kwargs)

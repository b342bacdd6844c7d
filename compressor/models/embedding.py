"""Encoders that give one vector a text: pooling and normalisation are part of the model, and so of its graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PretrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import ModelOutput, cached_file

from compressor.errors import UserError
from compressor.files import read_json
from compressor.models.architecture import ARCHITECTURES, Architecture, architecture_of
from compressor.models.source import HubModel, ModelSource, describe, folder_of

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
"""What sentence-transformers calls our ways to pool, in its files."""
EMBEDDING = "sentence_embedding"
"""Name of the output, as serving stacks expect it, and of the config's key that says how it is made:
`{"pooling": "mean" | "cls", "normalize": bool}`."""


@dataclass
class SentenceOutput(ModelOutput):
    """`sentence_embedding` (batch, hidden), and a `loss` where there were labels."""

    loss: Tensor | None = None
    sentence_embedding: Tensor | None = None


class Embedder:
    """What every family's `...ForSentenceEmbedding` adds to its encoder; it has no weights of its own.

    `mean` averages the last states of all tokens but padding, `cls` takes that of `[CLS]` (Reimers and Gurevych:
    "Sentence-BERT", 2019, section 3). `normalize` gives vectors of length 1.
    """

    config: PretrainedConfig
    base_model: Any
    base_model_prefix: str
    encoder_class: type

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        encoder: Any = self.encoder_class(config)
        if hasattr(encoder, "pooler"):
            encoder.pooler = None
        setattr(self, self.base_model_prefix, encoder)
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SentenceOutput:
        """Ids and mask (batch, length). `labels` (batch, hidden) are vectors that the embeddings should be."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **types)[0]
        keys = getattr(self.config, EMBEDDING)
        cls = architecture_of(self.config).cls
        vectors = states[:, cls] if keys["pooling"] == "cls" else mean_of_tokens(states, attention_mask)
        vectors = self._in_place(vectors)
        if keys["normalize"]:
            vectors = functional.normalize(vectors, dim=-1)
        loss = None if labels is None else embedding_loss(vectors, labels)
        return SentenceOutput(loss=loss, sentence_embedding=vectors)

    def _in_place(self, vectors: Tensor) -> Tensor:
        """(batch, width left) -> (batch, hidden): zeros where slicing took dimensions out.

        So a narrower model's vectors are still of the kind that an index of the dense model's holds.
        """
        structure = (getattr(self.config, "compressor", None) or {}).get("structure")
        if not structure or structure["hidden"] is None:
            return vectors
        kept = sorted(structure["hidden"]["kept"])
        place = torch.full((structure["sizes"]["hidden"],), len(kept), device=vectors.device)
        place[kept] = torch.arange(len(kept), device=vectors.device)
        return functional.pad(vectors, (0, 1))[:, place]


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of `states` (batch, length, hidden) where `mask` (batch, length) is 1."""
    real = mask.unsqueeze(-1).to(states.dtype)
    return (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1e-9)


def embedding_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean over texts of the squared distance to a target, both (batch, hidden), in units of its length squared.

    The mean squared error of Reimers and Gurevych ("Making Monolingual Sentence Embeddings Multilingual using
    Knowledge Distillation", 2020, equation 1), in units that do not change with width or length: for vectors of
    length 1 it is 2 - 2 cos, between 0 and 4, of the size of a classifier's loss.
    """
    return ((ours - theirs).square().sum(dim=-1) / theirs.square().sum(dim=-1).clamp(min=1e-12)).mean()


def stated(source: ModelSource) -> dict[str, Any] | None:
    """How a sentence-transformers model makes its vectors, by its own files; `None` where it has none at hand.

    Raises:
        UserError: by more than pooling by mean or first token and normalisation.
    """
    modules = _file(source, "modules.json")
    if modules is None:
        return None
    kinds = {row["type"].rpartition(".")[2]: row["path"] for row in modules}
    pooling = _file(source, f"{kinds.get('Pooling')}/config.json") or {}
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    if set(kinds) - {"Transformer", "Pooling", "Normalize"} or len(modes) > 1 or set(modes) - set(POOLINGS):
        made = ", ".join([*kinds, *modes])
        raise UserError(
            f"'{describe(source)}' makes its embeddings by {made}; only pooling by mean or cls and normalisation "
            "can be kept here"
        )
    return {"pooling": POOLINGS[modes[0]], "normalize": "Normalize" in kinds} if modes else None


def _file(source: ModelSource, name: str) -> Any:
    """A JSON file that comes with a model, or `None`."""
    folder = folder_of(source)
    if folder is not None:
        return read_json(folder / name) if (folder / name).is_file() else None
    model, revision = (source.id, source.revision) if isinstance(source, HubModel) else (source, None)
    try:
        return read_json(Path(cached_file(model, name, revision=revision)))
    except OSError:
        return None


def _is_encoder(architecture: Architecture) -> bool:
    return [stack.name for stack in architecture.stacks] == ["encoder"]


def _embedder(config_class: type) -> type:
    """`BertForSentenceEmbedding` and its like: a pretrained checkpoint of the family loads into it as it is."""
    encoder = MODEL_MAPPING[config_class]
    name = f"{encoder.__name__.removesuffix('Model')}ForSentenceEmbedding"
    return type(name, (Embedder, encoder.__base__), {"encoder_class": encoder, "__module__": __name__})


class AutoModelForSentenceEmbedding(_BaseAutoModelClass):
    """Opens an encoder of any family here with its vectors pooled as the config says."""

    _model_mapping = {
        config: _embedder(config)
        for config in (CONFIG_MAPPING[name] for name, table in ARCHITECTURES.items() if _is_encoder(table))
    }


CLASSES: dict[str, Any] = {AutoModelForSentenceEmbedding.__name__: AutoModelForSentenceEmbedding} | {
    made.__name__: made for made in AutoModelForSentenceEmbedding._model_mapping.values()
}
"""By name: what transformers does not have."""

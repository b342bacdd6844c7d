"""The `model:` key of a recipe: a hub id, a folder, or a config from which a model is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from compressor.files import sha256
from compressor.schema import IdOrPath, Keys, expand, is_path, json_of


class HubModel(Keys):
    """A model on the hub at a revision (branch, tag or commit)."""

    id: IdOrPath
    revision: str | None = None

    @model_validator(mode="after")
    def _revision_needs_hub(self) -> HubModel:
        if self.revision and is_path(self.id):
            raise ValueError("`revision` is for hub ids; a folder has none")
        return self


TrainedKind = Literal["wordpiece", "word", "bpe", "character"]
VOCABULARY = {"wordpiece": 8000, "bpe": 8000, "word": 300_000, "character": 1000}
"""How many tokens a vocabulary has at most, where a recipe does not say."""


class TrainTokenizer(Keys):
    """A tokenizer trained on the task's own training text: word pieces or, for language-modeling, one of the others.

    By default word pieces are in lower case, the others as the text is.
    """

    train: TrainedKind = "wordpiece"
    vocab_size: int = Field(default=8000, ge=2, le=1_000_000)
    lowercase: bool = True

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, keys: Any) -> Any:
        kind = keys.get("train", "wordpiece") if isinstance(keys, dict) else None
        if not isinstance(kind, str) or kind not in VOCABULARY:
            return keys
        return {"vocab_size": VOCABULARY[kind], "lowercase": kind == "wordpiece", **keys}

    @model_validator(mode="after")
    def _large_enough(self) -> TrainTokenizer:
        least = {"wordpiece": 200, "bpe": 257}.get(self.train, 2)
        if self.vocab_size < least:
            raise ValueError(f"vocab_size: {self.train} needs at least {least} tokens")
        return self


class NewModel(Keys):
    """A model from scratch: a transformers config (with `model_type`) and a tokenizer made or taken."""

    config: dict[str, Any]
    tokenizer: TrainTokenizer | IdOrPath = TrainTokenizer()

    @model_validator(mode="after")
    def _names_its_family(self) -> NewModel:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError(
                "`config` needs `model_type`, such as: {model_type: bert, hidden_size: 256, ...}"
            )
        try:
            json.dumps(self.config, allow_nan=False)
        except ValueError:
            raise ValueError("`config` cannot hold .nan or .inf") from None
        return self


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "new model" if "config" in value else "hub model"
    if isinstance(value, NewModel):
        return "new model"
    return "hub model" if isinstance(value, HubModel) else "hub id"


ModelSource = Annotated[
    Annotated[IdOrPath, Tag("hub id")]
    | Annotated[HubModel, Tag("hub model")]
    | Annotated[NewModel, Tag("new model")],
    Discriminator(_kind),
]


def folder_of(source: ModelSource) -> Path | None:
    """The local folder a source names, `~` expanded, or `None`."""
    name = source.id if isinstance(source, HubModel) else source
    return expand(name) if isinstance(name, str) and is_path(name) else None


def describe(source: ModelSource) -> str:
    """A short name for tables and cards."""
    if isinstance(source, NewModel):
        return f"{source.config['model_type']} from scratch"
    return source.id if isinstance(source, HubModel) else source


def model_content(source: ModelSource) -> Any:
    """What identifies a model's content: hashes of a folder's files, a hub id with its commit, or the config.

    Of a model made from scratch also the content of the tokenizer that it takes, where it takes one.
    """
    if isinstance(source, NewModel):
        taken = source.tokenizer
        return (
            json_of(source) if isinstance(taken, TrainTokenizer) else [json_of(source), model_content(taken)]
        )
    folder = folder_of(source)
    if folder is not None:
        return {p.name: sha256(p) for p in sorted(folder.glob("*")) if p.is_file()}
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    name, revision = (source.id, source.revision) if isinstance(source, HubModel) else (source, None)
    try:
        config = cached_file(name, "config.json", revision=revision, local_files_only=True)
        return [name, extract_commit_hash(config, None)]
    except OSError:
        return [name, revision]


def sized(source: ModelSource) -> ModelSource:
    """The model to be, with the vocabulary that its tokenizer will be trained to at most."""
    if isinstance(source, NewModel) and isinstance(source.tokenizer, TrainTokenizer):
        return source.model_copy(
            update={"config": source.config | {"vocab_size": source.tokenizer.vocab_size}}
        )
    return source

"""Heads of checkpoints: their classes, whether one is there, and whether it is the task's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import PretrainedConfig

from compressor.errors import UserError
from compressor.models.embedding import CLASSES, EMBEDDING
from compressor.models.language import CLASSES as LANGUAGE


def class_named(name: str) -> Any:
    """A class of ours, or of transformers where we have none; `None` where there is neither."""
    return LANGUAGE.get(name) or getattr(transformers, name, None) or CLASSES.get(name)


def has_head(config: PretrainedConfig, auto_class: str) -> bool:
    """Whether a checkpoint with this config was saved with a head of that kind."""
    expected = class_named(auto_class)._model_mapping.get(type(config), None)
    if auto_class in CLASSES and not getattr(config, "compressor", None):
        return expected is not None  # pooling has no weights: every encoder brings all that it needs
    return getattr(expected, "__name__", "") in (config.architectures or [])


def head_fits(config: PretrainedConfig, auto_class: str, model_config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint has a head of this kind, for these labels.

    Raises:
        UserError: the same labels in another order, embeddings pooled in another way, or a pruned model (which gets
            no new head) of another task.
    """
    same_embeddings(getattr(config, EMBEDDING, None), model_config)
    fits = has_head(config, auto_class) and _labels_fit(config, model_config)
    if not fits and getattr(config, "compressor", None):
        raise UserError(
            f"this pruned model is a {(config.architectures or ['model'])[0]} with the labels "
            f"{list(config.id2label.values())}, which is not the recipe's task; start from a dense model"
        )
    return fits


def same_embeddings(have: Mapping[str, Any] | None, model_config: Mapping[str, Any]) -> None:
    """Raise UserError where a checkpoint is known to pool in another way than the recipe."""
    wanted = model_config.get(EMBEDDING)
    if have and wanted and have != wanted:
        raise UserError(
            f"the checkpoint's embeddings are made with {_said(have)}, the recipe says {_said(wanted)}: set "
            "task.pooling and task.normalize as the checkpoint has them"
        )


def _said(keys: Mapping[str, Any]) -> str:
    return f"pooling {keys['pooling']}, normalize {str(keys['normalize']).lower()}"


def _labels_fit(config: PretrainedConfig, model_config: Mapping[str, Any]) -> bool:
    wanted = model_config.get("id2label")
    have = {int(k): v for k, v in config.id2label.items()} if config.id2label else None
    if wanted is None or have is None or all(str(v).startswith("LABEL_") for v in have.values()):
        return wanted is None or have is None or len(have) == len(wanted)
    if have != dict(wanted) and sorted(have.values()) == sorted(wanted.values()):
        raise UserError(
            f"the checkpoint's labels are in another order ({list(have.values())}) than the task's "
            f"({list(wanted.values())}); give task.labels in the checkpoint's order"
        )
    return have == dict(wanted)

"""Distillation from a teacher's stored logits (Hinton et al. 2015; as used by Lagunas et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of
from compressor.models.embedding import EMBEDDING, embedding_loss
from compressor.models.outputs import Collate, Features, Outputs, has_tokens

PREFIX = "teacher_"
IGNORED = -100
"""The label of padding behind a text that is to be written."""
FAR = -1e4
"""Logit of what does not exist (padding): no probability, and no NaN in the divergence."""


class WithTeacher:
    """Features with the teacher's outputs beside each."""

    def __init__(self, features: Features, outputs: Outputs | None) -> None:
        self.features = features
        self.outputs = outputs or {}

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = dict(self.features[index])
        return row | {PREFIX + name: values[index] for name, values in self.outputs.items()}


def collate_with_teacher(collate: Collate) -> Collate:
    """A collator that pads the teacher's outputs as the task's own collator pads its features."""

    def run(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        names = [name for name in rows[0] if name.startswith(PREFIX)]
        teacher = {name: [torch.from_numpy(row.pop(name)) for row in rows] for name in names}
        batch = collate(rows)
        if not teacher:
            return batch
        real = batch["attention_mask"].bool()
        for name, values in teacher.items():
            per_token = has_tokens(name.removeprefix(PREFIX), values[0])
            batch[name] = _at_tokens(values, real) if per_token else torch.stack(values)
        return batch

    return run


def _at_tokens(values: list[Tensor], real: Tensor) -> Tensor:
    """Each row's values (tokens, ...) where its real tokens stand, `FAR` at the padding: (rows, length, ...)."""
    placed = torch.full((*real.shape, *values[0].shape[1:]), FAR)
    placed[real] = torch.cat(values)
    return placed


@torch.no_grad()
def teacher_forced(teacher: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of a teacher that writes, (batch, tokens, words), after the same tokens that the student reads.

    Both make what their decoders read from the labels: without them a decoder would read the text itself.
    """
    teacher.eval().to(inputs["input_ids"].device)
    names = (*architecture_of(teacher.config).inputs, "labels")
    made = teacher(**{name: inputs[name].clone() for name in names}, use_cache=False)
    return {"logits": made.logits}


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened logits times temperature^2, mean over rows. Both (rows, classes)."""
    return (
        functional.kl_div(
            functional.log_softmax(student / temperature, dim=-1),
            functional.softmax(teacher / temperature, dim=-1),
            reduction="batchmean",
        )
        * temperature**2
    )


def distillation_loss(
    outputs: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask: Tensor, temperature: float
) -> Tensor:
    """Mean over the model's logit heads of the divergence from the teacher's.

    `mask` (batch, length) marks real tokens: padding takes no part, as a position that could be chosen (span
    logits, (batch, length)) or as a row (token logits, (batch, length, classes), whose mean is over tokens). With a
    single logit (regression) it is the mean squared difference, of embeddings `embedding_loss`.
    """
    losses = []
    for name, theirs in teacher.items():
        ours = outputs[name]
        if name == EMBEDDING:
            losses.append(embedding_loss(ours, theirs))
            continue
        if ours.shape[-1] == 1 and ours.dim() == 2 and name == "logits":
            losses.append(functional.mse_loss(ours, theirs))
            continue
        if name != "logits":
            ours = ours.masked_fill(~mask, FAR)
        elif ours.dim() == 3:
            ours, theirs = ours[mask], theirs[mask]
        losses.append(divergence(ours, theirs, temperature))
    return torch.stack(losses).mean()

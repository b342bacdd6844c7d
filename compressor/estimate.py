"""What a run will need, roughly: parameters, disk, training time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.models.architecture import architecture_of
from compressor.models.source import TrainTokenizer
from compressor.models.structure import Structure
from compressor.stages.chain import Node
from compressor.tasks.schema import STREAMED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from compressor.project import Project

FLOAT_BYTES = 4
TRAINING_COPIES = 4
"""Weights, gradients and Adam's two moments."""
TRAINING_SPEED = 4e10
"""Multiply-adds a core and second in fp32 training, measured on one AVX512 server core; only an estimate."""
CHARACTERS = {"character": 1.0, "wordpiece": 4.0, "bpe": 4.0, "word": 5.5}
"""Of a token, by what its vocabulary is made of."""
BF16_GAIN = 2.0
"""How much faster training in bf16 is where the CPU multiplies it; measured there too, with short texts."""


def parameters_of(config: PretrainedConfig) -> int:
    """Parameters of the dense model but its head's, without any memory for them."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        count: int = AutoModel.from_config(config).num_parameters()
    return count


def disk_needed(project: Project, config: PretrainedConfig) -> int:
    """Bytes of all stages' outputs (artifacts share their files) and one training checkpoint."""
    model = parameters_of(config) * FLOAT_BYTES
    return model * (len(project.chain.nodes) + TRAINING_COPIES)


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def features_of(project: Project) -> tuple[float, int]:
    """How many features the training split has and how long they are, roughly: texts fill half of max_length.

    A text that is read as one stream is cut into full segments.
    """
    length, train = project.recipe.task.max_length, project.data.task.examples.train
    if project.recipe.task.type not in STREAMED:
        return len(train), max(8, length // 2)
    tokenizer = getattr(project.recipe.model, "tokenizer", None)
    kind = tokenizer.train if isinstance(tokenizer, TrainTokenizer) else "bpe"
    return train["text"].str.len().sum() / CHARACTERS[kind] / length, length


def training_seconds(
    node: Node, config: PretrainedConfig, features: tuple[float, int], cores: int, bf16: bool
) -> float:
    """Rough time of a training stage's both passes on `cores` CPU cores, which have `bf16`."""
    epochs = node.stage.effort(config)
    if not epochs:
        return 0.0
    dense = Structure.dense(architecture_of(config).sizes(config))
    count, length = features
    training = node.stage.training
    gain = BF16_GAIN if bf16 and training and training.precision == "bf16" else 1.0
    return 3 * epochs * count * dense.flops(1, length) / (TRAINING_SPEED * cores * gain)

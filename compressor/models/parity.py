"""Random inputs for a model, and the check that two models compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from compressor.errors import GateError
from compressor.models.architecture import DECODER_INPUT, architecture_of
from compressor.models.outputs import MEMORY, has_tokens

SHAPES = ((1, 1), (1, 7), (2, 16), (3, 33), (8, 24), (1, 64))
TOLERANCE = 1e-4


def varied_inputs(config: PretrainedConfig, seed: int = 0) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Batches of several sizes and lengths; where the family reads a mask, with padding on its side of rows."""
    random = np.random.default_rng(seed)
    architecture = architecture_of(config)
    pad, longest = config.pad_token_id or 0, architecture.longest(config)
    for batch, length in SHAPES:
        length = min(length, longest or length)
        ids = random.integers(min(5, config.vocab_size - 1), config.vocab_size, (batch, length))
        lengths = random.integers(1, length + 1, batch)
        lengths[0 if "attention_mask" in architecture.inputs else slice(None)] = length
        mask = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int64)
        if architecture.padding_side == "left":
            mask = mask[:, ::-1]
        types = (np.arange(length)[None, :] >= length // 2) * mask
        if getattr(config, "type_vocab_size", 2) < 2:
            types = types * 0
        every = {"input_ids": np.where(mask == 1, ids, pad), "attention_mask": mask, "token_type_ids": types}
        every[DECODER_INPUT] = random.integers(0, config.vocab_size, (batch, 1 + length // 2))
        yield {name: every[name].astype(np.int64) for name in architecture.read}


def real_positions(
    name: str, values: NDArray[np.float32], mask: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """Values of real tokens only, where the output of that name is per token and there is padding; else all."""
    if mask is None:
        return values
    per_token = has_tokens(name, values[0]) and values.shape[:2] == mask.shape
    return values[mask == 1] if per_token else values


@torch.inference_mode()
def torch_outputs(
    model: PreTrainedModel, inputs: dict[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.float32]]:
    """All logits of `model` for one batch, by name; not its memory, which a layer without heads has none in."""
    output = model(**{k: torch.from_numpy(v).to(model.device) for k, v in inputs.items()})
    return {
        k: v.float().cpu().numpy() for k, v in output.items() if isinstance(v, torch.Tensor) and k != MEMORY
    }


def largest_difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest absolute difference of two arrays; infinite where one holds no number.

    `max` alone passes over a NaN, and so would every comparison with a limit after it.
    """
    difference = np.abs(one - other)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def same_function(one: PreTrainedModel, other: PreTrainedModel) -> float:
    """The largest difference of any logit of a real token over varied inputs.

    Raises:
        GateError: it is above 1e-4.
    """
    one.eval()
    other.eval()
    worst = 0.0
    for inputs in varied_inputs(one.config):
        theirs = torch_outputs(other, inputs)
        for name, values in torch_outputs(one, inputs).items():
            mask = inputs.get("attention_mask")
            error = largest_difference(*(real_positions(name, one, mask) for one in (values, theirs[name])))
            worst = max(worst, error)
    if not worst <= TOLERANCE:
        raise GateError(
            f"the sliced model differs from the gated one by {worst:.2e} (allowed {TOLERANCE:.0e})"
        )
    return worst

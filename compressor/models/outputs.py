"""A model's logits over a whole data set, unpadded, whatever runs it; and their storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from compressor.files import appearing
from compressor.models.architecture import DECODER_INPUT, architecture_of
from compressor.models.embedding import EMBEDDING
from compressor.schema import Progress
from compressor.serve.generation import Settings, Steps, generate

Array = NDArray[Any]
Outputs = dict[str, list[Array]]
"""Per output name, one array a feature: (labels,) or (length, ...) without padding."""

Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
Features = Sequence[Mapping[str, Any]]
Runner = Callable[[Mapping[str, Any]], Mapping[str, Array]]

BATCH = 32
"""Features that are run together, where nothing says otherwise."""
MEMORY = "memory"
"""Name of what a model hands on from one segment of a text to the next."""
STREAMED = ("labels", MEMORY)
"""What a model that scores a text reads beside its tokens."""
SEQUENCES = "sequences"
"""Name of what a model writes: the numbers of its tokens."""
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", DECODER_INPUT)


def handed_on(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's outputs the next segment of a text gets: `memory`, or every layer's `memory.0`, ..."""
    return {name: value for name, value in outputs.items() if name.partition(".")[0] == MEMORY}


def has_tokens(name: str, one: Array | Tensor) -> bool:
    """Whether a feature's output has an axis of the tokens read.

    All have but the logits (labels,), the embedding of a text, and what is written.
    """
    return one.ndim == 2 or name not in ("logits", EMBEDDING, SEQUENCES)


def columns(features: Features, names: Iterable[str]) -> list[dict[str, Any]]:
    """Only these columns of `features` (a data set or a list), those that are there, as a list of rows."""
    wanted, rows = set(names), features
    if isinstance(features, Dataset):  # it decodes every column it has for every row it gives
        rows = features.select_columns([n for n in features.column_names if n in wanted])
    return [{k: v for k, v in row.items() if k in wanted} for row in rows]


def collect_outputs(
    run: Runner,
    features: Features,
    collate: Collate,
    names: Sequence[str],
    progress: Progress,
    batch_size: int = BATCH,
    title: str = "predict",
) -> Outputs:
    """What `run` makes of every feature, in the features' order; batches are of similar length."""
    rows = columns(features, MODEL_INPUTS)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    found: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        inputs = collate([dict(rows[i]) for i in indices])
        real = np.asarray(inputs["attention_mask"]) == 1  # padding may stand on either side
        outputs = run(inputs)
        for name in names:
            values = np.asarray(outputs[name], dtype=np.float32)
            for i, one, tokens in zip(indices, values, real, strict=True):
                found[name][i] = one[tokens] if has_tokens(name, one) else one.copy()
        progress(title, (start + len(indices)) / len(order))
    return found


def text_runner(steps: Steps, settings: Settings) -> Runner:
    """Writes with a model: `sequences` (batch, tokens)."""
    return lambda inputs: {SEQUENCES: generate(steps, inputs, settings)}


def torch_runner(model: PreTrainedModel, settings: Settings | None = None) -> Runner:
    """Runs a PyTorch model, put into eval mode, on the GPU if there is one; inputs it lacks are ignored.

    With `settings` it writes text.
    """
    if settings:
        from compressor.models.writer import TorchSteps

        return text_runner(TorchSteps(model), settings)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    names = (*architecture_of(model.config).read, *STREAMED)

    @torch.inference_mode()
    def run(inputs: Mapping[str, Tensor | Array]) -> Mapping[str, Array]:
        output = model(**{k: torch.as_tensor(v).to(model.device) for k, v in inputs.items() if k in names})
        return {k: v.float().cpu().numpy() for k, v in output.items() if isinstance(v, Tensor)}

    return run


def save_outputs(path: Path, outputs: Outputs) -> None:
    """Store outputs as one npz, atomically."""
    arrays: dict[str, Any] = {}
    for name, rows in outputs.items():
        arrays[f"{name}.values"] = np.concatenate([row.reshape(-1) for row in rows])
        arrays[f"{name}.lengths"] = np.array([len(row) for row in rows])
        arrays[f"{name}.tail"] = np.array(rows[0].shape[1:], dtype=int)
    with appearing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_outputs(path: Path) -> Outputs:
    """Inverse of `save_outputs`."""
    with np.load(path, allow_pickle=False) as stored:
        names = [key.removesuffix(".values") for key in stored.files if key.endswith(".values")]
        outputs: Outputs = {}
        for name in names:
            tail = tuple(stored[f"{name}.tail"])
            ends = np.cumsum(stored[f"{name}.lengths"])[:-1]
            rows = stored[f"{name}.values"].reshape(-1, *tail)
            outputs[name] = list(np.split(rows, ends))
    return outputs

"""Language models as graphs that read a text piece by piece and hand on what they remember.

Two graphs, each with one job: `scores.onnx` gives the loss of every token that is known (a text is scored without a
vocabulary's worth of numbers a token), `model.onnx` the logits of the next one (a text is continued). Both take and
give the same state, so that either can go on where the other stopped.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate, cycle, pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.files import write_json
from compressor.models.architecture import architecture_of
from compressor.models.language import memory_length
from compressor.models.outputs import MEMORY, handed_on
from compressor.models.parity import largest_difference
from compressor.onnx.graph import read_weights_directly
from compressor.onnx.runtime import Runnable, Stateful, open_graph
from compressor.parts import MODEL_FILE, STATE_FILE, Kind, Part, write_parts

SCORES_FILE = "scores.onnx"
SEGMENT, PROMPT, STEP = "segment", "prompt", "step"
PIECES = (5, 1, 3, 8, 2)
"""Lengths of pieces in which a text is read to compare with one pass."""
TEXTS = ((1, 1), (2, 23), (3, 9))
"""Batch sizes and lengths of such texts."""


def kind_of(model: PreTrainedModel, wanted: Kind | None) -> Kind:
    """What a model's graphs remember where nothing else is wanted: what it was trained to, if anything."""
    return wanted or ("hidden" if memory_length(model.config) else "none")


def export_language_model(
    model: PreTrainedModel, opset: int, folder: Path, memory: Kind | None = None
) -> None:
    """Write both graphs, what they remember and what is timed of them to `folder`.

    Batch size, length and the length of the memory are free.
    """
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    kind = kind_of(model, memory)
    state = initial_state(model, kind, batch=1)
    # A model whose segments stand alone is scored so; only its continuation remembers.
    scored = state if memory_length(model.config) else {}
    _export(_Scores(model, kind), scored, opset, folder / SCORES_FILE)
    _export(_Next(model, kind), state, opset, folder / MODEL_FILE)
    if state:
        limit = None if memory_length(model.config) else architecture_of(model.config).longest(model.config)
        write_json(folder / STATE_FILE, {name: _described(value, limit) for name, value in state.items()})
    write_parts(folder, _parts(model, kind))


def initial_state(model: PreTrainedModel, kind: Kind, batch: int) -> dict[str, Tensor]:
    """What a model remembers before a text, by name: all in one tensor, or one of each layer with heads."""
    if kind == "none":
        return {}
    if kind == "hidden":
        memory = model.initial_memory(batch)
        return {MEMORY: memory} if len(memory) else {}
    return {f"{MEMORY}.{layer}": memory for layer, memory in enumerate(model.initial_cache(batch))}


def _parts(model: PreTrainedModel, kind: Kind) -> list[Part]:
    """What is timed, after a full memory: a segment of the benchmark's length that is scored, the same that is only
    read, with the logits of what comes next (all layers, and hardly any softmax), and one token more.
    """
    full: dict[str, Any] = {"memory_length": memory_length(model.config) or "sequence"}
    remembers = full if kind != "none" else {}
    words = model.config.vocab_size  # of an adaptive softmax they tell which of its parts are computed
    return [
        Part(SEGMENT, SCORES_FILE, remembers if memory_length(model.config) else {}, vocabulary=words),
        Part(PROMPT, MODEL_FILE, remembers, vocabulary=words),
        Part(
            STEP, MODEL_FILE, {"sequence_length": 1, **remembers} if kind != "none" else {}, vocabulary=words
        ),
    ]


def _described(value: Tensor, limit: int | None) -> dict[str, Any]:
    """A state tensor's start: its length, what fills it (a number, or a list that is spread out), its longest."""
    same = value[..., :1, :].detach().numpy()
    first = 0.0 if not same.size or not same.any() else same.tolist()
    return {"length": value.shape[-2], "value": first, "limit": limit}


class _Scores(nn.Module):
    """(ids, labels, *state) -> losses, *state."""

    inputs: tuple[str, ...] = ("input_ids", "labels")
    output = "losses"

    def __init__(self, model: PreTrainedModel, kind: Kind) -> None:
        super().__init__()
        self.model, self.kind = model, kind
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        ids, labels, *state = tensors
        found = self.model(ids, memory=self.memory(state), labels=labels)
        return (found.losses, *self.listed(found.memory, state))

    def memory(self, state: Sequence[Tensor]) -> Any:
        """Tensors of a graph as the model takes them."""
        if not state:
            return None
        return state[0] if self.kind == "hidden" else list(state)

    def listed(self, memory: Any, state: Sequence[Tensor]) -> list[Tensor]:
        """The other way round."""
        if not state:
            return []
        return [memory] if self.kind == "hidden" else list(memory)


class _Next(_Scores):
    """(ids, *state) -> logits of the next token (batch, 1, vocabulary), *state."""

    inputs = ("input_ids",)
    output = "logits"

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        ids, *state = tensors
        found = self.model(ids, memory=self.memory(state), last=True)
        return (found.logits, *self.listed(found.memory, state))


def _export(wrapper: _Scores, state: Mapping[str, Tensor], opset: int, target: Path) -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    before = [_longer(value) for value in state.values()]
    names = [*wrapper.inputs, *state]
    outputs = [wrapper.output, *(f"{name}_out" for name in state)]
    tokens = {0: "batch_size", 1: "sequence_length"}
    axes = dict.fromkeys(wrapper.inputs, tokens)
    axes |= {wrapper.output: tokens if wrapper.output == "losses" else {0: "batch_size"}}
    axes |= {name: {1: "batch_size", 2: "memory_length"} for name in state}
    axes |= {f"{name}_out": {1: "batch_size", 2: "memory_out_length"} for name in state}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapper,
            (*[ids] * len(wrapper.inputs), *before),
            str(target),
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    read_weights_directly(target)


def _longer(value: Tensor) -> Tensor:
    """An example of a state tensor to trace with: two texts, two tokens."""
    return torch.zeros(value.shape[0], 2, 2, value.shape[-1])


@torch.inference_mode()
def stream_parity(model: PreTrainedModel, folder: Path, memory: Kind | None = None) -> dict[str, Any]:
    """How far the graphs, reading texts in ragged pieces, are from PyTorch's one pass: losses, next logits and state.

    Returns `max_abs_error`, `inputs` (texts compared).
    """
    kind = kind_of(model, memory)
    scores, steps = (open_graph(folder, name) for name in (SCORES_FILE, MODEL_FILE))
    worst, count = 0.0, 0
    random = torch.Generator().manual_seed(0)
    for batch, length in TEXTS:
        ids = torch.randint(model.config.vocab_size, (batch, length + 1), generator=random)
        tokens, labels = ids[:, :-1], ids[:, 1:]
        state = initial_state(model, kind, batch)
        expected = _Scores(model, kind)(tokens, labels, *state.values())
        following = _Next(model, kind)(tokens, *state.values())
        pieces = {"losses": _in_pieces(scores, tokens, labels), "logits": _in_pieces(steps, tokens)}
        found = [np.concatenate([piece["losses"] for piece in pieces["losses"]], axis=1)]
        found += [pieces["logits"][-1][name] for name in ("logits", *state)]
        wanted = [expected[0], following[0], *following[1:]]
        for one, other in zip(wanted, found, strict=True):
            worst = max(worst, largest_difference(one.detach().numpy(), other))
        count += batch
    return {"max_abs_error": worst, "inputs": count}


def _in_pieces(model: Runnable, *streams: Tensor) -> list[Mapping[str, Any]]:
    """What a graph gives of every piece of a text; of one that remembers nothing, of the whole text."""
    length = streams[0].shape[1]
    remembers = isinstance(model, Stateful)
    found: list[Mapping[str, Any]] = []
    state: dict[str, Any] = {}
    for start, end in pairwise(_cuts(length) if remembers else [0, length]):
        parts = [stream[:, start:end] for stream in streams]
        outputs = model({**dict(zip(("input_ids", "labels"), parts, strict=False)), **state})
        state = handed_on(outputs)
        found.append(outputs)
    return found


def _cuts(length: int) -> list[int]:
    """Where pieces of uneven lengths begin and end."""
    ends = accumulate(cycle(PIECES))
    return [0, *takewhile(lambda end: end < length, ends), length]

"""Encoder-decoders as two graphs: one reads a text, one writes the next token; and running them.

The decoder's graph takes a past of any length, zero too, so one graph serves the first token and every other. Keys
and values of the text are the encoder's outputs: they are made once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.models.architecture import DECODER_INPUT, structure_of
from compressor.models.outputs import Array
from compressor.models.writer import CROSS, Reader, Writer
from compressor.onnx.graph import read_weights_directly
from compressor.parts import Part, write_parts
from compressor.serve.generation import PAST, PRESENT, Generator

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
BATCH, LENGTH, PAST_LENGTH = 2, 3, 4
"""Sizes that are traced with: all different, so that none is taken for another."""


def parts_that_write(tokens: int) -> list[Part]:
    """What is timed of a model that writes so many tokens: all of it, reading, the first token, a middle one."""
    return [
        Part("generation", DECODER, tokens=tokens),
        Part("encoder", ENCODER),
        Part("first_token", DECODER, {"length": 1, "past_length": 0}),
        Part("next_token", DECODER, {"length": 1, "past_length": tokens // 2}),
    ]


def export_writer(model: PreTrainedModel, opset: int, folder: Path, tokens: int) -> None:
    """Write both graphs of an encoder-decoder, and the parts that they run as."""
    sequence = LENGTH + 2
    text = {
        "input_ids": torch.ones(BATCH, sequence, dtype=torch.long),
        "attention_mask": _ones(BATCH, sequence),
    }
    reader, writer = Reader(model), Writer(model)
    with _plain_attention(model):
        _export(reader, text, reader.outputs, folder / ENCODER, opset)
        state = {name: _like(name, writer, sequence) for name in writer.inputs}
        places = torch.arange(PAST_LENGTH, PAST_LENGTH + LENGTH)
        tokens_read = {"input_ids": _ones(BATCH, LENGTH), "positions": places}
        inputs = tokens_read | {"attention_mask": text["attention_mask"]} | state
        _export(writer, inputs, writer.outputs, folder / DECODER, opset)
    write_parts(folder, parts_that_write(tokens))


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


def _like(name: str, writer: Writer, sequence: int) -> Tensor:
    """Random keys or values of that name."""
    place = int(name.split(".")[1])
    structure = structure_of(writer.model)
    layer = [layer for layer in structure.layers if layer.stack == "decoder"][place]
    kept = layer.sublayers["attention" if name.startswith(PAST) else "cross_attention"].kept
    length = PAST_LENGTH if name.startswith(PAST) else sequence
    return torch.randn(BATCH, len(kept), length, structure.sizes.head_size)


def _axes(name: str, reads_text: bool) -> dict[int, str]:
    """Names of the dimensions that vary."""
    if name.startswith(PAST):
        return {0: "batch", 2: "past_length"}
    if name.startswith(PRESENT):
        return {0: "batch", 2: "total_length"}
    if name.startswith(CROSS):
        return {0: "batch", 2: "sequence"}
    if name == "positions":
        return {0: "length"}
    return {0: "batch", 1: "sequence" if reads_text or name == "attention_mask" else "length"}


def _export(
    module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], target: Path, opset: int
) -> None:
    reads_text = isinstance(module, Reader)
    module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(target),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: _axes(name, reads_text) for name in (*inputs, *outputs)},
            opset_version=opset,
            dynamo=False,
        )
    read_weights_directly(target)
    _name_inputs(target, inputs, reads_text)


def _name_inputs(path: Path, inputs: dict[str, Tensor], reads_text: bool) -> None:
    """Let the graph name all its inputs, in order: the exporter drops what no layer that is left reads."""
    model = onnx.load(str(path), load_external_data=False)
    named = {value.name: value for value in model.graph.input}
    if len(named) == len(inputs):
        return
    for name in set(inputs) - set(named):
        axes = _axes(name, reads_text)
        dims = [axes.get(axis, size) for axis, size in enumerate(inputs[name].shape)]
        kind = onnx.TensorProto.FLOAT if inputs[name].is_floating_point() else onnx.TensorProto.INT64
        named[name] = onnx.helper.make_tensor_value_info(name, kind, dims)
    del model.graph.input[:]
    model.graph.input.extend(named[name] for name in inputs)
    onnx.save(model, str(path))


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention written out: exported, PyTorch's own has more operators, which count in a step of one token."""
    before = model.config._attn_implementation
    model.eval()
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class TeacherForced:
    """The graphs on given tokens: half of them read at once, the others one after the other, as when writing."""

    inputs = ["input_ids", "attention_mask", DECODER_INPUT]

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def __call__(self, inputs: Mapping[str, Tensor | Array]) -> Mapping[str, Array]:
        """`logits` (batch, tokens, words)."""
        arrays: dict[str, Any] = {name: np.asarray(inputs[name]) for name in self.inputs}
        ids = arrays[DECODER_INPUT]
        state = self.generator.start(arrays)
        half = max(1, ids.shape[1] // 2)
        ends = [half, *range(half + 1, ids.shape[1] + 1)]
        found, start = [], 0
        for end in ends:
            logits, state = self.generator.read(ids[:, start:end], start, state)
            found.append(logits)
            start = end
        return {"logits": np.concatenate(found, axis=1)}

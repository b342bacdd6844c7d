"""Running an exported model on onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from torch import Tensor

from compressor.errors import UserError
from compressor.models.outputs import Array, Runner, text_runner
from compressor.parts import MODEL_FILE, graph_file, graphs_of, parts_of
from compressor.serve.generation import Generator, Settings


class Runnable(Protocol):
    """A model on onnxruntime, of one graph or of several: `inputs` by name in, outputs by name out."""

    @property
    def inputs(self) -> list[str]: ...  # noqa: D102

    def __call__(self, inputs: Mapping[str, Tensor | Array]) -> Mapping[str, Array]: ...  # noqa: D102


def open_model(model: Path) -> Runnable:
    """The model that a folder holds, or an ONNX file is; one that writes text runs on given tokens."""
    if graphs_of(model) == [MODEL_FILE]:
        return OnnxModel(graph_file(model, parts_of(model)[0]))
    from compressor.onnx.writer import TeacherForced

    return TeacherForced(open_generator(model))


def open_generator(folder: Path) -> Generator:
    """The graphs of a model that writes text."""
    decoder = next(part.graph for part in parts_of(folder) if part.tokens)
    return Generator({name: OnnxModel(folder / name).session for name in graphs_of(folder)}, decoder)


def open_runner(model: Path, settings: Settings | None) -> Runner:
    """What runs a data set: outputs by name, or with `settings` the tokens that a model writes."""
    return text_runner(open_generator(model), settings) if settings else open_model(model)


class OnnxModel:
    """An ONNX file, ready to run on the CPU."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Open `path`; `threads` 0 leaves the number to onnxruntime.

        Raises:
            UserError: the file does not load.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UserError(f"{path} does not load on onnxruntime: {str(error).splitlines()[0]}") from error
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor | Array]) -> Mapping[str, Array]:
        """All outputs by name; inputs that the graph lacks are ignored."""
        feed: dict[str, Any] = {name: np.asarray(inputs[name]) for name in self.inputs}
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

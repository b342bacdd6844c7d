"""Running an exported model on onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from torch import Tensor

from compressor.errors import UserError
from compressor.files import read_json
from compressor.models.outputs import Array, Runner, text_runner
from compressor.parts import STATE_FILE, graph_file, graphs_of, parts_of
from compressor.serve.generation import Generator, Settings
from compressor.serve.streaming import Reader


class Runnable(Protocol):
    """A model on onnxruntime, of one graph or of several: `inputs` by name in, outputs by name out."""

    @property
    def inputs(self) -> list[str]: ...  # noqa: D102

    def __call__(self, inputs: Mapping[str, Tensor | Array]) -> Mapping[str, Array]: ...  # noqa: D102


def open_model(model: Path) -> Runnable:
    """The model that a folder holds, or an ONNX file is, ready to run once; what writes text runs on given tokens."""
    parts = parts_of(model)
    if any(part.tokens for part in parts):
        from compressor.onnx.writer import TeacherForced

        return TeacherForced(open_generator(model))
    file = graph_file(model, parts[0])
    return open_graph(file.parent, file.name)


def open_graphs(folder: Path) -> dict[str, Runnable]:
    """The graphs of a folder by their files, each ready to run once; what writes text is one, by its decoder's."""
    writing = [part.graph for part in parts_of(folder) if part.tokens]
    if writing:
        return {writing[0]: open_model(folder)}
    return {name: open_graph(folder, name) for name in graphs_of(folder)}


def open_graph(folder: Path, name: str) -> Runnable:
    """A graph of a folder; one that hands on what it remembers begins as the folder says."""
    graph, stored = OnnxModel(folder / name), folder / STATE_FILE
    state = read_json(stored) if stored.is_file() else {}
    mine = {name: about for name, about in state.items() if name in graph.inputs}
    return Stateful(graph, mine) if mine else graph


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


class Stateful:
    """A graph that reads a text piece by piece: what it gives under a state's name goes into the next run.

    A run without it begins a text.
    """

    def __init__(self, graph: OnnxModel, state: Mapping[str, Mapping[str, Any]]) -> None:
        """`state`: how each tensor begins (see `serve.streaming`)."""
        self.graph, self.reader = graph, Reader(graph.session, state)

    @property
    def inputs(self) -> list[str]:
        """What must be given."""
        return [name for name in self.graph.inputs if name not in self.reader.state]

    def __call__(self, inputs: Mapping[str, Tensor | Array]) -> Mapping[str, Array]:
        """All outputs by name, those of the state by the names of its inputs."""
        state = self.reader.begin(len(inputs["input_ids"]))
        given = {name: np.asarray(inputs[name]) for name in state if name in inputs}
        found, state = self.reader.read({k: v for k, v in inputs.items() if k not in state}, state | given)
        return found | state

"""The sample in an artifact: a few real inputs with the outputs they gave, so that anyone can see they still do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compressor.models.outputs import Array
from compressor.stages.base import Data, open_tokenizer

SAMPLE = "sample.npz"
SAMPLE_ROWS = 8
SAMPLE_TOKENS = 2
"""How much of a summary is given, to write on."""


def write_sample(folder: Path, data: Data) -> float:
    """Keep rows of the validation split and what every graph made of them: `input.NAME`, and `GRAPH.NAME`.

    Returns:
        The largest of the outputs, without its sign.
    """
    from compressor.onnx.runtime import open_graphs

    graphs = open_graphs(folder)
    inputs = _inputs(folder, data, {name for graph in graphs.values() for name in graph.inputs})
    outputs = {
        f"{file}.{name}": values for file, graph in graphs.items() for name, values in graph(inputs).items()
    }
    given = {f"input.{name}": values for name, values in inputs.items()}
    np.savez(folder / SAMPLE, **given, **outputs)  # type: ignore[arg-type]
    return max(float(np.abs(values).max()) for values in outputs.values() if values.size)


def replay(folder: Path) -> float:
    """Largest difference between the stored outputs of the sample and the graphs' outputs here."""
    from compressor.onnx.runtime import open_graphs

    worst = []
    with np.load(folder / SAMPLE, allow_pickle=False) as stored:
        for file, graph in open_graphs(folder).items():
            outputs = graph({name: stored[f"input.{name}"] for name in graph.inputs})
            pairs = ((values, stored[f"{file}.{name}"]) for name, values in outputs.items() if values.size)
            worst += [float(np.abs(here - there).max()) for here, there in pairs]
    return max(worst)


def _inputs(folder: Path, data: Data, wanted: set[str]) -> dict[str, Array]:
    """One padded batch."""
    from compressor.models.architecture import DECODER_INPUT

    task = data.task
    tokenizer = open_tokenizer(folder, data.kind)
    features = task.features(task.examples.validation.head(SAMPLE_ROWS), tokenizer)
    rows = [{k: v for k, v in row.items() if k in wanted} for row in features][:SAMPLE_ROWS]
    if task.writes:
        beginnings = [row["labels"][:SAMPLE_TOKENS] for row in features]
        rows = [row | {DECODER_INPUT: begun} for row, begun in zip(rows, beginnings, strict=False)]
    return {k: v.numpy() for k, v in task.collate(tokenizer)(rows).items()}

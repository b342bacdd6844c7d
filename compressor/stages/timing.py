"""How fast models that a pruner thinks of would be: exported and timed together, once a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compressor.stages.base import Work
from compressor.stages.export import Export

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.cell import Cell

Models = Mapping[str, Callable[[], "PreTrainedModel"]]
"""By name how each is made, so that only one at a time is in memory."""


def time_models(work: Work, cell: Cell, models: Models) -> dict[str, Any]:
    """Median milliseconds of every model in `cell`, speedups over the first, and the harness's conditions.

    All are timed in turns in the same fresh processes, as the variants of a run are.
    """
    from compressor.benchmark.harness import measure
    from compressor.onnx.export import export_model

    keys = work.benchmark
    with TemporaryDirectory(dir=work.scratch) as folder:
        files = {name: Path(folder) / name for name in models}
        for number, (name, make) in enumerate(models.items()):
            work.progress(f"export {name} to time it", number / len(models))
            files[name].mkdir()
            task, tokens = work.data.kind.optimum_task, work.data.keys.tokens
            export_model(make(), task, Export().opset, files[name], tokens)
        measured = measure(
            files,
            [cell],
            reference=next(iter(files)),
            seconds=keys.seconds,
            processes=keys.processes,
            progress=work.progress,
        )
    return {
        "p50_ms": {name: rows[0]["p50_ms"] for name, rows in measured.latency.items()},
        "speedup": {name: rows[0] for name, rows in measured.speedup.items()},
        "conditions": measured.conditions[0],
    }


def dense_like(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself if nothing was cut from it, else one of the sizes that it had: as fast, its weights random."""
    from copy import deepcopy

    from compressor.models.architecture import architecture_of, structure_of

    structure = structure_of(model)
    if structure == structure.dense(structure.sizes):
        return model
    config = deepcopy(model.config)
    del config.compressor
    for stack in architecture_of(config).stacks:
        setattr(config, stack.layers_key, structure.sizes.stacks[stack.name]["layers"])
    return type(model)(config)

"""How fast models that a pruner thinks of would be: exported and timed together, once a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compressor.stages.base import Work
from compressor.stages.export import MODEL_FILE, Export

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.cell import Cell

Models = Mapping[str, Callable[[], "PreTrainedModel"]]
"""By name how each is made, so that only one at a time is in memory."""


def time_models(work: Work, cell: Cell, models: Models) -> dict[str, Any]:
    """Median milliseconds of every model in `cell`, with the harness's conditions.

    All are timed in turns in the same fresh processes, as the variants of a run are.
    """
    from compressor.benchmark.harness import measure
    from compressor.onnx.export import export_onnx

    keys = work.benchmark
    with TemporaryDirectory(dir=work.scratch) as folder:
        files = {name: Path(folder) / name / MODEL_FILE for name in models}
        for number, (name, make) in enumerate(models.items()):
            work.progress(f"export {name} to time it", number / len(models))
            files[name].parent.mkdir()
            export_onnx(make(), work.data.kind.optimum_task, Export().opset, files[name])
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
        "conditions": measured.conditions[0],
    }

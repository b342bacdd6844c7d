"""How fast models that a pruner thinks of would be: exported and timed together, once a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compressor.parts import graphs_of
from compressor.stages.base import Work
from compressor.stages.export import Export

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.cell import Cell
    from compressor.stages.latency import Precision

Models = Mapping[str, Callable[[], "PreTrainedModel"] | Path]
"""By name how each is made, so that only one at a time is in memory, or where it lies exported."""


def time_models(
    work: Work,
    cell: Cell,
    models: Models,
    precisions: Mapping[str, Precision] | None = None,
    seconds: float | None = None,
    processes: int | None = None,
) -> dict[str, Any]:
    """Median milliseconds of every model in `cell`, speedups over the first, and the harness's conditions.

    All are timed in turns in the same fresh processes, as the variants of a run are; in fp32 where `precisions` (by
    name) says nothing else; for as long and in as many processes as the benchmark, where nothing else is given.
    """
    from compressor.benchmark.harness import measure

    keys, precisions = work.benchmark, precisions or {}
    with TemporaryDirectory(dir=work.scratch) as folder:
        files = {}
        for number, (name, made) in enumerate(models.items()):
            files[name] = made if isinstance(made, Path) else Path(folder) / name
            if not isinstance(made, Path):
                work.progress(f"export {name} to time it", number / len(models))
                export_as(work, made(), files[name], precisions.get(name, "fp32"))
        measured = measure(
            files,
            [cell],
            reference=next(iter(files)),
            seconds=keys.seconds if seconds is None else seconds,
            processes=processes or keys.processes,
            progress=work.progress,
        )
    return {
        "p50_ms": {name: rows[0]["p50_ms"] for name, rows in measured.latency.items()},
        "p50_ci95": {name: rows[0]["p50_ci95"] for name, rows in measured.latency.items()},
        "speedup": {name: rows[0] for name, rows in measured.speedup.items()},
        "conditions": measured.conditions[0],
    }


def export_as(work: Work, model: PreTrainedModel, folder: Path, precision: Precision) -> None:
    """Write a new folder of graphs as `export` and `quantize` make them where a recipe says nothing more."""
    from compressor.onnx.export import export_model
    from compressor.onnx.quantize import quantize
    from compressor.stages.latency import scheme_of

    folder.mkdir()
    task, tokens = work.data.kind.optimum_task, work.data.keys.tokens
    export_model(model, task, Export().opset, folder, memory=work.memory, tokens=tokens)
    if scheme := scheme_of(precision):
        for name in graphs_of(folder):
            exported = (folder / name).rename(folder / f"fp32-{name}")
            quantize(exported, folder / name, scheme)
            exported.unlink()

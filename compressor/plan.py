"""What a run would do, without doing it: stages, cost, disk; offline and without loading weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.estimate import (
    FLOAT_BYTES,
    TRAINING_COPIES,
    disk_needed,
    features_of,
    parameters_of,
    training_seconds,
)
from compressor.models.architecture import architecture_of
from compressor.models.source import NewModel, folder_of, sized
from compressor.tasks.schema import DatasetHub

if TYPE_CHECKING:
    from compressor.project import Project


def plan(project: Project) -> dict[str, Any]:
    """Stages with their state, and what the run will need; `None` where it is unknown until downloaded."""
    from compressor.benchmark.machine import bf16_sets, usable_cores
    from compressor.errors import UserError
    from compressor.models import checkpoint
    from compressor.preflight import check_cut

    try:
        config = checkpoint.peek(sized(project.recipe.model), offline=True)
    except UserError:
        if isinstance(project.recipe.model, NewModel) or folder_of(project.recipe.model):
            raise
        config = None
    if config:
        check_cut(project.recipe.model, config)
    try:
        examples = project.data.task.examples
        rows = {name: len(getattr(examples, name)) for name in ("train", "selection", "validation")}
    except UserError:
        if not isinstance(project.recipe.task.dataset, str | DatasetHub):
            raise
        rows = None
    cores, bf16 = usable_cores(), bool(bf16_sets())
    stages = []
    for node in project.chain.nodes:
        seconds = None
        if config and rows:
            seconds = training_seconds(node, config, features_of(project), cores, bf16)
        cached = seconds is not None and project.cached(node) is not None
        stages.append({"id": node.name, "from": list(node.inputs), "cached": cached, "seconds": seconds})
    return {
        "name": project.recipe.name,
        "output": str(project.output),
        "stages": stages,
        "rows": rows,
        "baseline": project.chain.baseline,
        "variants": list(project.chain.variants),
        "bf16": bf16
        and any(t and t.precision == "fp32" for t in (s.training for s in project.recipe.stages)),
        "sizes": architecture_of(config).sizes(config) if config else None,
        "parameters": parameters_of(config) if config else None,
        "disk_bytes": disk_needed(project, config) if config else None,
        "memory_bytes": parameters_of(config) * FLOAT_BYTES * TRAINING_COPIES if config else None,
    }

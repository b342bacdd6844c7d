"""What can be found wrong before the first stage, so that nothing is left behind and no hours are lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.benchmark.machine import usable_cores
from compressor.benchmark.sessions import check_provider
from compressor.errors import UserError
from compressor.models.source import NewModel, describe
from compressor.schema import TeacherModel
from compressor.stages.base import MODEL
from compressor.stages.prune import Prune

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from compressor.pipeline import Pipeline


def check_everything(pipeline: Pipeline) -> None:
    """Check machine, model, teachers and data.

    Raises:
        UserError: the first thing that stands in the way.
    """
    check_machine(pipeline)
    config = check_model(pipeline)
    for stage in pipeline.recipe.stages:
        if isinstance(stage, Prune):
            stage.pruner.check(config)
    _ = pipeline.data.task
    check_disk(pipeline, config)


def check_machine(pipeline: Pipeline) -> None:
    """Providers, threads and processes that the recipe asks for."""
    keys = pipeline.recipe.benchmark
    for provider in keys.providers:
        check_provider(provider)
    most, have = max(keys.threads), usable_cores()
    if "cpu" in keys.providers and most > have:
        raise UserError(f"benchmark.threads asks for {most}, this machine has {have} cores; lower it")
    for stage in pipeline.recipe.stages:
        if stage.training and stage.training.batch_size % (
            stage.training.gradient_accumulation * pipeline.processes
        ):
            raise UserError(
                f"{stage.verb}: batch_size {stage.training.batch_size} is no multiple of --nproc "
                f"{pipeline.processes} x gradient_accumulation {stage.training.gradient_accumulation}"
            )


def check_model(pipeline: Pipeline) -> PretrainedConfig:
    """The model can be opened, and the baseline's head is trained."""
    from compressor.models import checkpoint

    recipe, kind = pipeline.recipe, pipeline.data.kind
    config = checkpoint.peek(recipe.model)
    for stage in recipe.stages:
        distill = stage.training.distill if stage.training else None
        if distill and isinstance(distill.teacher, TeacherModel):
            checkpoint.peek(distill.teacher.model)
    if pipeline.chain.baseline == MODEL:
        trained = not isinstance(recipe.model, NewModel) and checkpoint.has_head(config, kind.auto_class)
        if not trained:
            raise UserError(
                f"the baseline would be '{describe(recipe.model)}', whose head is not trained for this task: put a "
                "`finetune` before the first `prune`, or name a trained model"
            )
    return config


def check_disk(pipeline: Pipeline, config: PretrainedConfig) -> None:
    """Enough room for every stage's checkpoint and every artifact."""
    from compressor.plan import disk_needed, free_disk

    needed, free = disk_needed(pipeline, config), free_disk(pipeline.output)
    if needed > free:
        raise UserError(
            f"the run needs about {needed / 1e9:.1f} GB in {pipeline.output}, {free / 1e9:.1f} GB are free; "
            "make room or give another --output"
        )

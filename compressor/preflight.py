"""What can be found wrong before the first stage, so that nothing is left behind and no hours are lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.benchmark.latency_setting import shape_of
from compressor.benchmark.machine import usable_cores
from compressor.benchmark.sessions import check_provider
from compressor.errors import RunError, UserError
from compressor.executors import ExecutorKeys
from compressor.models.architecture import ARCHITECTURES, architecture_of, structure_in
from compressor.models.language import check_memory
from compressor.models.source import ModelSource, NewModel, describe, sized
from compressor.project import outside_teacher
from compressor.schema import numbers_text
from compressor.stages.base import LOCK, MODEL, TEACHER
from compressor.stages.chain import stage_ids
from compressor.stages.export import Export
from compressor.stages.prune import Prune
from compressor.stages.quantize import Quantize
from compressor.tasks.schema import STREAMED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from compressor.project import Project


def check_everything(project: Project) -> None:
    """Check folder, machine, model, data, heads, tokenizers, lengths and room.

    Raises:
        UserError: the first thing that stands in the way.
        RunError: the disk is too full.
    """
    from compressor.models import checkpoint

    check_output(project.output)
    check_machine(project)
    config = checkpoint.peek(sized(project.recipe.model))
    check_cut(project.recipe.model, config)
    stages = project.recipe.stages
    teachers = {name: checkpoint.peek(name) for stage in stages if (name := outside_teacher(stage))}
    for name, theirs in {describe(project.recipe.model): config, **teachers}.items():
        check_kind(project, name, theirs)
    if project.recipe.task.type == "feature-extraction":
        check_embeddings(project, config)
    for stage in stages:
        if isinstance(stage, Export):
            check_memory(config, stage.memory)
        if isinstance(stage, Prune):
            stage.pruner.check_family(config)
            if stage.pruner.reads_table(stage.target):
                shape_of(config)
            stage.pruner.check(config)
            stage.pruner.check_target(config, stage.target)
        if (
            isinstance(stage, Quantize)
            and stage.mode == "fp16"
            and not architecture_of(config).half_precision
        ):
            raise UserError(
                f"quantize: onnxruntime does not run {config.model_type} in fp16; take int8, or leave the stage out"
            )
    check_frozen(project, config)
    check_heads(project, config, teachers)
    check_layer_teachers(project, config, teachers)
    check_tokenizers(project, config, list(teachers))
    check_lengths(project, config)
    check_disk(project, config)


def check_output(folder: Path) -> None:
    """The run's folder is new, empty, or that of an earlier run: stages replace folders of their names."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UserError(f"--output {folder}: {there} is a file; name a folder")
    names = {path.name for path in folder.iterdir()} if there == folder else set()
    if names and LOCK not in names:
        raise UserError(
            f"--output {folder} holds files that are not of a run ({min(names)}); name a new or an empty folder"
        )


def check_cut(source: ModelSource, config: PretrainedConfig) -> None:
    """The model is dense or sliced: one that is only held to its structure cannot be exported or pruned."""
    if "gates" in (getattr(config, "compressor", None) or ()):
        raise UserError(
            f"the model '{describe(source)}' is pruned but not sliced yet: name the folder of a `slice` stage after "
            "it, or a dense model"
        )


def check_kind(project: Project, name: str, config: PretrainedConfig) -> None:
    """A model of the kind that does the task, and stages that can work on it."""
    wanted, task = project.data.kind.model_kind, project.recipe.task.type
    if architecture_of(config).kind != wanted:
        fit = ", ".join(n for n, family in ARCHITECTURES.items() if family.kind == wanted)
        article = "a" if wanted == "decoder" else "an"
        raise UserError(
            f"{task} needs {article} {wanted}; '{name}' is a {config.model_type} model (take one of {fit})"
        )
    if not (project.data.kind.writes or task in STREAMED):
        return
    for stage in project.recipe.stages:
        if isinstance(stage, Quantize) and stage.mode in ("static", "auto"):
            raise UserError(
                f"quantize: mode {stage.mode} is for models of one graph, not for {task}: take dynamic"
            )
        if stage.training and stage.training.distill and stage.training.distill.layers:
            raise UserError(f"distill.layers compares the states of encoders; leave it out for {task}")


def check_embeddings(project: Project, config: PretrainedConfig) -> None:
    """The model is an encoder that exists, and makes vectors of texts as the recipe says."""
    from compressor.models import checkpoint
    from compressor.models.embedding import AutoModelForSentenceEmbedding, stated
    from compressor.models.heads import same_embeddings

    source = project.recipe.model
    if isinstance(source, NewModel):
        raise UserError(
            "feature-extraction keeps the embeddings of a model that exists: name a folder or a hub id"
        )
    if type(config) not in AutoModelForSentenceEmbedding._model_mapping:
        raise UserError(f"feature-extraction is for encoders; a {config.model_type} model is none")
    wanted = project.data.task.model_config()
    same_embeddings(stated(source), wanted)
    for stage in project.recipe.stages:
        if name := outside_teacher(stage):
            width = checkpoint.peek(name).hidden_size
            if width != config.hidden_size:
                raise UserError(
                    f"the teacher '{name}' gives vectors of {width} numbers, the model of {config.hidden_size}: they "
                    "cannot be compared"
                )
            same_embeddings(stated(name), wanted)


def check_machine(project: Project) -> None:
    """Providers, threads and processes that the recipe asks for."""
    keys = project.recipe.benchmark
    for provider in keys.providers:
        check_provider(provider)
    most, have = max(keys.threads), usable_cores()
    if "cpu" in keys.providers and most > have:
        raise UserError(f"benchmark.threads asks for {most}, this machine has {have} cores; lower it")
    stages = project.recipe.stages
    for name, stage in zip(stage_ids(stages), stages, strict=True):
        method = stage.pruner if isinstance(stage, Prune) else None
        if project.processes > 1 and isinstance(method, ExecutorKeys) and not method.in_turn:
            raise UserError(
                f"stages.{name} tries candidates side by side (`executor`, `workers`), --nproc trains each on "
                "several processes: use one of the two"
            )
        training, processes = stage.training, project.processes if stage.trains else 1
        if training and training.batch_size % (training.gradient_accumulation * processes):
            raise UserError(
                f"stages.{name}.batch_size {training.batch_size} is no multiple of --nproc {processes} x "
                f"gradient_accumulation {training.gradient_accumulation}"
            )


def check_frozen(project: Project, config: PretrainedConfig) -> None:
    """The model has the layers that are to be frozen: of its first stack, which is the encoder where it has one."""
    first = architecture_of(config).stacks[0].name
    there = {layer.index for layer in structure_in(config).layers if layer.stack == first}
    stages = project.recipe.stages
    for name, stage in zip(stage_ids(stages), stages, strict=True):
        asked = stage.training.freeze_layers if stage.training else []
        if missing := [number for number in asked if number not in there]:
            key = ".".join(("stages", name, *stage.training_at, "freeze_layers"))
            have = f"this model's {first} has {numbers_text(sorted(there))}"
            raise UserError(f"{key}: no layer {missing[0]}; {have}")


def check_heads(project: Project, config: PretrainedConfig, teachers: dict[str, PretrainedConfig]) -> None:
    """The baseline's head and every teacher's is trained for the task and its labels."""
    from compressor.models.heads import head_fits

    recipe, auto_class = project.recipe, project.data.kind.auto_class
    wanted = project.data.task.model_config()
    trained = head_fits(config, auto_class, wanted) and not isinstance(recipe.model, NewModel)
    name = describe(recipe.model)
    if project.chain.baseline == MODEL and not trained:
        raise UserError(
            f"the baseline would be '{name}', whose head is not trained for this task: put a "
            "`finetune` before the first `prune`, or name a trained model"
        )
    if not trained and (variant := _never_trained(project)):
        raise UserError(
            f"the head of {variant} would never be trained: nothing between '{name}' and its export trains it; put a "
            "`finetune` after the `slice`"
        )
    untrained = [other for other, theirs in teachers.items() if not head_fits(theirs, auto_class, wanted)]
    if not trained and any(stage.references.get(TEACHER) == MODEL for stage in recipe.stages):
        untrained.append(name)
    if untrained:
        raise UserError(
            f"the teacher '{untrained[0]}' has no head trained for this task and these labels: name a `finetune` "
            "before it, or a trained model"
        )


def check_layer_teachers(
    project: Project, config: PretrainedConfig, teachers: dict[str, PretrainedConfig]
) -> None:
    """Teachers whose hidden states are compared can read what the model reads."""
    from compressor.training.layers import check_inputs

    for stage in project.recipe.stages:
        name, training = outside_teacher(stage), stage.training
        if name and training and training.distill and training.distill.layers:
            check_inputs(teachers[name], config)


def _never_trained(project: Project) -> str | None:
    """The first variant on whose way from the model no stage trains, if any."""
    chain = project.chain
    for variant, name in chain.variants.items():
        node = chain.node(name)
        while node.inputs and not node.stage.training:
            node = chain.node(node.inputs[0])
        if not node.inputs:
            return variant
    return None


def check_tokenizers(project: Project, config: PretrainedConfig, teachers: list[str]) -> None:
    """The model's tokenizer opens, serves the task and fits the embeddings; a teacher's is the same."""
    from compressor.stages.open import tokenizer_of

    recipe, kind = project.recipe, project.data.kind
    tokenizer = tokenizer_of(recipe.model, kind)
    if tokenizer:
        project.data.task.check_tokenizer(tokenizer)
        if not isinstance(recipe.model, NewModel) and len(tokenizer) > config.vocab_size:
            raise UserError(
                f"the tokenizer of '{describe(recipe.model)}' has {len(tokenizer)} tokens, its model "
                f"{config.vocab_size}: they do not belong together"
            )
    for name in teachers:
        if not tokenizer or tokenizer_of(name, kind).get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"the teacher '{name}' has another vocabulary than the student: their logits don't match"
            )


def check_lengths(project: Project, config: PretrainedConfig) -> None:
    """No text that is trained on or timed is longer than the model reads."""
    most = architecture_of(config).longest(config)
    asked = {"task.max_length": project.recipe.task.max_length}
    cached = any(isinstance(stage, Export) and stage.memory == "cache" for stage in project.recipe.stages)
    more = 1 if cached else 0  # a step reads one token after as many as the benchmark says
    asked["benchmark.sequence_lengths"] = max(project.recipe.benchmark.sequence_lengths) + more
    asked["task.max_target_length"] = project.recipe.task.max_target_length or 0
    asked["task.generation.max_tokens"] = project.recipe.task.tokens
    for key, length in asked.items():
        if most and length > most:
            raise UserError(f"{key} asks for {length} tokens, the model reads at most {most}; lower it")


def check_disk(project: Project, config: PretrainedConfig) -> None:
    """Enough room for every stage's checkpoint and every artifact."""
    from compressor.estimate import disk_needed, free_disk

    needed, free = disk_needed(project, config), free_disk(project.output)
    if needed > free:
        raise RunError(
            f"no space left: the run needs about {needed / 1e6:,.0f} MB in {project.output}, "
            f"{free / 1e6:,.0f} MB are free; make room or give another --output"
        )

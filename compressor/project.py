"""A recipe and the folder of its run: what there is to do, what is done, and what each stage works with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from compressor.display import Display
from compressor.files import digest, stored_under
from compressor.models.source import model_content
from compressor.parts import Kind
from compressor.recipe import Loaded, Recipe
from compressor.schema import Progress, TeacherModel, json_of
from compressor.stages.base import Data, Stage, Work
from compressor.stages.chain import Chain, Node, build_chain
from compressor.stages.export import Export
from compressor.stages.open import OpenModel
from compressor.stages.prune import Prune

RECORD = "stage.json"
SCRATCH = "work"
SHARED = "shared"
KEY = 12
"""Digits of a node's key in the name of its scratch folder."""


@dataclass
class Project:
    """A recipe and the folder of its run."""

    loaded: Loaded
    output: Path
    display: Display = field(default_factory=Display)
    processes: int = 1

    @property
    def recipe(self) -> Recipe:
        """The validated recipe."""
        return self.loaded.recipe

    @cached_property
    def data(self) -> Data:
        """The task and its data, read once."""
        return Data(self.recipe.task, self.recipe.seed, self.recipe.model)

    @cached_property
    def chain(self) -> Chain:
        """The nodes to run."""
        return build_chain(self.recipe.stages, self.recipe.baseline)

    @cached_property
    def keys(self) -> dict[str, str]:
        """Per node a hash of all its result depends on: its keys, its inputs, data, model and code version."""
        keys: dict[str, str] = {}
        for node in self.chain.nodes:
            stage = node.stage
            inputs = [keys[self.chain.node(name).name] + name for name in node.inputs]
            circumstances = stage.circumstances(self.recipe.benchmark, self.recipe.gates)
            parts: list[Any] = [stage.verb, stage.version, stage.content, inputs, circumstances]
            keys[node.name] = digest(parts + self._outside(node))
        return keys

    def origin(self, node: Node) -> str:
        """A hash of all that a node's result depends on but its own keys."""
        inputs = [self.keys[self.chain.node(name).name] + name for name in node.inputs]
        return digest([node.stage.version, inputs, *self._outside(node)])

    def _outside(self, node: Node) -> list[Any]:
        """What a node's result depends on beside its stage and its inputs."""
        stage, parts = node.stage, []
        if stage.uses_data or isinstance(stage, OpenModel):
            parts += [self.recipe.seed, self.training_data]
        if isinstance(stage, OpenModel):
            parts.append(model_content(self.recipe.model))
        if teacher := outside_teacher(stage):
            parts.append(model_content(teacher))
        if stage.uses_metric:
            parts.append(self.recipe.task.metric)
        timed = isinstance(stage, Prune) and stage.target is not None and stage.target.timed
        writes = self.recipe.task.generation
        if writes and (stage.uses_metric or timed or isinstance(stage, Export)):
            parts.append(json_of(writes))
        if timed and self.memory:
            parts.append(self.memory)
        return parts

    @property
    def memory(self) -> Kind | None:
        """What exported language models hand on from run to run, as the recipe says."""
        return next((stage.memory for stage in self.recipe.stages if isinstance(stage, Export)), None)

    @cached_property
    def training_data(self) -> Any:
        """What training depends on in the task: all of it but how validation is scored, and how text is written."""
        task = json_of(self.recipe.task)
        task["limit"] = {"train": task["limit"]["train"]}
        task.pop("metric")
        task.pop("generation")
        return [task, self.data.kind.fingerprint(self.recipe.task)]

    def stage_names(self) -> list[str]:
        """Ids of the chain's stages, in order."""
        return list(dict.fromkeys(n.name.split("/")[0] for n in self.chain.nodes))

    def cached(self, node: Node) -> dict[str, Any] | None:
        """The record of a finished node whose key still holds and whose files are all there."""
        record = self.output / node.name / RECORD
        stored = stored_under(record, self.keys[node.name])
        try:
            whole = stored and all(
                (record.parent / f).stat().st_size == size for f, size in stored["files"].items()
            )
        except OSError:
            return None
        return stored if whole else None

    def forget(self, node: Node) -> None:
        """Remove what a node that is done worked with, under earlier keys too."""
        for folder in (self.output / SCRATCH).glob(f"{_slug(node)}-{'[0-9a-f]' * KEY}"):
            shutil.rmtree(folder, ignore_errors=True)

    def work(self, node: Node, folder: Path, progress: Progress, rank: int = 0) -> Work:
        """Everything `node` needs to run into `folder`."""
        scratch = self.output / SCRATCH / f"{_slug(node)}-{self.keys[node.name][:KEY]}"
        scratch.mkdir(parents=True, exist_ok=True)
        (self.output / SHARED).mkdir(exist_ok=True)
        return Work(
            model=self.recipe.model,
            data=self.data,
            seed=self.recipe.seed,
            source=self.output / node.inputs[0] if node.inputs else folder,
            folder=folder,
            scratch=scratch,
            shared=self.output / SHARED,
            folder_of=self.output.joinpath,
            progress=progress,
            gates=self.recipe.gates,
            benchmark=self.recipe.benchmark,
            processes=self.processes if node.stage.trains else 1,
            rank=rank,
            origin=self.origin(node),
            memory=self.memory,
        )


def _slug(node: Node) -> str:
    """Its name as a folder's."""
    return node.name.replace("/", ".")


def outside_teacher(stage: Stage) -> str | None:
    """The model from outside the run that a stage is distilled from, if any."""
    distill = stage.training.distill if stage.training else None
    return distill.teacher.model if distill and isinstance(distill.teacher, TeacherModel) else None

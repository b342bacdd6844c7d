"""What a stage lends to a training or a pruning method: model and data of the task, its metric, times, scratch."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compressor.errors import UserError
from compressor.executors import ExecutorKeys, run_all
from compressor.models.structure import Structure
from compressor.pruning.context import Context, Job, Result, Timing
from compressor.pruning.target import Precision, Target
from compressor.schema import Distill, TrainingKeys, steps_in
from compressor.stages.base import Data, Work, write_outputs
from compressor.stages.batches import sampled, selection_batches
from compressor.stages.clock import Clock
from compressor.stages.teacher import Teacher
from compressor.stages.timing import Models, export_as

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from compressor.benchmark.latency_table import LatencyTable
    from compressor.training.layers import LayerDistiller, Weights
    from compressor.training.trainer import Part

LEAST = -1e9
"""The score of a model whose metric is no number: below any other, and JSON can hold it."""


@dataclass
class TaskContext:
    """Trains and evaluates on the task (the `Context` of a pruning method)."""

    work: Work
    target: Target | None = None
    log: list[dict[str, float]] = field(default_factory=list)
    runs: int = 0
    learned: Weights | None = None
    """The map of hidden states that the last training learned beside the model, if it was distilled by layers."""

    @property
    def folder(self) -> Path:
        """A folder that survives a kill."""
        return self.work.scratch

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.work.seed

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.work.is_main

    def model(self) -> PreTrainedModel:
        """The model that the stage starts from, opened anew."""
        from compressor.models import checkpoint

        return checkpoint.load(self.work.source)

    def kept(self, what: str, *depends: Any) -> Path:
        """A folder that outlives the stage."""
        return self.work.kept(what, *depends)

    def once(self, path: Path, make: Callable[[Path], None]) -> None:
        """Have the main process make `path`, if it is not there."""
        self.work.once(path, make)

    def each(
        self, do: Callable[[Context, Job], Result], jobs: Sequence[Job], where: ExecutorKeys
    ) -> Iterator[tuple[Job, Result]]:
        """Do every job in a context of its own; side by side none tells how far it is, so the jobs are counted."""
        work = self.work
        if not where.in_turn:
            work = replace(
                work, progress=_say_nothing, data=Data(work.data.keys, work.data.seed, work.data.model)
            )
        done = run_all(where, partial(_do, do, work, self.target), jobs)
        for number, result in enumerate(done, start=1):
            self.work.progress(f"{number} of {len(jobs)} candidates", number / len(jobs))
            yield result

    def latency(self, models: Models) -> dict[str, float]:
        """Milliseconds by name."""
        return self._clock.latency(models)

    def latency_table(self, precision: Precision = "fp32") -> LatencyTable:
        """The table of the source's encoder in the cell that the target means."""
        return self._clock.latency_table(precision)

    def timing(
        self, name: str, model: Callable[[], PreTrainedModel], precision: Precision = "fp32"
    ) -> Timing:
        """How fast a model is beside the dense one."""
        return self._clock.timing(name, model, precision)

    @property
    def _clock(self) -> Clock:
        return Clock(self.work, self.target)

    def forget(self, name: str) -> None:
        """Remove a named training's checkpoints."""
        shutil.rmtree(self.work.scratch / f"training-{name}", ignore_errors=True)

    @property
    def baseline(self) -> Structure:
        """What the run's model has."""
        from compressor.models.architecture import structure_in
        from compressor.models.checkpoint import read_config

        return structure_in(read_config(self.work.baseline))

    def structure(self, stage: str) -> Structure:
        """What the stage `stage` kept: its gates, or what it has if it is sliced.

        Raises:
            UserError: it kept everything, or it makes several models.
        """
        from compressor.models.checkpoint import read_config

        folder = self.work.folder_of(stage)
        if not (folder / "config.json").exists():
            raise UserError(f"'{stage}' makes several models: only one can be a guide")
        keys = getattr(read_config(folder), "compressor", None) or {}
        stored = keys.get("gates") or keys.get("structure")
        if stored is None:
            raise UserError(f"'{stage}' has all its heads: there is nothing to go by")
        return Structure.from_json(stored)

    def train(
        self,
        model: PreTrainedModel,
        keys: TrainingKeys,
        part: Part | None = None,
        name: str | None = None,
        score: Callable[[], float | None] | None = None,
        after: int = 0,
    ) -> None:
        """Train `model` in place on the training split; the log grows at `self.log`."""
        from compressor.training.trainer import Run, train

        work, distill = self.work, keys.distill
        features = work.features("train")
        teacher = Teacher(work, distill) if distill else None
        layers = (
            self._layer_distiller(model, distill, teacher) if teacher and distill and distill.layers else None
        )
        # A writer's teacher runs in the step: its probabilities of every word at every token would fill a disk.
        beside = work.data.kind.writes
        self.runs += 1
        self.log += train(
            model,
            Run(
                keys,
                features,
                work.data.task.collate(work.tokenizer()),
                work.scratch / f"training-{name or self.runs}",
                work.seed + after,
                work.progress,
                teacher=teacher.outputs(features) if teacher and not beside else None,
                beside=teacher.model() if teacher and beside else None,
                part=part,
                layers=layers,
                score=score or (lambda: self.score(model)),
                processes=work.processes,
            ),
        )
        if layers:
            self.learned = layers.weights()

    def _layer_distiller(self, model: PreTrainedModel, distill: Distill, teacher: Teacher) -> LayerDistiller:
        """The teacher by hidden states, with what was learned in the training before or before the source was cut."""
        from safetensors.torch import load_file

        from compressor.training.layers import FILE, LayerDistiller

        stored = self.work.source / FILE
        if self.learned is None and stored.exists():
            self.learned = load_file(stored)
        return LayerDistiller(teacher.model(), model, distill, self.learned)

    def steps(self, keys: TrainingKeys) -> int:
        """Optimiser steps of a training with these keys."""
        return steps_in(keys, len(self.work.features("train")))

    def write(
        self, model: PreTrainedModel, gates: Structure | None = None, folder: Path | None = None
    ) -> None:
        """Save a checkpoint as the stage's output, and what was learned beside it; from the main process."""
        from safetensors.torch import save_file

        from compressor.training.layers import FILE

        folder = folder or self.work.folder
        write_outputs(self.work, model, gates, folder)
        if self.learned and self.work.is_main:
            save_file(dict(self.learned), folder / FILE)

    def score(self, model: PreTrainedModel, precision: Precision = "fp32") -> float:
        """The primary metric on the selection split, turned so that more is better; `LEAST` if it is no number."""
        task = self.work.data.task
        value = self.evaluate(model) if precision == "fp32" else self._exported_metric(model, precision)
        if not math.isfinite(value):
            return LEAST
        return value if task.higher_is_better(task.primary) else -value

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Model inputs of the selection split, in batches of similar length."""
        return selection_batches(self.work, labels=False)

    def labelled_batches(self) -> Iterator[dict[str, Tensor]]:
        """The same with labels."""
        return selection_batches(self.work, labels=True)

    def sample(self, split: str, examples: int, tokens: int) -> list[dict[str, Tensor]]:
        """Labelled batches of a random part of a split."""
        return sampled(self.work, split, examples, tokens)

    def tell(self, what: str, share: float) -> None:
        """Say how far it is."""
        self.work.progress(what, share)

    def evaluate(self, model: PreTrainedModel, split: str = "selection") -> float:
        """What choices go by on a split (the task's primary metric, if it can be had there), by PyTorch."""
        from compressor.models.outputs import BATCH, torch_runner

        work, task = self.work, self.work.data.task
        features, run = work.features(split), torch_runner(model, task.settings(model.config))
        outputs = task.outputs(run, features, work.tokenizer(), work.progress, BATCH, "evaluate")
        rows = task.predictions(outputs, features, work.data.frame(split, work.progress))
        return task.judged(rows)

    def _exported_metric(self, model: PreTrainedModel, precision: Precision) -> float:
        """As `evaluate`, of the exported and quantized model, by onnxruntime."""
        from compressor.stages.evaluate import predict

        work, task = self.work, self.work.data.task
        frame = work.data.frame("selection", work.progress)
        with TemporaryDirectory(dir=work.scratch) as folder:
            exported = Path(folder) / "model"
            export_as(work, model, exported, precision)
            title = f"evaluate in {precision}"
            rows = predict(task, work.tokenizer(), exported, frame, work.progress, title)[1]
        return task.judged(rows)


def _do(do: Callable[[Context, Job], Result], work: Work, target: Target | None, job: Job) -> Result:
    return do(TaskContext(work, target), job)


def _say_nothing(what: str, share: float) -> None:
    """Progress of a process that nobody listens to."""

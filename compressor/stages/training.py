"""What `finetune` and the learned pruning methods share: a training run on the task's data."""

from __future__ import annotations

import math
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compressor.errors import UserError
from compressor.executors import ExecutorKeys, run_all
from compressor.files import appearing, digest, read_json, sha256, write_json
from compressor.models.structure import Structure
from compressor.pruning.base import At, Context, Job, Precision, Result, Target, Timing
from compressor.schema import Distill, TeacherModel, TrainingKeys, steps_in
from compressor.stages.base import Data, Work, write_outputs
from compressor.stages.timing import Models, dense_like, export_as, time_models

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from compressor.benchmark.latency_table import LatencyTable
    from compressor.cell import Cell
    from compressor.training.layers import LayerDistiller, Weights
    from compressor.training.trainer import Part

LEAST = -1e9
"""The score of a model whose metric is no number: below any other, and JSON can hold it."""
BATCH = 32
"""Examples that are looked at together when layers are measured."""
SECONDS, PROCESSES = 1.0, 4
"""Timed seconds in each process, and processes, of a model that is only a step on the way."""
WAIT = 0.1
"""Seconds between two looks at what another process makes."""


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
        """A folder beside the stage's own, which is removed when the stage is done."""
        folder = self.work.scratch.parent / f"{what}-{digest([self.work.origin, *depends])[:12]}"
        folder.mkdir(exist_ok=True)
        return folder

    def once(self, path: Path, make: Callable[[Path], None]) -> None:
        """Have the main process make `path`, if it is not there; the others wait for it."""
        if self.is_main and not path.exists():
            with appearing(path) as temporary:
                make(temporary)
        while not path.exists():
            time.sleep(WAIT)

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
        """Milliseconds by name; stored before they are used, so that a run that goes on decides the same."""
        stored = self.kept("latency", *self._where, list(models)) / "latency.json"
        self.once(stored, lambda path: write_json(path, time_models(self.work, self._cell, models)))
        times: dict[str, float] = read_json(stored)["p50_ms"]
        return times

    def latency_table(self, precision: Precision = "fp32") -> LatencyTable:
        """The table of the source's encoder in the cell that the target means."""
        from compressor.benchmark.latency_table import LatencyTable
        from compressor.models.checkpoint import read_config
        from compressor.stages.latency import latency_table

        def make(path: Path) -> None:
            config = read_config(self.work.source)
            table = latency_table(config, self._cell, precision, progress=self.work.progress)
            write_json(path, table.to_json())

        stored = self.kept("latency-table", *self._where, precision) / "table.json"
        self.once(stored, make)
        return LatencyTable.from_json(read_json(stored))

    def timing(
        self, name: str, model: Callable[[], PreTrainedModel], precision: Precision = "fp32"
    ) -> Timing:
        """How fast a model is beside the dense one, in short: what is released is measured again at length."""
        quick = {"seconds": min(SECONDS, self.work.benchmark.seconds), "processes": PROCESSES}
        work = replace(self.work, benchmark=self.work.benchmark.model_copy(update=quick))
        same = self.target is not None and self.target.at.relative_to == "same-precision"
        base: Precision = precision if same else "fp32"

        def make(path: Path) -> None:
            models: Models = {"dense": self._exported_dense(base), "pruned": model}
            write_json(path, time_models(work, self._cell, models, {"pruned": precision}))

        stored = self.kept("timing", *self._where, name, base, precision) / "timing.json"
        self.once(stored, make)
        times = read_json(stored)
        row = times["speedup"]["pruned"]
        low, high = row["ci95"]
        return Timing(times["p50_ms"]["pruned"], row["value"], (low, high), row["noisy"])

    def _exported_dense(self, precision: Precision) -> Path:
        """The dense model's folder: exported once, as many are timed beside it."""
        folder = self.work.scratch / f"dense-{precision}"
        self.once(folder, lambda path: export_as(self.work, dense_like(self.model()), path, precision))
        return folder

    @property
    def _cell(self) -> Cell:
        """The cell that the target means."""
        cell = (self.target.at if self.target else At()).cell(self.work.benchmark.cells())
        assert cell is not None
        return cell

    @property
    def _where(self) -> tuple[Any, ...]:
        """What timings depend on beside the models."""
        from compressor.benchmark.machine import fingerprint, machine_key

        return machine_key(fingerprint()), self._cell.keys()

    def forget(self, name: str) -> None:
        """Remove a named training's checkpoints."""
        shutil.rmtree(self.work.scratch / f"training-{name}", ignore_errors=True)

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

        work = self.work
        features = work.features("train")
        layers = self._layer_distiller(model, keys.distill) if keys.distill and keys.distill.layers else None
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
                teacher=self._teacher_outputs(keys.distill, features),
                beside=self._teacher_beside(keys.distill),
                part=part,
                layers=layers,
                score=score or (lambda: self.score(model)),
                processes=work.processes,
            ),
        )
        if layers:
            self.learned = layers.weights()

    def steps(self, keys: TrainingKeys) -> int:
        """Optimiser steps of a training with these keys."""
        return steps_in(keys, len(self.work.features("train")))

    def _layer_distiller(self, model: PreTrainedModel, distill: Distill) -> LayerDistiller:
        """The teacher by hidden states, with what was learned in the training before or before the source was cut."""
        from safetensors.torch import load_file

        from compressor.training.layers import FILE, LayerDistiller

        stored = self.work.source / FILE
        if self.learned is None and stored.exists():
            self.learned = load_file(stored)
        return LayerDistiller(_teacher(self.work, distill)[1](), model, distill, self.learned)

    def _teacher_outputs(self, distill: Distill | None, features: Any) -> Any:
        """The teacher's stored outputs, unless it runs in the step."""
        writes = self.work.data.kind.writes
        return teacher_outputs(self.work, distill, features) if distill and not writes else None

    def _teacher_beside(self, distill: Distill | None) -> PreTrainedModel | None:
        """The teacher where it runs in the step: probabilities of every word at every token would fill a disk."""
        return _teacher(self.work, distill)[1]() if distill and self.work.data.kind.writes else None

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
        return self._batches(())

    def labelled_batches(self) -> Iterator[dict[str, Tensor]]:
        """The same with labels."""
        return self._labelled(self._batches(self.work.data.task.label_columns))

    def _labelled(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Batches with their labels; of a task without any, random ones, so that the loss has a slope everywhere.

        A model is at the very bottom of its distance to its own embeddings: no gradient there says what matters. That
        of the distance to a random vector says how far the embedding moves, just as the Fisher information takes
        labels drawn at random and not the true ones (Kunstner, Balles, Hennig: "Limitations of the Empirical Fisher
        Approximation for Natural Gradient Descent", 2019).
        """
        from torch import Generator, randn

        labels = self.work.data.task.label_columns
        random = Generator().manual_seed(self.seed)
        for batch in batches:
            rows = len(batch["input_ids"])
            yield batch if labels else batch | {"labels": randn(rows, self._width, generator=random)}

    @property
    def _width(self) -> int:
        from compressor.models.checkpoint import read_config

        width: int = read_config(self.work.source).hidden_size
        return width

    def sample(self, split: str, examples: int, tokens: int) -> list[dict[str, Tensor]]:
        """Labelled batches of a random part of a split, by the recipe's seed."""
        from compressor.models.outputs import MODEL_INPUTS, columns

        task, frame = self.work.data.task, getattr(self.work.data.task.examples, split)
        chosen = frame.sample(min(examples, len(frame)), random_state=self.seed)
        features = task.features(chosen, self.work.tokenizer())
        rows = columns(features, (*MODEL_INPUTS, *task.label_columns))
        ends = list(accumulate(len(row["input_ids"]) for row in rows))
        return list(self._labelled(self._in_batches(rows[: max(1, bisect_right(ends, tokens))])))

    def tell(self, what: str, share: float) -> None:
        """Say how far it is."""
        self.work.progress(what, share)

    def _batches(self, labels: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
        from compressor.models.outputs import MODEL_INPUTS, columns

        return self._in_batches(columns(self.work.features("selection"), (*MODEL_INPUTS, *labels)))

    def _in_batches(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
        """Batches of similar length."""
        rows.sort(key=lambda row: len(row["input_ids"]))
        collate = self.work.data.task.collate(self.work.tokenizer())
        for start in range(0, len(rows), BATCH):
            self.work.progress("measure layers", start / len(rows))
            yield collate([dict(row) for row in rows[start : start + BATCH]])

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


def teacher_outputs(work: Work, distill: Distill, features: Any) -> Any:
    """The teacher's logits for the training `features`: computed once a run, then read from its shared folder.

    A teacher may read inputs that its student lacks (token types): it gets its own features of the same tokens.

    Raises:
        UserError: the teacher's tokenizer differs from the student's, or its head is untrained.
    """
    from compressor.models.architecture import architecture_of
    from compressor.models.outputs import collect_outputs, load_outputs, save_outputs, torch_runner

    task = work.data.task
    content, model = _teacher(work, distill)
    key = digest([content, task.model_config(), _content(features)])[:16]
    path = work.shared / f"teacher-{key}.npz"
    if not path.exists():
        teacher, tokenizer = model(), work.tokenizer()
        inputs = list(architecture_of(teacher.config).inputs)
        if inputs != tokenizer.model_input_names:
            tokenizer.model_input_names = inputs
            features = task.features(task.examples.train, tokenizer)
        outputs = collect_outputs(
            torch_runner(teacher),
            features,
            task.collate(tokenizer),
            task.output_names,
            work.progress,
            title="teacher",
        )
        if work.is_main:
            save_outputs(path, outputs)
        return outputs
    return load_outputs(path)


def _content(features: Any) -> str:
    from compressor.models.outputs import columns

    return digest([row["input_ids"] for row in columns(features, ["input_ids"])])


def _teacher(work: Work, distill: Distill) -> tuple[Any, Callable[[], PreTrainedModel]]:
    """What identifies the teacher's content, and a function that opens it."""
    from compressor.models import checkpoint
    from compressor.models.source import model_content

    task = work.data.task
    if isinstance(distill.teacher, str):
        folder = work.folder_of(distill.teacher)
        return sha256(folder), lambda: checkpoint.load(folder, task.auto_class)
    assert isinstance(distill.teacher, TeacherModel)
    name = distill.teacher.model

    def open_teacher() -> PreTrainedModel:
        model, trained = checkpoint.open_source(name, task.auto_class, task.model_config())
        if not trained:
            raise UserError(f"the teacher '{name}' has no head trained for this task and these labels")
        return model

    return model_content(name), open_teacher

"""One training run on transformers.Trainer: deterministic order, exact resume, progress with time left."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from compressor.errors import RunError
from compressor.models.architecture import architecture_of, structure_of
from compressor.models.language import memory_length
from compressor.models.outputs import Collate, Features, Outputs, columns
from compressor.schema import Progress, TrainingKeys, steps_in, steps_of
from compressor.training.batches import LengthGrouped
from compressor.training.best import Best
from compressor.training.distillation import (
    IGNORED,
    PREFIX,
    WithTeacher,
    collate_with_teacher,
    distillation_loss,
    teacher_forced,
)
from compressor.training.layers import LayerDistiller
from compressor.training.optimizer import clipping_the_rest, keep_steady, make_optimizer
from compressor.training.streams import Memory, Streams

log = logging.getLogger(__name__)

SAVES = 10
"""Checkpoints a run writes: a killed run loses at most a tenth."""
SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine_with_min_lr",
    "constant": "constant_with_warmup",
}
"""By our names, transformers'."""
LOSSES = ("loss", "train_loss")
"""Of the steps since the last row of the log, and of the whole run."""


class Part(Protocol):
    """What a pruning method adds to a run (see the pruner contract)."""

    def parameter_groups(self) -> list[dict[str, Any]]: ...  # noqa: D102
    def before_step(self, step: int, total: int) -> None: ...  # noqa: D102
    def loss(self) -> Tensor | None: ...  # noqa: D102
    def log(self) -> dict[str, float]: ...  # noqa: D102


@dataclass
class Run:
    """Everything a training run needs besides the model. `folder` holds its checkpoints.

    `teacher` are a teacher's stored outputs, `beside` is one that runs in the step. `score` rates the model as it
    is, more is better, where the keys ask for the best state; `None` rules it out.
    """

    keys: TrainingKeys
    features: Features
    collate: Collate
    folder: Path
    seed: int
    progress: Progress
    title: str = "train"
    teacher: Outputs | None = None
    beside: PreTrainedModel | None = None
    part: Part | None = None
    layers: LayerDistiller | None = None
    score: Callable[[], float | None] | None = None
    processes: int = 1

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return steps_in(self.keys, len(self.features))

    @property
    def evaluate_every(self) -> int:
        """Optimiser steps between two looks for the best state; 0: none."""
        share = self.keys.evaluate_every
        return max(1, steps_of(share, self.total_steps)) if share else 0


def train(model: PreTrainedModel, run: Run) -> list[dict[str, float]]:
    """Train `model` in place and return the log: a row every hundredth of the run.

    Resumes from the newest whole checkpoint in `run.folder`; the result is the same as without the break.
    The log leaves out what is no finite number, such as the norm of gradients that overflowed in one step.

    Raises:
        RunError: the loss is no finite number any more.
    """
    set_seed(run.seed)
    with run.layers.beside(model) if run.layers else nullcontext():
        trainer = _Trainer(model, run)
        resumed = newest_checkpoint(run.folder)
        if resumed and trainer.memory:
            trainer.memory.load(trainer.memory_file(resumed), str(trainer.args.device))
        try:
            trainer.train(resume_from_checkpoint=resumed)
        finally:
            trainer.hook.remove()
        if trainer.best:
            trainer.offer()
            trainer.accelerator.wait_for_everyone()
            trainer.best.restore(model)
    rows = [
        {key: float(value) for key, value in row.items() if _is_finite(value)}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    model.eval()
    return rows


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end (its state file is the last that is written)."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for checkpoint in reversed(found):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(checkpoint)
    return None


def freeze(model: PreTrainedModel, keys: TrainingKeys) -> None:
    """Keep the embeddings and the layers that `keys` names from being trained; layers that are gone need no care."""
    if not (keys.freeze_embeddings or keys.freeze_layers):
        return
    frozen: list[nn.Parameter] = []
    architecture = architecture_of(model.config)
    if keys.freeze_embeddings:
        paths = architecture.embeddings  # an encoder's lie in one module, with their norm
        places = paths if architecture.writes_text else tuple({path.partition(".")[0] for path in paths})
        named = model.base_model.named_parameters()
        frozen += [parameter for name, parameter in named if name.startswith(places)]
    stack = architecture.stacks[0]
    present = [layer.index for layer in structure_of(model).layers if layer.stack == stack.name]
    for index, layer in zip(present, architecture.layers(model, stack), strict=True):
        frozen += layer.parameters() if index in keys.freeze_layers else []
    for parameter in frozen:
        parameter.requires_grad_(False)


class _Trainer(Trainer):
    def __init__(self, model: PreTrainedModel, run: Run) -> None:
        self.run = run
        self.offered = 0
        self.memory: Memory | None = None
        self.sampler = self._sampler(model)
        freeze(model, run.keys)
        super().__init__(
            model=model,
            args=_arguments(run),
            train_dataset=WithTeacher(run.features, run.teacher),
            data_collator=collate_with_teacher(run.collate),
            callbacks=[_Callback(run)],
        )
        self.model_accepts_loss_kwargs = False
        self.hook = model.register_forward_hook(self._more_terms, with_kwargs=True)
        self.best = Best(run.folder) if run.score and run.evaluate_every else None
        for callback in ("ProgressCallback", "PrinterCallback"):
            for have in list(self.callback_handler.callbacks):
                if type(have).__name__ == callback:
                    self.remove_callback(have)

    def _sampler(self, model: PreTrainedModel) -> Sampler[int]:
        """Batches of similar length or, of a model with a memory, a text in parallel streams."""
        run = self.run
        if not memory_length(model.config):
            lengths = [len(row["input_ids"]) for row in columns(run.features, ["input_ids"])]
            return LengthGrouped(lengths, run.keys.batch_size, run.seed)
        first, last = (len(run.features[at]["input_ids"]) for at in (0, -1))
        whole = len(run.features) - (last < first)  # only the text's last segment can be shorter
        streams = Streams(whole, run.keys.batch_size, run.seed)
        self.memory = Memory(streams.steps)
        return streams

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler

    def create_optimizer(self) -> torch.optim.Optimizer:
        """One in groups, with the method's."""
        groups = self.run.part.parameter_groups() if self.run.part else []
        self.optimizer = make_optimizer(self.model, self.run.keys, groups)
        self.accelerator.clip_grad_norm_ = clipping_the_rest(self.accelerator.clip_grad_norm_, groups)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The keys' schedule for every group but the steady ones."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        keep_steady(scheduler)
        return scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One micro-step; the method's schedule and evaluations go by optimiser steps."""
        step = self.state.global_step
        if self.best and step and step != self.offered and step % self.run.evaluate_every == 0:
            self.offer()
        if self.run.part:
            self.run.part.before_step(step, self.state.max_steps)
        return super().training_step(model, inputs, *args, **kwargs)

    def offer(self) -> None:
        """Rate the model as it is, and keep its state if it is the best one so far."""
        assert self.best is not None
        assert self.run.score is not None
        self.offered = self.state.global_step
        score = self.run.score()
        if score is not None and self.best.beaten_by(score) and self.is_world_process_zero():
            self.best.keep(self.model, score, self.offered)

    def _more_terms(self, model: nn.Module, _args: Any, inputs: dict[str, Any], outputs: Any) -> Any:
        """The terms with parameters of their own: inside the forward pass, or several processes would miss them."""
        if not model.training:
            return None
        terms = [self.run.part.loss()] if self.run.part else []
        if self.run.layers:
            with self.accelerator.autocast():
                distance = self.run.layers.loss(inputs, outputs["hidden_states"])
            terms.append(self.run.layers.keys.layers * distance)
        found = [term for term in terms if term is not None]
        if not found:
            return None
        # A plain dict: among several processes transformers' own outputs are rebuilt, and know no other names.
        return {**outputs, "more_terms": torch.stack(found).sum()}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Labels' loss (where there are labels), distillation and the method's own term."""
        teacher = {k.removeprefix(PREFIX): inputs.pop(k) for k in list(inputs) if k.startswith(PREFIX)}
        if self.run.layers:
            inputs["output_hidden_states"] = True
        if self.memory:
            inputs["memory"] = self.memory.before(self.state.global_step)
        mask = inputs.get("attention_mask")
        if self.run.beside is not None:
            teacher, mask = teacher_forced(self.run.beside, inputs), inputs["labels"] != IGNORED
        outputs = model(**inputs)
        if self.memory:
            self.memory.after(outputs["memory"])
        loss = outputs.get("loss")
        distill = self.run.keys.distill
        if distill and teacher:
            assert mask is not None
            soft = distillation_loss(outputs, teacher, mask.bool(), distill.temperature)
            # Without labels the teacher's outputs have their share too.
            share = 1 - distill.layers if loss is None else distill.alpha
            loss = share * soft + (distill.rest * loss if distill.rest and loss is not None else 0)
        if "more_terms" in outputs:
            loss = loss + outputs["more_terms"]
        return (loss, outputs) if return_outputs else loss

    def memory_file(self, checkpoint: str) -> Path:
        """Where what this process carries from step to step lies in a checkpoint."""
        return Path(checkpoint) / f"memory-{self.args.process_index}.safetensors"

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.memory:  # first: what is written last says that a checkpoint is whole
            self.memory.save(self.memory_file(f"{self.args.output_dir}/checkpoint-{self.state.global_step}"))
        super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the method's figures to the training log."""
        if "loss" in logs and self.run.part:
            logs |= self.run.part.log()
        super().log(logs, *args, **kwargs)


class _Callback(TrainerCallback):
    def __init__(self, run: Run) -> None:
        self.run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.run.progress(self.run.title, state.global_step / state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            figures = ", ".join(f"{key} {value:.4g}" for key, value in logs.items())
            log.info("%s, step %d of %d: %s", self.run.title, state.global_step, state.max_steps, figures)
        if not all(_is_finite(value) for key, value in logs.items() if key in LOSSES):
            raise RunError(
                f"the loss is no finite number at step {state.global_step} of {state.max_steps}; lower "
                f"learning_rate (now {self.run.keys.learning_rate:g}) or max_grad_norm, or lengthen warmup"
            )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _arguments(run: Run) -> TrainingArguments:
    keys, total = run.keys, run.total_steps
    micro = keys.batch_size // (run.processes * keys.gradient_accumulation)
    return TrainingArguments(
        output_dir=str(run.folder),
        max_steps=total,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=keys.gradient_accumulation,
        learning_rate=keys.learning_rate,
        lr_scheduler_type=SCHEDULES[keys.schedule],
        lr_scheduler_kwargs={"min_lr_rate": keys.final_rate} if keys.schedule == "cosine" else {},
        warmup_steps=steps_of(keys.warmup, total),
        max_grad_norm=keys.max_grad_norm,
        bf16=keys.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=run.seed,
        save_strategy="steps",
        save_steps=max(1, math.ceil(total / SAVES)),
        save_total_limit=1,
        logging_steps=max(1, total // 100),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=True,
        ddp_backend=None if torch.cuda.is_available() else ("gloo" if run.processes > 1 else None),
    )

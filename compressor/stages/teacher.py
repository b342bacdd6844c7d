"""The teacher of a training: another stage's model or one from outside, and what it says of the training split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.errors import UserError
from compressor.files import digest, sha256
from compressor.schema import Distill, TeacherModel
from compressor.stages.base import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Teacher:
    """What `distill` names."""

    def __init__(self, work: Work, distill: Distill) -> None:
        self.work = work
        self._stage = distill.teacher if isinstance(distill.teacher, str) else None
        self._source = distill.teacher.model if isinstance(distill.teacher, TeacherModel) else ""

    @property
    def content(self) -> Any:
        """What identifies its weights."""
        from compressor.models.source import model_content

        return sha256(self.work.folder_of(self._stage)) if self._stage else model_content(self._source)

    def model(self) -> PreTrainedModel:
        """The model, opened anew.

        Raises:
            UserError: it comes from outside, and its head is untrained.
        """
        from compressor.models import checkpoint

        task = self.work.data.task
        if self._stage:
            return checkpoint.load(self.work.folder_of(self._stage), task.auto_class)
        model, trained = checkpoint.open_source(self._source, task.auto_class, task.model_config())
        if not trained:
            raise UserError(
                f"the teacher '{self._source}' has no head trained for this task and these labels"
            )
        return model

    def outputs(self, features: Any) -> Any:
        """Its logits for the training `features`: computed once a run, then read from the run's shared folder.

        It may read inputs that its student lacks (token types): it gets its own features of the same tokens.

        Raises:
            UserError: its tokenizer differs from the student's, or its head is untrained.
        """
        from compressor.models.architecture import architecture_of
        from compressor.models.outputs import (
            collect_outputs,
            columns,
            load_outputs,
            save_outputs,
            torch_runner,
        )

        work, task = self.work, self.work.data.task
        tokens = digest([row["input_ids"] for row in columns(features, ["input_ids"])])
        key = digest([self.content, task.model_config(), tokens])[:16]
        path = work.shared / f"teacher-{key}.npz"
        if path.exists():
            return load_outputs(path)
        model, tokenizer = self.model(), work.tokenizer()
        inputs = list(architecture_of(model.config).inputs)
        if inputs != tokenizer.model_input_names:
            tokenizer.model_input_names = inputs
            features = task.features(task.examples.train, tokenizer)
        outputs = collect_outputs(
            torch_runner(model),
            features,
            task.collate(tokenizer),
            task.output_names,
            work.progress,
            title="teacher",
        )
        if work.is_main:
            save_outputs(path, outputs)
        return outputs

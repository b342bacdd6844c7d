"""`finetune`: train on the task; after `prune` with the structure held as gates, after `slice` the small model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from compressor.schema import TrainingKeys, training_keys
from compressor.stages.base import Stage, Work, write_outputs
from compressor.stages.context import TaskContext


class Finetune(Stage, TrainingKeys):
    """Fine-tunes all weights. `fill` first puts noise of that relative size into the layers' exact zeros.

    Example:
        - finetune: {epochs: 4, fill: 0.01, distill: {teacher: teacher, temperature: 2, alpha: 0.9}}
    """

    verb: ClassVar[str] = "finetune"
    trains: ClassVar[bool] = True

    fill: Annotated[float, Field(ge=0)] = 0.0

    @property
    def training(self) -> TrainingKeys:
        """The training keys alone."""
        return training_keys(self)

    def run(self, work: Work) -> dict[str, Any]:
        """Train and save; report the log and the metric on the selection split."""
        from compressor.models import checkpoint
        from compressor.training.fill import fill_zeros

        model = checkpoint.load(work.source)
        filled = fill_zeros(model, self.fill, work.seed) if self.fill else 0
        context = TaskContext(work)
        context.train(model, self.training)
        metric = context.evaluate(model)
        gates = model.compressor_gates
        write_outputs(work, model, gates.structure if gates else None)
        return {"log": context.log, "selection_metric": metric, "filled": filled}

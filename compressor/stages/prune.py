"""`prune`: one method of the registry chooses what to keep; the result is held to it by gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import SerializeAsAny, field_validator

from compressor.executors import ExecutorKeys
from compressor.pruning.base import Pruner, method_class
from compressor.pruning.target import Target
from compressor.schema import TrainingKeys, json_of
from compressor.stages.base import Stage, Work
from compressor.stages.context import TaskContext

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from compressor.benchmark.schema import BenchmarkKeys
    from compressor.stages.release import GateKeys


class Prune(Stage):
    """Runs a method: its keys stand beside `method`.

    Example:
        - prune: {method: movement, from: model, distill: {teacher: teacher}}
    """

    verb: ClassVar[str] = "prune"
    trains: ClassVar[bool] = True

    pruner: SerializeAsAny[Pruner]
    target: Target | None = None
    """The recipe's, where the method aims at such a goal."""

    @field_validator("pruner", mode="before")
    @classmethod
    def _of_the_method(cls, value: Any) -> Any:
        return method_class(value["method"])(**value) if isinstance(value, dict) else value

    @property
    def training(self) -> TrainingKeys | None:
        """The method's training keys, if it trains."""
        return self.pruner.training

    @property
    def training_at(self) -> tuple[str, ...]:
        """Where the method's lie."""
        return self.pruner.training_at

    @property
    def references(self) -> dict[tuple[str, ...], str]:
        """Its teacher, and the stages that guide its method."""
        guides = {(key,): getattr(self.pruner, key) for key in self.pruner.guides}
        return super().references | {key: name for key, name in guides.items() if name}

    @property
    def uses_metric(self) -> bool:
        """Whether its method chooses by the task's metric, always or for such a target."""
        target = self.target
        chosen = target is not None and (target.max_metric_drop is not None or target.at.precision == "auto")
        return super().uses_metric or self.pruner.uses_metric or chosen

    def effort(self, config: PretrainedConfig) -> float:
        """A search may train many times."""
        return self.pruner.effort(config)

    @property
    def content(self) -> dict[str, Any]:
        """All but where a search tries its candidates."""
        found = super().content
        if self.pruner.version > 1:
            found["version"] = self.pruner.version
        if isinstance(self.pruner, ExecutorKeys):
            where = ExecutorKeys.model_fields
            found["pruner"] = {key: value for key, value in found["pruner"].items() if key not in where}
        return found

    def circumstances(self, benchmark: BenchmarkKeys, gates: GateKeys) -> Any:
        """A method that goes by times depends on this machine, and on the cell that is meant."""
        if self.target is None or not (self.target.timed or self.pruner.reads_table(self.target)):
            return None
        from compressor.benchmark.machine import fingerprint, machine_key

        cell = self.target.at.cell(benchmark.cells())
        return [machine_key(fingerprint()), cell and cell.keys()]

    def aiming(self, target: Target | None) -> Prune:
        """Itself with the recipe's target, if its method can aim at it."""
        fits = target is not None and set(target.given()) <= self.pruner.targets
        return self.model_copy(update={"target": target}) if fits else self

    def members(self) -> list[str]:
        """Names of the models it makes."""
        return self.pruner.members(self.target)

    def run(self, work: Work) -> dict[str, Any]:
        """Prune and save every member of the family as an unsliced checkpoint with gates."""
        from compressor.models import checkpoint
        from compressor.models.gates import Gates

        model = checkpoint.load(work.source)
        context = TaskContext(work, self.target)
        members = self.members()
        info: dict[str, Any] = {"method": json_of(self.pruner), "members": {}}
        for pruned in self.pruner.prune(model, context):
            with Gates(pruned.model, pruned.structure):
                metric = context.evaluate(pruned.model)
            folder = work.folder if len(members) == 1 else work.folder / pruned.member
            context.write(pruned.model, pruned.structure, folder)
            info["members"][pruned.member] = pruned.report | {
                "selection_metric": metric,
                "sliced_density": pruned.structure.density(),
            }
        return info | {"log": context.log}

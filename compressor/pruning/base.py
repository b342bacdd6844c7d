"""The contract of a pruning method, and the registry.

A method is a pydantic model whose fields are its recipe keys. Importing it must not import torch: recipes are
validated without it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.errors import UserError
from compressor.models.structure import Structure
from compressor.pruning.context import Context
from compressor.pruning.target import Target, members_of
from compressor.schema import Keys, TrainingKeys

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass
class Pruned:
    """A model with everything the method leaves behind folded into its weights, and the binary structure.

    `report` is plain data for the run's results. `member` names it within a family.
    """

    model: PreTrainedModel
    structure: Structure
    report: dict[str, Any] = field(default_factory=dict)
    member: str = "pruned"


class Pruner(Keys):
    """Base of all methods. Docstring: the paper, what is removed, what training it needs, a recipe."""

    guides: ClassVar[tuple[str, ...]] = ()
    """Its keys that name another stage whose structure it reads."""
    training_at: ClassVar[tuple[str, ...]] = ()
    """The key under which its training keys lie, where they are not its own."""
    needs_target: ClassVar[bool] = False
    """Whether it must have one of the goals in `targets`."""
    whole_layers: ClassVar[bool] = False
    """Whether it drops layers whole and nothing inside them: all that can be done where layers are one."""
    prunes_writers: ClassVar[bool] = False
    """Whether it prunes encoder-decoders."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """What `target.at.precision` may be."""

    version: ClassVar[int] = 1
    """Raised when the code changes what the method makes: older results are not reused."""

    method: str

    @property
    def targets(self) -> frozenset[str]:
        """Goals of the recipe's `target` block that it can aim at."""
        return frozenset()

    @property
    def uses_metric(self) -> bool:
        """Whether the task's metric decides about its result."""
        return False

    @property
    def training(self) -> TrainingKeys | None:
        """Its training keys, if it trains."""
        return None

    def reads_table(self, target: Target | None) -> bool:
        """Whether it comes to the target by a latency table, which not all families have."""
        return False

    def effort(self, config: PretrainedConfig) -> float:
        """Roughly how many epochs of the whole model its trainings take together."""
        return self.training.epochs if self.training else 0.0

    def check_family(self, config: PretrainedConfig) -> None:
        """That the method can work on this family.

        Raises:
            UserError: it removes parts of layers, and all layers of this family are one; or this family is of
                encoder-decoders, and it is for encoders.
        """
        from compressor.models.architecture import ARCHITECTURES, architecture_of

        if architecture_of(config).writes_text and not self.prunes_writers:
            fit = ", ".join(name for name in METHODS if method_class(name).prunes_writers)
            raise UserError(
                f"{self.method} is for encoders, a {config.model_type} model has a decoder too; take one of {fit}"
            )
        if architecture_of(config).shares_layers and not self.whole_layers:
            others = ", ".join(name for name, family in ARCHITECTURES.items() if not family.shares_layers)
            raise UserError(
                f"{self.method}: the layers of {config.model_type} share their weights, so nothing inside them can "
                f"go; drop whole ones (layer-drop, greedy), or take one of {others}"
            )

    def check(self, config: PretrainedConfig) -> None:
        """Called before the first stage: raise UserError where this method cannot work on such a model."""

    def check_target(self, config: PretrainedConfig, target: Target | None) -> None:
        """Called beside `check`: raise UserError where it cannot bring such a model to the target."""

    def members(self, target: Target | None) -> list[str]:
        """Names of the models it makes."""
        return list(members_of(target))

    @abstractmethod
    def prune(self, model: PreTrainedModel, context: Context) -> Iterable[Pruned]:
        """Choose what to keep and fold the rest; the model may be changed in place."""


METHODS = {
    "movement": "compressor.pruning.movement:Movement",
    "cofi": "compressor.pruning.cofi:Cofi",
    "layer-drop": "compressor.pruning.layer_drop:LayerDrop",
    "heads": "compressor.pruning.heads:Heads",
    "greedy": "compressor.pruning.greedy:Greedy",
    "speed": "compressor.pruning.speed:Speed",
    "head-gates": "compressor.pruning.head_gates:HeadGates",
}
"""Registry: method name -> where its class is."""


def method_class(name: str) -> type[Pruner]:
    """The class behind a method's name; KeyError if there is none."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)

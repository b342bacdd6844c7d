"""Where learning ends: the share that must have gone, and how decided gates are brought there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from compressor.errors import UserError
from compressor.files import digest
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure
from compressor.pruning.aim import aim
from compressor.pruning.cofi.training import CofiPart
from compressor.pruning.cofi.values import Constraint, ParameterShare, TimeShare, Values
from compressor.pruning.context import Context, Timing
from compressor.pruning.goal import Goal
from compressor.pruning.target import members_of

if TYPE_CHECKING:
    from compressor.pruning.cofi import Cofi

FINE, STEP = 0.001, 0.01
"""How near gates are brought to a share of time, and by how much more is asked where none come near it."""


class End(Protocol):
    """One target of the run."""

    @property
    def member(self) -> str:
        """The name of the model made for it."""

    @property
    def share(self) -> float:
        """What the gates are to remove."""

    @property
    def constraint(self) -> Constraint:
        """What it is a share of."""

    def settle(self, part: CofiPart) -> tuple[Values, dict[str, Any]]:
        """The decided gates brought to the target, and what is to be reported of how."""


@dataclass(frozen=True)
class SparsityEnd:
    """A share of the layers' parameters."""

    member: str
    share: float
    constraint: Constraint

    def settle(self, part: CofiPart) -> tuple[Values, dict[str, Any]]:
        """As few gates moved as are needed."""
        return part.gates.nearest(self.share, self.constraint, part.tolerance), {}


@dataclass(frozen=True)
class TimeEnd:
    """A speed. What the gates leave is exported and measured, and the share corrected until it is reached."""

    member: str
    goal: Goal
    constraint: TimeShare
    structure: Structure
    context: Context

    @property
    def dense_ms(self) -> float:
        """The dense model's time by the table."""
        return self.goal.dense_ms

    @property
    def share(self) -> float:
        """The share of it that must go."""
        return 1 - self.goal.asked_ms / self.dense_ms

    def settle(self, part: CofiPart) -> tuple[Values, dict[str, Any]]:
        """Gates whose exported model is as fast as asked, and hardly faster.

        Raises:
            GateError: none of those measured is.
        """
        found: dict[str, tuple[Values, Structure]] = {}

        def search(budget_ms: float) -> str | None:
            values = within(part, 1 - budget_ms / self.dense_ms)
            if values is None:
                return None
            structure = values.structure(self.structure)
            name = digest(structure.to_json())
            found[name] = values, structure
            return name

        def predict(name: str) -> float:
            return self.dense_ms * (1 - part.removed(found[name][0]))

        def measure(name: str, turn: int) -> Timing:
            return self.context.timing(
                f"{name}-{turn}", lambda: slice_model(self.context.model(), found[name][1])
            )

        attempts = aim(self.goal.asked_ms, search, predict, measure, self.goal.reach)
        return found[attempts[-1].choice][0], self.goal.report(attempts)


def within(part: CofiPart, least: float) -> Values | None:
    """The decided gates, moved as little as makes them remove the share `least`: few gates come to it exactly."""
    shares = (least + step * STEP for step in range(int((1 - least) / STEP) + 1))
    nearest = (part.gates.nearest(share, part.constraint, FINE) for share in shares)
    return next((values for values in nearest if part.removed(values) >= least - FINE), None)


def ends_of(keys: Cofi, structure: Structure, context: Context) -> list[End]:
    """The targets of a run, those that remove least first.

    Raises:
        UserError: gates of these kinds cannot make the model so fast.
    """
    target = context.target
    assert target is not None
    goals = {member: value or 0.0 for member, value in members_of(target).items()}
    if not target.timed:
        share = ParameterShare(structure.sizes)
        sparse: list[End] = [SparsityEnd(member, value, share) for member, value in goals.items()]
        return sorted(sparse, key=lambda end: end.share)
    table = context.latency_table()
    time, kind = TimeShare(table), target.given()[0]
    timed = [
        TimeEnd(member, Goal(kind, value, table.dense_ms), time, structure, context)
        for member, value in goals.items()
    ]
    most = keys.most(time, structure)
    for end in timed:
        end.goal.check_needed()
        if end.share > most:
            raise UserError(
                f"target.{kind} {end.goal.value:g} cannot be learned here: the dense model takes {end.dense_ms:.3g} "
                f"ms, of which gates of {', '.join(keys.granularity)} can be expected to save {most:.1%} at most"
            )
    return sorted(timed, key=lambda end: end.share)

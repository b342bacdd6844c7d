"""The gates that are learned: their logits, and what they are worth while training and after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from compressor.models.structure import Structure
from compressor.pruning.cofi import EVERY
from compressor.pruning.cofi.values import Constraint, Place, Slot, Values, slots_of
from compressor.pruning.hard_concrete import BETA, decide, noise_like, open_probability, sample
from compressor.pruning.lagrangian import Lagrangian

LIMIT = math.log(100)
"""Logits are held within this distance of 0."""
SHARPNESS = 0.8 / BETA
"""Of what open gates are worth in the end: the paper's code calls 0.8 the magical number."""
SPREAD = 0.01
"""Standard deviation of the first logits."""
REACH = 20.0
"""A shift that opens or closes every gate."""
HALVINGS = 50

Kinds = Collection[str]
FINE = (("neuron",), ("neuron", "head"), ("neuron", "head", "hidden"))
"""Kinds that are moved together to come to a target, the finest first."""
NONE: Mapping[str, float] = {}


class LearnedGates(nn.Module):
    """Hard-concrete gates of some `kinds` for a model with whole layers; the kinds left out stay at 1.

    In training they are as the last `draw` made them, otherwise as the published rule decides, or as `settled`.
    """

    def __init__(
        self, structure: Structure, kinds: Kinds, first: Callable[[str], float], seed: int, align: int = 1
    ) -> None:
        """`first`: the mean of the first logits of a kind; `align`: decided widths are multiples of it."""
        super().__init__()
        self.align = align
        self.slots = list(slots_of(structure))
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.ParameterDict()
        for slot in self.slots:
            if slot.kind in kinds:
                spread = SPREAD * torch.randn((slot.rows, slot.size), generator=generator)
                self.logits[slot.name] = nn.Parameter(first(slot.kind) + spread)
        self.lagrangian = Lagrangian()
        self.noise: dict[str, Tensor] = {}
        self.settled: Values | None = None

    def learns(self, kind: str) -> bool:
        """Whether gates of that kind are learned."""
        return any(slot.kind == kind and slot.name in self.logits for slot in self.slots)

    def draw(self, seed: int) -> None:
        """Fresh noise, used until the next draw."""
        generator = torch.Generator().manual_seed(seed)
        self.noise = {name: noise_like(logits, generator) for name, logits in self.logits.items()}

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring every logit back within `LIMIT`: called after each optimiser step."""
        for logits in self.logits.values():
            logits.clamp_(-LIMIT, LIMIT)

    def values(self) -> Values:
        """What the gates are worth in this forward pass."""
        if self.training:
            return self._values(lambda slot, logits: sample(logits, self.noise[slot.name]))
        return self.settled or self.decided()

    def probabilities(self) -> Values:
        """The probability of every gate to be open."""
        return self._values(lambda _, logits: open_probability(logits))

    @torch.no_grad()
    def decided(self, shifts: Mapping[str, float] = NONE) -> Values:
        """The gates without chance; `shifts` open gates of a kind (or close them, where negative)."""

        def rule(slot: Slot, logits: Tensor) -> Tensor:
            multiple = self.align if slot.kind in ("hidden", "neuron") else 1
            shift = shifts.get(slot.kind, 0.0)
            return decide(logits, SHARPNESS, shift, least=slot.kind == "hidden", multiple=multiple)

        return self._values(rule).canonical()

    def nearest(self, target: float, constraint: Constraint, tolerance: float) -> Values:
        """The decided gates, of which as few as needed are closed or opened again to come to `target`.

        The finest kinds are tried first: what matters least (or most) in its row goes (or comes back). Where they
        don't suffice all kinds are moved together, and the finest ones again from there.
        """
        best = self.decided()

        def gap(values: Values) -> float:
            return float(constraint(values.open())) - target

        def bisect(base: float, kinds: Kinds) -> tuple[float, float]:
            nonlocal best
            low, high = -REACH, REACH
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                values = self.decided(dict.fromkeys(EVERY, base) | dict.fromkeys(kinds, middle))
                low, high = (middle, high) if gap(values) > 0 else (low, middle)
                best = min(best, values, key=lambda found: abs(gap(found)))
            return low, high

        def refine(base: float) -> None:
            for kinds in FINE:
                if abs(gap(best)) > tolerance:
                    bisect(base, kinds)

        refine(0.0)
        if abs(gap(best)) > tolerance:
            for base in bisect(0.0, EVERY):
                refine(base)
        return best

    def _values(self, rule: Callable[[Slot, Tensor], Tensor]) -> Values:
        hidden: Tensor | None = None
        units: dict[Place, Tensor] = {}
        wholes: dict[Place, Tensor] = {}
        like = next(iter(self.logits.values()))
        for slot in self.slots:
            learned = slot.name in self.logits
            made = rule(slot, self.logits[slot.name]) if learned else like.new_ones((slot.rows, slot.size))
            if slot.place is None:
                hidden = made.squeeze(0)
            elif slot.kind in ("layer", "ffn"):
                wholes[slot.place] = made.squeeze(-1)
            else:
                units[slot.place] = made
        assert hidden is not None
        return Values(hidden, units, wholes)

"""A context without pipeline: batches of random tokens, a made-up latency table, and a clock that believes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from compressor.files import digest
from compressor.models.architecture import structure_of
from compressor.models.structure import Structure
from compressor.pruning.context import Timing
from compressor.pruning.target import Target
from compressor.schema import TrainingKeys
from tests.zoo import FFN, HEADS, LAYERS, padded_batch, tiny_model


class Line:
    """Sizes that take `floor` and as much again for every `unit` of them."""

    constant = 0.1

    def __init__(self, whole: int, step: int, floor: float, unit: float) -> None:
        self.whole, self.step, self.floor, self.unit = whole, step, floor, unit

    def at(self, units: int | None) -> float:
        if units is None:
            return 0.0
        return self.floor + self.unit * units if units else self.constant

    def levels(self) -> list[tuple[int, float]]:
        sizes = range(self.step, self.whole + 1, self.step)
        return [(0, 0.0), *((n, self.at(n)) for n in sizes)]


class Table:
    """Heads and neurons in milliseconds that add up."""

    base_ms = 1.0

    def __init__(
        self, layers: int = LAYERS, heads: int = HEADS, ffn: int = FFN, precision: str = "fp32"
    ) -> None:
        """int8 has a higher floor, and units that cost less."""
        self.layers = layers
        floor, share = (0.5, 1.0) if precision == "fp32" else (0.8, 0.4)
        self.attention, self.ffn = Line(heads, 1, floor, 0.5 * share), Line(ffn, 4, floor, 0.1 * share)

    @property
    def dense_ms(self) -> float:
        return self.base_ms + self.layers * (
            self.attention.at(self.attention.whole) + self.ffn.at(self.ffn.whole)
        )

    def time(self, structure: Structure) -> float:
        total = self.base_ms
        for _, name, sub in structure.each():
            curve = self.ffn if name == "ffn" else self.attention
            total += curve.at(None if sub.absent else len(sub.kept))
        return total


class StandIn:
    """What the method asks of its stage. `slower`: how wrong the tables are; `harm` of a model: what it loses."""

    seed = 1

    def __init__(
        self,
        folder: Path,
        family: str = "bert",
        task: str = "text-classification",
        slower: float = 1.0,
        **target: Any,
    ) -> None:
        self.folder, self.family, self.task, self.slower = folder, family, task, slower
        self.target = Target(**(target or {"speedup": 2.0}))
        self.measured: list[Structure] = []
        self.told: list[str] = []
        self.trained: list[Structure] = []
        self.harm: Callable[[Structure, str], float] = lambda structure, precision: 0.0

    def model(self) -> Any:
        return tiny_model(self.family, self.task)

    @property
    def baseline(self) -> Structure:
        return structure_of(self.model())

    def kept(self, what: str, *depends: Any) -> Path:
        path = self.folder / f"{what}-{digest(list(depends))[:12]}"
        path.mkdir(exist_ok=True)
        return path

    def once(self, path: Path, make: Callable[[Path], None]) -> None:
        if not path.exists():
            make(path)

    def latency_table(self, precision: str = "fp32") -> Table:
        return Table(precision=precision)

    def timing(self, name: str, model: Callable[[], Any], precision: str = "fp32") -> Timing:
        structure = structure_of(model())
        if name != "source":
            self.measured.append(structure)
        same = self.target.at.relative_to == "same-precision"
        dense = Table(precision=precision if same else "fp32").dense_ms
        ms = self.slower * Table(precision=precision).time(structure)
        return Timing(ms, dense / ms, (dense / ms,) * 2, False, (ms, ms))

    def score(self, model: Any, precision: str = "fp32") -> float:
        return 0.9 - self.harm(structure_of(model), precision)

    def train(self, model: Any, keys: TrainingKeys, name: str) -> None:
        self.trained.append(structure_of(model))
        for parameter in model.parameters():
            parameter.data *= 1.01

    def sample(
        self, split: Literal["train", "selection"], examples: int, tokens: int
    ) -> list[dict[str, torch.Tensor]]:
        seeds = range(6) if split == "train" else range(100, 103)
        return [padded_batch(self.family, 6, 20, seed) | self._labels() for seed in seeds]

    def _labels(self) -> dict[str, torch.Tensor]:
        if self.task == "question-answering":
            return {"start_positions": torch.full((6,), 2), "end_positions": torch.full((6,), 4)}
        shape = (6, 20) if self.task == "token-classification" else (6,)
        return {"labels": torch.zeros(shape, dtype=torch.long)}

    def tell(self, what: str, share: float) -> None:
        self.told.append(what)

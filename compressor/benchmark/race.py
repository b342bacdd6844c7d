"""Which of several files is fastest, in little time: the surely slower ones drop out on the way."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from compressor.benchmark.harness import measure
from compressor.benchmark.samples import Samples
from compressor.benchmark.statistics import Interval, ratio_interval
from compressor.cell import Cell

ROUNDS, PROCESSES, SECONDS = 4, 3, 0.5
"""At most so many rounds, each of so many fresh processes, each timing for so long."""
TIE = 0.02
"""Files that differ by less are equally fast."""

Progress = Callable[[str, float], None]


@dataclass
class Race:
    """Files (by name) timed in one cell, all in turns with the `reference` among them; nothing is timed twice."""

    cell: Cell
    reference: str
    files: dict[str, Path]
    progress: Progress | None = None
    samples: list[Samples] = field(default_factory=list)

    def run(self, names: Collection[str]) -> None:
        """Time these files until one leads, or none of those left is worth telling apart.

        After each round those drop out whose whole 95 % interval is below the leader's speed. It ends when all
        left are a tie and it is clear whether they beat the reference, at the latest after four rounds.
        Raises UserError as `measure` does.
        """
        left = list(names)
        for number in range(ROUNDS):
            self._round(left, number)
            leader = max(left, key=lambda name: self.speedup(name).value)
            leads = {name: self.speedup(leader, name) for name in left if name != leader}
            left = [leader, *(name for name, lead in leads.items() if lead.low <= 1)]
            if self._decided(leader) and all(leads[name].high <= 1 + TIE for name in left[1:]):
                break

    def speedup(self, name: str, over: str | None = None) -> Interval:
        """How many times faster a file is than another (the reference), from all rounds that had both.

        Raises ValueError where there are none.
        """
        pair = [over or self.reference, name]
        timed = [
            times[:, [samples.models.index(model) for model in pair]]
            for samples in self.samples
            if set(pair) <= set(samples.models)
            for times in samples.ms
        ]
        return ratio_interval(timed)

    def _decided(self, name: str) -> bool:
        speedup = self.speedup(name)
        return speedup.low > 1 or speedup.high <= 1

    def _round(self, names: Collection[str], number: int) -> None:
        files = {name: self.files[name] for name in dict.fromkeys([self.reference, *names])}

        def tell(text: str, share: float) -> None:
            if self.progress:
                title = f"round {number + 1} of at most {ROUNDS}, {len(files)} files, {text}"
                self.progress(title, (number + share) / ROUNDS)

        measured = measure(
            files,
            [self.cell],
            reference=self.reference,
            seconds=SECONDS,
            processes=PROCESSES,
            seed=1000 * len(self.samples),  # other random numbers in every process
            progress=tell,
        )
        self.samples += measured.samples

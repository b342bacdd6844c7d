"""The recipe's `benchmark` block: what is timed, and for how long."""

from itertools import product
from typing import Annotated, Any

from pydantic import Field, field_validator

from compressor.cell import DATA as DATA  # so that the harness's callers find all they need here
from compressor.cell import Cell as Cell
from compressor.cell import Provider as Provider
from compressor.parts import FORWARD
from compressor.schema import Keys

Count = Annotated[int, Field(ge=1)]


class BenchmarkKeys(Keys):
    """The grid that is timed; a cell takes about `processes` x (`seconds` + start and warm-up).

    Example:
        benchmark: {providers: [cpu], threads: [2], batch_sizes: [1, 8], sequence_lengths: [128, 384]}
    """

    providers: list[Provider] = Field(["cpu"], min_length=1)
    threads: list[Count] = Field([2], min_length=1, description="threads of one inference; CPU only")
    batch_sizes: list[Count] = Field([1], min_length=1)
    sequence_lengths: list[Count] = Field([128], min_length=1, description="tokens, without padding")
    parts: list[str] = Field(
        [FORWARD],
        min_length=1,
        description="what is timed of a model that runs in parts; by default all of them",
    )
    seconds: float = Field(
        2.0, gt=0, description="timed seconds of a cell in each process, all models together"
    )
    processes: int = Field(8, ge=3, description="fresh processes a cell; the interval rests on their number")

    @field_validator("providers", "threads", "batch_sizes", "sequence_lengths", "parts")
    @classmethod
    def _once_each(cls, values: list[Any]) -> list[Any]:
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"lists {', '.join(twice)} twice")
        return values

    def cells(self) -> list[Cell]:
        """The grid in the order written; the first is the one targets and gates mean by default.

        A GPU is timed with the first number of threads only: its kernels do not run on them.
        """
        grid = product(self.providers, self.threads, self.batch_sizes, self.sequence_lengths, self.parts)
        return [Cell(*point) for point in grid if point[0] == "cpu" or point[1] == self.threads[0]]

"""Fresh processes to measure in: each loads the models anew, so what differs between processes is seen."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from compressor.cell import Provider
from compressor.errors import RunError, UserError
from compressor.parts import FORWARD

LEAD = 0.02
"""Seconds for which a model runs before each run that is timed, which so finds the caches as where the model is
served alone. Right after other models, whose weights fill them, a fifth of MiniLM took 14 % longer
(bench/neighbours).
"""


@dataclass(frozen=True)
class Job:
    """What one process does: times every model at every (batch, sequence) of `shapes`, in turns.

    With `sessions` above zero it runs that many sessions of each model side by side instead and counts
    examples. `first` is the model that is opened first; `overrides` are input shapes for `random_inputs`; `part`
    is what of the models is run; `lead` for how many seconds a model runs before each
    run that is timed.
    """

    models: list[str]
    provider: Provider
    threads: int
    shapes: list[tuple[int, int]]
    seconds: float
    seed: int
    first: int = 0
    sessions: int = 0
    overrides: dict[str, tuple[int, ...]] = field(default_factory=dict)
    part: str = FORWARD
    lead: float = LEAD

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The job that `to_json` wrote."""
        keys = json.loads(text)
        keys["shapes"] = [tuple(shape) for shape in keys["shapes"]]
        keys["overrides"] = {name: tuple(shape) for name, shape in keys["overrides"].items()}
        return cls(**keys)

    def again(self, number: int) -> "Job":
        """The same job for process `number`: other random numbers, and the next model opened first."""
        return replace(self, seed=self.seed + number, first=number % len(self.models))

    def to_json(self) -> str:
        """The job as text, for the process's standard input."""
        return json.dumps(asdict(self))


def run_in_fresh_process(job: Job) -> Mapping[str, np.ndarray]:
    """Run `job` in a new Python process (no fork, so CUDA is safe) and return the arrays it saved.

    Raises UserError for what the process found wrong with models or inputs, RunError when it died.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    # numpy's own threads would only stand by and watch
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        command = [sys.executable, "-m", "compressor.benchmark.worker", str(result)]
        ended = subprocess.run(
            command, input=job.to_json(), capture_output=True, text=True, env=environment, check=False
        )
        if ended.returncode == UserError.exit_code:
            raise UserError(ended.stderr.strip())
        if ended.returncode < 0:
            raise RunError(
                f"a measuring process was killed by signal {-ended.returncode}; if memory ran out, measure "
                f"fewer models at once ({len(job.models)} were open)"
            )
        if ended.returncode:
            raise RunError(f"a measuring process failed: {ended.stderr.strip()[-2000:]}")
        with np.load(result) as arrays:
            return dict(arrays)

"""What a stage is, and what it gets from the pipeline."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compressor.files import appearing, digest, read_json
from compressor.models.source import ModelSource
from compressor.schema import Keys, Progress, TrainingKeys, json_of

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from compressor.benchmark.schema import BenchmarkKeys
    from compressor.parts import Kind
    from compressor.stages.release import GateKeys
    from compressor.tasks.base import Task
    from compressor.tasks.schema import TaskKeys

LOCK = ".compressor.lock"
"""The file by which a run's folder is known from its beginning: no other program makes one of this name."""
RESULTS = "results.json"
"""The file by which it is known from its end."""
TEACHER = ("distill", "teacher")
"""The key that names the stage a model is distilled from."""
DENSE = "dense"
"""Name of the model that is never pruned, among those that a chain exports."""
WAIT = 0.1
"""Seconds between two looks at what another process makes."""
MODEL = "model"
"""Id of the stage that every chain begins with: opening the recipe's model."""


class Stage(Keys):
    """Base of all stages: its fields are the recipe keys of its verb."""

    verb: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the code changes what the stage makes: older results are not reused."""
    trains: ClassVar[bool] = False

    id: str | None = Field(default=None, pattern=r"^[A-Za-z][\w-]*$")
    source: str | None = Field(default=None, alias="from")

    @property
    def uses_data(self) -> bool:
        """Whether the training data decide about its result."""
        return self.trains

    @property
    def uses_metric(self) -> bool:
        """Whether the task's metric decides about its result: here, about which state is the best one."""
        return bool(self.training and self.training.evaluate_every)

    @property
    def training(self) -> TrainingKeys | None:
        """Its training keys, if it trains."""
        return None

    @property
    def training_at(self) -> tuple[str, ...]:
        """The key under which its training keys lie, where they are not its own."""
        return ()

    def effort(self, config: PretrainedConfig) -> float:
        """Roughly how many epochs of the whole model its training takes."""
        return self.training.epochs if self.training else 0.0

    @property
    def content(self) -> dict[str, Any]:
        """Its keys that decide about its result, as plain data."""
        return {key: value for key, value in json_of(self).items() if key not in ("id", "source")}

    @property
    def references(self) -> dict[tuple[str, ...], str]:
        """Ids of the stages it reads besides its source, by the key that names them."""
        distill = self.training.distill if self.training else None
        if distill is None or not isinstance(distill.teacher, str):
            return {}
        return {(*self.training_at, *TEACHER): distill.teacher}

    def circumstances(self, benchmark: BenchmarkKeys, gates: GateKeys) -> Any:
        """What its result depends on beside its keys and inputs: this machine, what is timed, what is demanded."""
        return None

    @abstractmethod
    def run(self, work: Work) -> dict[str, Any]:
        """Make the stage's outputs in `work.folder`; return plain data for the results."""


@dataclass
class Data:
    """The task; its data are read and checked when first asked for, once for all stages of a process.

    `model` is the recipe's, for tasks that compare with it.
    """

    keys: TaskKeys
    seed: int
    model: ModelSource | None = None
    compared: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def kind(self) -> type[Task]:
        """The task's class: what is known without data."""
        from compressor.tasks import get_task

        return get_task(self.keys.type)

    @cached_property
    def task(self) -> Task:
        """The task with its data."""
        return self.kind.load(self.keys, self.seed)

    def frame(self, split: str, progress: Progress) -> pd.DataFrame:
        """The examples of a split, beside the answers of the recipe's own model where the task compares with them."""
        if not self.kind.compares:
            examples: pd.DataFrame = getattr(self.task.examples, split)
            return examples
        if split not in self.compared:
            from compressor.stages.open import beside_own_model

            self.compared[split] = beside_own_model(self, split, progress)
        return self.compared[split]


@dataclass
class Work:
    """One run of one stage.

    `source` is the folder it starts from, `folder` the one to fill (it appears only when done), `scratch`
    one that survives a kill. `folder_of` gives the finished folder of another stage.
    """

    model: ModelSource
    data: Data
    seed: int
    source: Path
    folder: Path
    scratch: Path
    shared: Path
    folder_of: Callable[[str], Path]
    progress: Progress
    gates: GateKeys
    benchmark: BenchmarkKeys
    processes: int = 1
    rank: int = 0
    origin: str = ""
    """A hash of all that its result depends on but its own keys."""
    memory: Kind | None = None
    """What the recipe's exported language models hand on from run to run."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes (the others only help to train)."""
        return self.rank == 0

    @property
    def baseline(self) -> Path:
        """The run's model as it came, whose speed all others are compared with."""
        return self.folder_of(MODEL)

    def kept(self, what: str, *depends: Any) -> Path:
        """A folder beside the scratch, which is removed when the stage is done: the same for the same inputs."""
        folder = self.scratch.parent / f"{what}-{digest([self.origin, *depends])[:12]}"
        folder.mkdir(exist_ok=True)
        return folder

    def once(self, path: Path, make: Callable[[Path], None]) -> None:
        """Have the main process make `path`, if it is not there; the others wait for it."""
        if self.is_main and not path.exists():
            with appearing(path) as temporary:
                make(temporary)
        while not path.exists():
            time.sleep(WAIT)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that travels with the source."""
        return open_tokenizer(self.source, self.data.kind)

    def features(self, split: str) -> Sequence[Any]:
        """Model inputs of a split, tokenized."""
        return self.data.task.features(getattr(self.data.task.examples, split), self.tokenizer())


def open_tokenizer(folder: Path, kind: type[Task]) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder, as the task and the model beside it need it.

    Whatever its files say, it makes just the inputs that the model reads, and pads and cuts only when asked to:
    a length fixed in `tokenizer.json` would cut and pad the text of those who serve the artifact.
    """
    from transformers import AutoTokenizer

    options = read_by_model(folder) | dict(kind.tokenizer_arguments)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def read_by_model(folder: Path) -> dict[str, Any]:
    """What the model in a folder asks of its tokenizer; nothing where it is of no family known here."""
    from compressor.models.architecture import ARCHITECTURES

    config = folder / "config.json"
    family = ARCHITECTURES.get(read_json(config).get("model_type")) if config.is_file() else None
    return {"model_input_names": list(family.inputs), "padding_side": family.padding_side} if family else {}


def write_outputs(work: Work, model: Any, gates: Any = None, folder: Path | None = None) -> None:
    """Save a checkpoint as the stage's output, from the main process."""
    from compressor.models import checkpoint

    if work.is_main:
        checkpoint.save(model, folder or work.folder, work.tokenizer(), gates)

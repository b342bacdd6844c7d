"""What every task offers: data, features, batches, predictions and scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets

from compressor.errors import UserError
from compressor.serve.generation import Settings
from compressor.tasks import readers
from compressor.tasks.collate import collator
from compressor.tasks.metrics import Scorer
from compressor.tasks.schema import METRICS, TaskKeys

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from compressor.models.outputs import Runner
    from compressor.schema import Progress

Outputs = Mapping[str, Sequence[np.ndarray]]  # output name -> one unpadded array a feature
Collate = Callable[[list[dict[str, Any]]], "dict[str, Tensor]"]

BATCH = 1000  # examples tokenized at once: enough for the tokenizer's speed, little memory


@dataclass(frozen=True)
class Examples:
    """The rows of each split: column `id` (where the row comes from), the rest depends on the task.

    Training reads `train` alone, every choice during a run is made on `selection`, and `validation` is scored
    for the report.
    """

    train: pd.DataFrame
    selection: pd.DataFrame
    validation: pd.DataFrame


class Task(ABC):
    """A task with its data. Made by `get_task(keys.type).load(keys, seed)`; never changes afterwards."""

    type: ClassVar[str]
    auto_class: ClassVar[str]  # of transformers
    optimum_task: ClassVar[str]
    output_names: ClassVar[tuple[str, ...]]
    label_columns: ClassVar[tuple[str, ...]]  # of the features
    evaluation_columns: ClassVar[tuple[str, ...]] = ("example", "truncated")  # neither inputs nor labels
    model_kind: ClassVar[str] = "encoder"  # what does it: an encoder, a decoder or an encoder-decoder
    writes: ClassVar[bool] = False  # outputs are texts, made token by token
    compares: ClassVar[bool] = False  # predictions are also compared with those of the recipe's own model
    tokenizer_arguments: ClassVar[Mapping[str, Any]] = {}  # the tokenizer must be loaded with these

    def __init__(self, keys: TaskKeys, examples: Examples, labels: Sequence[str] = ()) -> None:
        """`labels`: names in the order of the head's outputs; empty where the task has none."""
        self.keys = keys
        self.examples = examples
        self.labels = list(labels)

    @classmethod
    @abstractmethod
    def load(cls, keys: TaskKeys, seed: int) -> "Task":
        """Read, check and split the data. Raises UserError naming file and row of what is wrong."""

    @classmethod
    def fingerprint(cls, keys: TaskKeys) -> dict[str, Any]:
        """What identifies the data's content (JSON-able); for a hub data set ask after `load`, not before."""
        return readers.fingerprint(keys)

    @property
    def primary(self) -> str:
        """The metric that gates judge."""
        return self.keys.metric or METRICS[self.type][0]

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of `metric` is good; true of all metrics but perplexity and the like."""
        return True

    @abstractmethod
    def model_config(self) -> dict[str, Any]:
        """What the configuration of a model for this task needs: number and names of labels."""

    def settings(self, config: "PretrainedConfig") -> Settings | None:
        """How a model with this config writes its answers; `None` where it writes none."""
        return None

    def post_processing(self, tokenizer: Any) -> dict[str, Any]:
        """What a client must know to turn outputs into predictions, beside labels and max_length."""
        return {}

    def features(self, frame: pd.DataFrame, tokenizer: Any) -> Dataset:
        """Tokenize examples into unpadded model inputs, in order; one example may become several features.

        Beside the inputs and `label_columns` there are `example` (position in `frame`), `truncated` (whether
        part of the text was cut off) and what else is in `evaluation_columns`.
        Raises UserError for a tokenizer that cannot do this.
        """
        self.check_tokenizer(tokenizer)
        starts = range(0, len(frame), BATCH)
        parts = [self._encode(frame.iloc[start : start + BATCH], tokenizer) for start in starts]
        for part, start in zip(parts, starts, strict=True):
            part["example"] = [start + position for position in part["example"]]
        return concatenate_datasets([Dataset.from_dict(part) for part in parts])

    @abstractmethod
    def _encode(self, frame: pd.DataFrame, tokenizer: Any) -> dict[str, list[Any]]:
        """The features of a few examples by column; `example` counts from 0 within `frame`."""

    def collate(self, tokenizer: Any) -> Collate:
        """A function that drops `evaluation_columns`, pads to the longest of a batch and makes tensors.

        Raises UserError for a tokenizer without a padding token.
        """
        _check_padding(tokenizer)
        return collator(tokenizer, self.evaluation_columns)

    def outputs(
        self,
        run: "Runner",
        features: Dataset,
        tokenizer: Any,
        progress: "Progress",
        batch_size: int,
        title: str,
    ) -> dict[str, list[np.ndarray]]:
        """What `run` makes of every feature, by name of output, in the order of `features`."""
        from compressor.models.outputs import collect_outputs

        collate = self.collate(tokenizer)
        return collect_outputs(run, features, collate, self.output_names, progress, batch_size, title)

    @abstractmethod
    def predictions(self, outputs: Outputs, features: Dataset, frame: pd.DataFrame) -> pd.DataFrame:
        """One row an EXAMPLE of `frame`: id, prediction, reference, and what the metrics are computed from.

        `outputs` holds, per output name, one unpadded array for each feature, in the order of `features`,
        which must cover all of `frame`.
        """

    def beside(self, frame: pd.DataFrame, outputs: Outputs, features: Dataset) -> pd.DataFrame:
        """Where the task `compares`: `frame` with what the recipe's own model answered, which gave `outputs`."""
        return frame

    @abstractmethod
    def scorer(self, predictions: pd.DataFrame, metric: str) -> Scorer:
        """The metric as a fast function of row positions, for the bootstrap."""

    @abstractmethod
    def metric_names(self, predictions: pd.DataFrame) -> Sequence[str]:
        """The names of all metrics these predictions have."""

    def score(self, predictions: pd.DataFrame) -> dict[str, float]:
        """Every metric, as a fraction."""
        rows = np.arange(len(predictions))
        return {name: self.scorer(predictions, name)(rows) for name in self.metric_names(predictions)}

    def deciding(self, predictions: pd.DataFrame) -> str:
        """The metric that choices go by: the primary one, or the first there is where its references are lacking."""
        names = self.metric_names(predictions)
        return self.primary if self.primary in names else names[0]

    def judged(self, predictions: pd.DataFrame) -> float:
        """The value of the metric that choices go by."""
        return self.scorer(predictions, self.deciding(predictions))(np.arange(len(predictions)))

    def agreement(self, one: pd.DataFrame, other: pd.DataFrame) -> float:
        """Share of equal predictions in two tables of the same examples; where an example has many, of them all."""
        answers = [table["prediction"].explode().to_numpy() for table in (one, other)]
        return float((answers[0] == answers[1]).mean())

    def reference_points(self) -> dict[str, float]:
        """Scores any trained model must beat, where the task has such."""
        return {}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise UserError for a tokenizer that cannot serve this task."""
        if not tokenizer.is_fast:
            raise UserError(
                f"the model's tokenizer ({type(tokenizer).__name__}) has no fast version; one is needed"
            )
        if self.keys.max_length > tokenizer.model_max_length:
            raise UserError(
                f"task.max_length {self.keys.max_length} is more than the model takes "
                f"({tokenizer.model_max_length} tokens)"
            )
        self.check_special_tokens(tokenizer)

    def check_special_tokens(self, tokenizer: Any) -> None:
        """Raise UserError for a tokenizer without a token that the task needs: by default, for padding."""
        _check_padding(tokenizer)


def _check_padding(tokenizer: Any) -> None:
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token; set its pad_token (its eos_token will do)")

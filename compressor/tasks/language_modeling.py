"""The next token of a running text: perplexity, and bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from datasets import Dataset

from compressor.errors import UserError
from compressor.tasks import metrics
from compressor.tasks.base import BATCH, Collate, Outputs, Task
from compressor.tasks.collate import Collator
from compressor.tasks.readers import read_tables
from compressor.tasks.schema import METRICS, TaskKeys
from compressor.tasks.splits import split_text
from compressor.tasks.tables import Table

if TYPE_CHECKING:
    from compressor.models.outputs import Runner
    from compressor.schema import Progress

LONGEST = 10_000
"""Characters of a line that stays whole; a corpus may be one single line."""
UNITS = {
    "perplexity": "tokens",
    "word_perplexity": "words",
    "bits_per_character": "characters",
    "bits_per_byte": "bytes",
}
"""What a metric's loss is divided by."""


class LanguageModeling(Task):
    """Columns of the examples: id, text (a line with its end and the empty lines after it; pieces of very long ones).

    A split is one stream of tokens, cut into segments of `max_length`; its first token is predicted from the token
    that ends a line (or a text), so that every token of the text counts. A segment is a feature. Models with a memory
    read the segments in order; others read each on its own. Scored are the losses of the whole stream, by line.
    """

    type = "language-modeling"
    model_kind = "decoder"
    auto_class = "AutoModelForLanguageModeling"
    optimum_task = "text-generation"
    output_names = ("losses",)
    label_columns = ("labels",)
    evaluation_columns = ("example",)  # of every label: the row it is from

    @classmethod
    def load(cls, keys: TaskKeys, seed: int) -> LanguageModeling:
        """Read and split the data; selection is the end of the training text."""
        frames = {name: _frame(table, keys) for name, table in read_tables(keys).items()}
        return cls(keys, split_text(frames["train"], frames["validation"], keys))

    def higher_is_better(self, metric: str) -> bool:
        """None of its metrics: all grow with the loss."""
        return False

    def model_config(self) -> dict[str, Any]:
        """Nothing depends on the data but the vocabulary, which is the tokenizer's."""
        return {}

    def post_processing(self, tokenizer: Any) -> dict[str, Any]:
        """The token a text begins after, the one that ends a line where it has one, and the one that ends a text."""
        newline, end = tokenizer.encode("\n", add_special_tokens=False), tokenizer.eos_token_id
        lines = newline == [end]
        return {
            "start_token_id": start_of(tokenizer),
            "segment_length": self.keys.max_length,
            "line_end": tokenizer.eos_token if lines else None,
            "end_token_id": None if lines else end,
        }

    def features(self, frame: pd.DataFrame, tokenizer: Any) -> Dataset:
        """The segments of these rows as one text: input_ids, labels (the next tokens), and each label's row."""
        self.check_tokenizer(tokenizer)
        parts = [
            self._encode(frame.iloc[start : start + BATCH], tokenizer)["input_ids"]
            for start in range(0, len(frame), BATCH)
        ]
        by_row = [np.asarray(ids, dtype=np.int32) for part in parts for ids in part]
        tokens = np.concatenate([np.array([start_of(tokenizer)], dtype=np.int32), *by_row])
        rows = np.repeat(np.arange(len(frame), dtype=np.int32), [len(ids) for ids in by_row])
        length = self.keys.max_length
        cuts = [slice(at, min(at + length, len(rows))) for at in range(0, len(rows), length)]
        return Dataset.from_dict(
            {
                "input_ids": [tokens[cut] for cut in cuts],
                "labels": [tokens[cut.start + 1 : cut.stop + 1] for cut in cuts],
                "example": [rows[cut] for cut in cuts],
            }
        )

    def _encode(self, frame: pd.DataFrame, tokenizer: Any) -> dict[str, list[Any]]:
        encoded = tokenizer(frame["text"].tolist(), add_special_tokens=False, verbose=False)
        return {"input_ids": encoded["input_ids"]}

    def collate(self, tokenizer: Any) -> Collate:
        """Only a text's last segment can be shorter than the others; behind it nothing is asked for."""
        return Collator({"labels": -100}, left=False, dropped=frozenset(self.evaluation_columns))

    def outputs(
        self, run: Runner, features: Dataset, tokenizer: Any, progress: Progress, batch_size: int, title: str
    ) -> dict[str, list[np.ndarray]]:
        """The losses of all labels, segment by segment in the order of the text, whatever the batch size.

        What a run hands on the next one gets.
        """
        from compressor.models.outputs import handed_on

        collate, losses = self.collate(tokenizer), []
        memory: Mapping[str, Any] = {}
        for number, row in enumerate(features):
            found = run({**collate([dict(row)]), **memory})
            memory = handed_on(found)
            losses.append(np.asarray(found["losses"], dtype=np.float32)[0])
            progress(title, (number + 1) / len(features))
        return {"losses": losses}

    def predictions(self, outputs: Outputs, features: Dataset, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns id, loss (the sum over the row's tokens, in nats), tokens, characters, bytes, words.

        Words are what white space separates, and ends of lines, as published word-level perplexities count.
        """
        rows = np.concatenate([np.asarray(example) for example in features["example"]])
        losses = np.concatenate(outputs["losses"]).astype(float)
        texts = frame["text"].tolist()
        return pd.DataFrame(
            {
                "id": frame["id"],
                "loss": np.bincount(rows, weights=losses, minlength=len(frame)),
                "tokens": np.bincount(rows, minlength=len(frame)),
                "characters": [len(text) for text in texts],
                "bytes": [len(text.encode()) for text in texts],
                "words": [len(text.split()) + text.count("\n") for text in texts],
            }
        )

    def metric_names(self, predictions: pd.DataFrame) -> Sequence[str]:
        """perplexity (of a token), bits per character and per byte, perplexity of a word."""
        return METRICS[self.type]

    def scorer(self, predictions: pd.DataFrame, metric: str) -> metrics.Scorer:
        """The metric as a fast function of row positions."""
        mean = metrics.ratio(predictions["loss"].to_numpy(), predictions[UNITS[metric]].to_numpy())
        if metric.startswith("bits"):
            return lambda rows: mean(rows) / math.log(2)
        return lambda rows: float(np.exp(mean(rows)))

    def agreement(self, one: pd.DataFrame, other: pd.DataFrame) -> float:
        """By what factor (at most 1) the probabilities of a token differ: the geometric mean over lines."""
        apart = np.abs(one["loss"] - other["loss"]).sum() / one["tokens"].sum()
        return float(np.exp(-apart))

    def check_special_tokens(self, tokenizer: Any) -> None:
        """Raise UserError for one that can't begin a text."""
        start_of(tokenizer)


def start_of(tokenizer: Any) -> int:
    """The token that a text begins after: the one that ends texts (or lines), else a newline.

    Raises:
        UserError: the tokenizer knows neither.
    """
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    newline = tokenizer.encode("\n", add_special_tokens=False)
    if not newline:
        raise UserError(
            "the tokenizer has no token that ends a text or a line: language-modeling cannot begin; take "
            "one of a language model"
        )
    return int(newline[-1])


def _frame(table: Table, keys: TaskKeys) -> pd.DataFrame:
    """The text of a table, row by row: lines in order, every empty one with the line before it."""
    column = keys.columns.get("text", "text")
    lines = ["" if line is None else line for line in table.values(column)]
    table.reject([not isinstance(line, str) for line in lines], f"{column!r} holds no text")
    texts: list[str] = []
    ids: list[str] = []
    for place, line in zip(table.frame.index.astype(str), lines, strict=True):
        text = line.removesuffix("\n") + "\n"
        if texts and not text.strip():
            texts[-1] += text
            continue
        for number, piece in enumerate(_pieces(text)):
            ids.append(f"{place}.{number}" if number else place)
            texts.append(piece)
    if not any(text.strip() for text in texts):
        raise UserError(f"{table.source} holds no text")
    return pd.DataFrame({"id": ids, "text": texts})


def _pieces(text: str) -> Iterator[str]:
    """A line in pieces of at most `LONGEST` characters, cut before a space where there is one."""
    while len(text) > LONGEST:
        cut = text.rfind(" ", 1, LONGEST)
        cut = cut if cut > 0 else LONGEST
        yield text[:cut]
        text = text[cut:]
    yield text

"""A short text for a long one."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from compressor.errors import UserError
from compressor.serve.generation import Settings
from compressor.tasks import metrics
from compressor.tasks.base import Outputs, Task
from compressor.tasks.readers import read_tables
from compressor.tasks.schema import METRICS, TaskKeys
from compressor.tasks.splits import split
from compressor.tasks.tables import Table

PAIRS = (("article", "highlights"), ("document", "summary"), ("source", "target"), ("text", "summary"))
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Summarization(Task):
    """Columns of the examples: id, text, references (one or several summaries).

    The first reference is learned, all are compared with: of several the nearest counts, metric by metric. Texts and
    references that are lists of sentences are joined. Scores are F-measures of ROUGE (Lin 2004) with stemming;
    rougeLsum compares sentence by sentence.
    """

    type = "summarization"
    model_kind = "encoder-decoder"
    auto_class = "AutoModelForSeq2SeqLM"
    optimum_task = "text2text-generation"
    output_names = ("sequences",)
    label_columns = ("labels",)
    writes = True

    @classmethod
    def load(cls, keys: TaskKeys, seed: int) -> "Summarization":
        """Read, check and split the data."""
        frames = {name: _frame(table, keys) for name, table in read_tables(keys).items()}
        return cls(keys, split(frames["train"], frames["validation"], keys, seed))

    def model_config(self) -> dict[str, Any]:
        """Nothing: words are the labels."""
        return {}

    def settings(self, config: Any) -> Settings:
        """How a model of this config writes.

        Raises:
            UserError: the config does not say with which token a text begins or ends.
        """
        keys = self.keys.generation
        assert keys is not None
        if config.decoder_start_token_id is None or config.eos_token_id is None:
            raise UserError(
                "the model's config.json lacks decoder_start_token_id or eos_token_id: it cannot write"
            )
        return Settings(
            first=config.decoder_start_token_id,
            end=config.eos_token_id,
            pad=config.pad_token_id,
            forced=getattr(config, "forced_bos_token_id", None),
            **keys.model_dump(),
        )

    def post_processing(self, tokenizer: Any) -> dict[str, Any]:
        """What is put before a text."""
        return {"prefix": self.keys.prefix or ""}

    def _encode(self, frame: pd.DataFrame, tokenizer: Any) -> dict[str, list[Any]]:
        prefix = self.keys.prefix or ""
        texts = [prefix + text for text in frame["text"]]
        encoded = tokenizer(texts, truncation=True, max_length=self.keys.max_length)
        targets = tokenizer(
            text_target=[references[0] for references in frame["references"]],
            truncation=True,
            max_length=self.keys.max_target_length,
        )
        return {
            **encoded,
            "labels": targets["input_ids"],
            "example": list(range(len(frame))),
            "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
        }

    def predictions(self, outputs: Outputs, features: Dataset, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns id, prediction, reference (a list) and a score a metric."""
        written = [text_of(self._tokenizer, ids) for ids in outputs["sequences"]]
        texts = [written[row] for row in np.argsort(features["example"])]
        table = pd.DataFrame({"id": frame["id"], "prediction": texts, "reference": frame["references"]})
        scores = [
            rouge(text, references) for text, references in zip(texts, frame["references"], strict=True)
        ]
        return table.assign(**{name: [row[name] for row in scores] for name in METRICS[self.type]})

    def features(self, frame: pd.DataFrame, tokenizer: Any) -> Dataset:
        """As every task's. The tokenizer is kept: what is written for these features is in its numbers."""
        self._tokenizer = tokenizer.backend_tokenizer
        return super().features(frame, tokenizer)

    def metric_names(self, predictions: pd.DataFrame) -> Sequence[str]:
        """All of ROUGE."""
        return METRICS[self.type]

    def scorer(self, predictions: pd.DataFrame, metric: str) -> metrics.Scorer:
        """The metric as a fast function of row positions."""
        return metrics.mean(predictions[metric].to_numpy())

    @cached_property
    def _lead(self) -> dict[str, float]:
        rows = self.examples.validation
        found = [
            rouge(SENTENCE_END.split(text)[0], references)[self.primary]
            for text, references in zip(rows["text"], rows["references"], strict=True)
        ]
        return {"first sentence of the text": float(np.mean(found))}

    def reference_points(self) -> dict[str, float]:
        """What the first sentence of every text scores."""
        return self._lead


def text_of(tokenizer: Any, ids: Iterable[Any]) -> str:
    """The text of token numbers, by a tokenizer of the tokenizers library."""
    text: str = tokenizer.decode([int(number) for number in ids], skip_special_tokens=True)
    return text.strip()


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures by metric; of several references the best counts."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(METRICS["summarization"]), use_stemmer=True)
    by_sentence = [SENTENCE_END.sub("\n", one) for one in (text, *references)]
    return {
        name: score.fmeasure for name, score in scorer.score_multi(by_sentence[1:], by_sentence[0]).items()
    }


def _frame(table: Table, keys: TaskKeys) -> pd.DataFrame:
    text, summary = _columns(table, keys)
    texts = [" ".join(parts) for parts in _lists(table, text, "text")]
    return pd.DataFrame(
        {"id": table.frame.index.astype(str), "text": texts, "references": _lists(table, summary, "summary")}
    )


def _columns(table: Table, keys: TaskKeys) -> tuple[Any, Any]:
    """Where texts and summaries are: as the recipe says, else by the usual names."""
    there = set(table.frame.columns)
    usual: tuple[Any, Any] = next((pair for pair in PAIRS if there.issuperset(pair)), (None, None))
    found = (keys.columns.get("text", usual[0]), keys.columns.get("summary", usual[1]))
    if None in found:
        table.no_column("columns with text and summary: name them in task.columns, {text: ..., summary: ...}")
    return found


def _lists(table: Table, column: Any, role: str) -> list[list[str]]:
    """Every cell as a list of texts that are not empty. Raises UserError naming the first row without."""
    cells = [
        list(cell) if isinstance(cell, list | tuple | np.ndarray) else [cell] for cell in table.values(column)
    ]
    table.reject(
        [any(one is not None and not isinstance(one, str) for one in cell) for cell in cells],
        f"{column!r} holds no text",
        f"a {role} is a text or a list of texts",
    )
    kept = [[one.strip() for one in cell if one and one.strip()] for cell in cells]
    table.reject([not cell for cell in kept], f"{column!r} is empty")
    return kept

"""A tag for every word: named entities, parts of speech."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from datasets import Dataset

from compressor.tasks import labels as labelling
from compressor.tasks import metrics
from compressor.tasks.base import Outputs, Task
from compressor.tasks.collate import IGNORED_LABEL
from compressor.tasks.entities import OUTSIDE, entities
from compressor.tasks.readers import read_tables
from compressor.tasks.schema import Column, TaskKeys
from compressor.tasks.splits import split
from compressor.tasks.tables import Table

COLUMNS = {"tokens": ("tokens", "words"), "tags": ("ner_tags", "tags", "labels", "pos_tags")}
COUNTS = {  # metric: (sum of, over sum of) the columns of the predictions
    "f1": ("twice_correct_entities", "entities"),
    "precision": ("correct_entities", "predicted_entities"),
    "recall": ("correct_entities", "reference_entities"),
    "accuracy": ("correct_words", "words"),
}


class TokenClassification(Task):
    """Columns of the examples: id, tokens (words), tags (a class number a word).

    A word's tag is learned and read at its first token. Words cut off by max_length are predicted as `O`:
    they count, so a short max_length shows in the score.
    """

    type = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    optimum_task = "token-classification"
    output_names = ("logits",)
    label_columns = ("labels",)
    evaluation_columns = ("example", "truncated", "words")  # words: number of the word a token begins, or -1
    tokenizer_arguments: ClassVar[Mapping[str, Any]] = {"add_prefix_space": True}

    @classmethod
    def load(cls, keys: TaskKeys, seed: int) -> "TokenClassification":
        """Read, check and split the data."""
        tables = read_tables(keys)
        columns = {role: _column(keys, tables["train"], role) for role in COLUMNS}
        rows = {name: _Rows(table, columns["tokens"], columns["tags"]) for name, table in tables.items()}
        flat = [tag for tags in rows["train"].tags for tag in tags]
        labels = labelling.label_set(keys.labels, tables["train"], columns["tags"], flat)
        frames = {name: part.frame(labels) for name, part in rows.items()}
        return cls(keys, split(frames["train"], frames["validation"], keys, seed), labels)

    def model_config(self) -> dict[str, Any]:
        """Tag names and their number."""
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: number for number, name in enumerate(self.labels)},
        }

    def post_processing(self, tokenizer: Any) -> dict[str, Any]:
        """A word has the tag of its first token; one that was cut off has the outside tag."""
        return {"word_label": "first-token", "missing_word_label": self.labels[self._outside]}

    @property
    def _outside(self) -> int:
        return self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0

    def _encode(self, frame: pd.DataFrame, tokenizer: Any) -> dict[str, list[Any]]:
        sentences = [list(tokens) for tokens in frame["tokens"]]
        encoded = tokenizer(
            sentences, is_split_into_words=True, truncation=True, max_length=self.keys.max_length
        )
        words = [_first_tokens(encoded.word_ids(row)) for row in range(len(frame))]
        tags = [np.append(tags, IGNORED_LABEL) for tags in frame["tags"]]  # word -1 gets the last one
        return {
            **encoded,
            "labels": [tag[word] for tag, word in zip(tags, words, strict=True)],
            "example": list(range(len(frame))),
            "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
            "words": words,
        }

    def predictions(self, outputs: Outputs, features: Dataset, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns id, prediction and reference (lists of tag names), and counts of words and entities."""
        names = np.array(self.labels, dtype=object)
        predicted = [np.full(len(tags), self._outside) for tags in frame["tags"]]
        for example, words, logits in zip(
            features["example"], features["words"], outputs["logits"], strict=True
        ):
            first = np.asarray(words) >= 0
            predicted[example][np.asarray(words)[first]] = logits[first].argmax(axis=1)
        rows = []
        for tags, guess in zip(frame["tags"], predicted, strict=True):
            rows.append(_counts(names[tags].tolist(), names[guess].tolist()))
        table = pd.DataFrame(rows)
        table.insert(0, "id", frame["id"].to_numpy())
        return table

    def metric_names(self, predictions: pd.DataFrame) -> Sequence[str]:
        """f1, precision and recall of entities; accuracy of words."""
        return tuple(COUNTS)

    def scorer(self, predictions: pd.DataFrame, metric: str) -> metrics.Scorer:
        """The metric as a fast function of row positions."""
        part, whole = (predictions[name].to_numpy() for name in COUNTS[metric])
        return metrics.ratio(part, whole)


class _Rows:
    """The sentences of a table: words and tag names, checked."""

    def __init__(self, table: Table, tokens: Column, tags: Column) -> None:
        self.table, self.column = table, tags
        self.tokens = _lists(table, tokens)
        self.tags = labelling.names(table, tags, _lists(table, tags), "word")
        table.reject([not row for row in self.tokens], f"{tokens!r} is empty")
        table.reject(
            [not all(isinstance(word, str) for word in row) for row in self.tokens],
            f"{tokens!r} holds no words",
        )
        table.reject(
            [len(words) != len(names) for words, names in zip(self.tokens, self.tags, strict=True)],
            f"{tokens!r} and {tags!r} differ in length",
        )

    def frame(self, labels: list[str]) -> pd.DataFrame:
        """The rows with tags as positions in `labels`. Raises UserError for a tag outside the set."""
        numbers = {label: number for number, label in enumerate(labels)}
        bad = [next((tag for tag in row if tag not in numbers), None) for row in self.tags]
        first = next((tag for tag in bad if tag is not None), "")
        self.table.reject([tag is not None for tag in bad], labelling.not_a_label(self.column, first, labels))
        tags = [np.array([numbers[tag] for tag in row]) for row in self.tags]
        ids = self.table.frame.index.astype(str)
        return pd.DataFrame({"id": ids, "tokens": self.tokens, "tags": tags})


def _lists(table: Table, column: Column) -> list[list[Any]]:
    values = table.values(column)
    table.reject([not isinstance(value, list | np.ndarray) for value in values], f"{column!r} holds no list")
    return [list(value) for value in values]


def _column(keys: TaskKeys, table: Table, role: str) -> Column:
    if role in keys.columns:
        return keys.columns[role]
    found = next((name for name in COLUMNS[role] if name in table.frame.columns), None)
    if found is None:
        table.no_column(f"column with the {role}: name it in task.columns, {{tokens: ..., tags: ...}}")
    return found


def _first_tokens(word_ids: Sequence[int | None]) -> list[int]:
    """The number of the word each token begins; -1 for its further tokens and for special ones."""
    previous = [None, *word_ids[:-1]]
    return [
        -1 if word is None or word == before else word
        for word, before in zip(word_ids, previous, strict=True)
    ]


def _counts(reference: list[str], predicted: list[str]) -> dict[str, Any]:
    expected, found = entities(reference), entities(predicted)
    correct = len(expected & found)
    return {
        "prediction": predicted,
        "reference": reference,
        "correct_words": sum(a == b for a, b in zip(reference, predicted, strict=True)),
        "words": len(reference),
        "correct_entities": correct,
        "twice_correct_entities": 2 * correct,
        "predicted_entities": len(found),
        "reference_entities": len(expected),
        "entities": len(found) + len(expected),
    }

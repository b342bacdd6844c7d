"""Classes or a score for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from compressor.errors import UserError
from compressor.tasks import labels as labelling
from compressor.tasks import metrics, reference
from compressor.tasks.base import Outputs, Task
from compressor.tasks.readers import read_tables
from compressor.tasks.schema import METRICS, REGRESSION_METRICS, Column, TaskKeys
from compressor.tasks.splits import split
from compressor.tasks.tables import Table

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("#1 String", "#2 String"),
)
TEXTS = ("sentence", "text")
LABELS = ("label", "labels", "Quality", "score")


class TextClassification(Task):
    """Columns of the examples: id, text, pair (where there are pairs), label (class number, or a float)."""

    type = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    optimum_task = "text-classification"
    output_names = ("logits",)
    label_columns = ("labels",)

    @classmethod
    def load(cls, keys: TaskKeys, seed: int) -> "TextClassification":
        """Read, check and split the data; `labels` stays empty when the labels are scores (regression)."""
        tables = read_tables(keys)
        columns = _columns(keys, tables["train"])
        texts = {name: labelling.cells(table, columns["label"]) for name, table in tables.items()}
        regression = keys.regression
        if regression is None:
            regression = keys.labels is None and labelling.is_regression(texts["train"])
        known = REGRESSION_METRICS if regression else METRICS[cls.type]
        if keys.metric is not None and keys.metric not in known:
            kind = "scores (regression)" if regression else "classes"
            raise UserError(f"task.metric {keys.metric}: the labels are {kind}, scored by {', '.join(known)}")
        labels: list[str] = []
        if not regression:
            labels = labelling.label_set(keys.labels, tables["train"], columns["label"], texts["train"])
            if keys.labels:
                texts = {name: labelling.given_names(found, labels) for name, found in texts.items()}
        frames = {name: _frame(table, columns, texts[name], labels) for name, table in tables.items()}
        return cls(keys, split(frames["train"], frames["validation"], keys, seed), labels)

    @property
    def regression(self) -> bool:
        """Whether the labels are scores."""
        return not self.labels

    @property
    def primary(self) -> str:
        """The metric that gates judge."""
        return self.keys.metric or (REGRESSION_METRICS if self.regression else METRICS[self.type])[0]

    def model_config(self) -> dict[str, Any]:
        """Label names, their number and the kind of problem (which decides the loss)."""
        names = self.labels or ["score"]
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "regression" if self.regression else "single_label_classification",
        }

    def _encode(self, frame: pd.DataFrame, tokenizer: Any) -> dict[str, list[Any]]:
        pair = frame["pair"].tolist() if "pair" in frame else None
        encoded = tokenizer(frame["text"].tolist(), pair, truncation=True, max_length=self.keys.max_length)
        return {
            **encoded,
            "labels": frame["label"].tolist(),
            "example": list(range(len(frame))),
            "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
        }

    def predictions(self, outputs: Outputs, features: Dataset, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns id, prediction and reference: label names, or scores."""
        logits = np.stack(outputs["logits"])[np.argsort(features["example"])]
        if self.regression:
            predicted, expected = logits[:, 0].astype(float), frame["label"].to_numpy()
        else:
            names = np.array(self.labels, dtype=object)
            predicted, expected = names[logits.argmax(axis=1)], names[frame["label"]]
        return pd.DataFrame({"id": frame["id"], "prediction": predicted, "reference": expected})

    def metric_names(self, predictions: pd.DataFrame) -> Sequence[str]:
        """accuracy, f1 and matthews, or pearson and spearman."""
        return REGRESSION_METRICS if self.regression else METRICS[self.type]

    def scorer(self, predictions: pd.DataFrame, metric: str) -> metrics.Scorer:
        """The metric as a fast function of row positions."""
        reference, predicted = predictions["reference"], predictions["prediction"]
        if self.regression:
            return metrics.correlation(metric, reference.to_numpy(), predicted.to_numpy())
        numbers = {label: number for number, label in enumerate(self.labels)}
        codes = [side.map(numbers).to_numpy() for side in (reference, predicted)]
        return metrics.classification(metric, codes[0], codes[1], len(self.labels))

    def agreement(self, one: pd.DataFrame, other: pd.DataFrame) -> float:
        """Share of equal labels, or of scores that differ by at most a hundredth of the references' range."""
        if not self.regression:
            return super().agreement(one, other)
        apart = np.abs(one["prediction"].to_numpy() - other["prediction"].to_numpy())
        return float((apart <= np.ptp(one["reference"].to_numpy()) / 100).mean())

    def reference_points(self) -> dict[str, float]:
        """Accuracy of the largest class and of a bag of words; none for regression."""
        return {} if self.regression else reference.classification(self.examples)


def _columns(keys: TaskKeys, table: Table) -> dict[str, Column]:
    """The column of each role: as the recipe says, else by the usual names."""
    columns = text_columns(keys.columns, table, "{text: ..., label: ...}")
    if "label" not in columns:
        found = [name for name in LABELS if name in table.frame.columns]
        if not found:
            table.no_column("column with the label: name it in task.columns, {text: ..., label: ...}")
        columns["label"] = found[0]
    return columns


def text_columns(named: Mapping[str, Column], table: Table, example: str) -> dict[str, Column]:
    """The columns `named`, with those of a text or a pair by their usual names where no text is among them."""
    columns, there = dict(named), set(table.frame.columns)
    if "text" in columns:
        return columns
    if "pair" in columns:
        raise UserError("task.columns names the pair's second text; name the first one too: text: ...")
    pairs = [pair for pair in PAIRS if there.issuperset(pair)]
    singles = [(name,) for name in TEXTS if name in there]
    if not pairs and not singles:
        table.no_column(f"column with the text: name it in task.columns, {example}")
    return columns | dict(zip(("text", "pair"), (*pairs, *singles)[0], strict=False))


def _frame(
    table: Table, columns: dict[str, Column], texts: Sequence[str], labels: Sequence[str]
) -> pd.DataFrame:
    data: dict[str, Any] = {"id": table.frame.index.astype(str)}
    data |= {role: table.texts(columns[role]) for role in ("text", "pair") if role in columns}
    if labels:
        data["label"] = labelling.class_numbers(table, columns["label"], texts, labels)
    else:
        data["label"] = labelling.scores(table, columns["label"], texts)
    return pd.DataFrame(data)

"""One vector a text, for search, clustering and comparison: sentence embeddings."""

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
from compressor.tasks.schema import Column, TaskKeys
from compressor.tasks.splits import split
from compressor.tasks.tables import Table
from compressor.tasks.text_classification import text_columns

SCORES = ("score", "similarity_score", "label")
SIDES = {"embedding": "dense", "pair_embedding": "pair_dense"}
"""Columns with the vectors of first and second texts: of the model that is scored, and of the recipe's own model."""


class FeatureExtraction(Task):
    """Columns of the examples: id, text, pair (where there are pairs), score (where their similarity is known).

    Every text is embedded alone. Training needs texts and nothing else: what is learned is a teacher's embeddings.
    Where two texts have a gold similarity, the cosines of their vectors are scored by Spearman's rank correlation (as
    STS-B is, see Reimers and Gurevych: "Sentence-BERT", 2019, section 4.1); every text is scored by the cosine of its
    vector with the one that the recipe's own model gives.
    """

    type = "feature-extraction"
    auto_class = "AutoModelForSentenceEmbedding"
    optimum_task = "feature-extraction"
    output_names = ("sentence_embedding",)
    label_columns = ()
    evaluation_columns = ("example", "truncated", "side")  # side: 0 of a first text, 1 of a second
    compares = True

    @classmethod
    def load(cls, keys: TaskKeys, seed: int) -> "FeatureExtraction":
        """Read, check and split the data; each file has pairs and scores or has not."""
        tables = read_tables(keys)
        frames = {name: _frame(table, keys, must=name == "validation") for name, table in tables.items()}
        if keys.metric == "spearman" and "score" not in frames["validation"]:
            tables["validation"].no_column("column with the similarity of two texts, which task.metric needs")
        return cls(keys, split(frames["train"], frames["validation"], keys, seed))

    @property
    def primary(self) -> str:
        """The metric that gates judge: `spearman` where validation has scores, else `cosine`."""
        return self.keys.metric or ("spearman" if "score" in self.examples.validation else "cosine")

    def model_config(self) -> dict[str, Any]:
        """How vectors are made of the states of tokens."""
        return {"sentence_embedding": {"pooling": self.keys.pooling, "normalize": self.keys.normalize}}

    def post_processing(self, tokenizer: Any) -> dict[str, Any]:
        """Nothing is left to do; how the graph pools, to be read."""
        return self.model_config()["sentence_embedding"]

    def _encode(self, frame: pd.DataFrame, tokenizer: Any) -> dict[str, list[Any]]:
        sides = [frame[role].tolist() for role in ("text", "pair") if role in frame]
        texts = [text for row in zip(*sides, strict=True) for text in row]
        encoded = tokenizer(texts, truncation=True, max_length=self.keys.max_length)
        return {
            **encoded,
            "example": [number // len(sides) for number in range(len(texts))],
            "side": [number % len(sides) for number in range(len(texts))],
            "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
        }

    def predictions(self, outputs: Outputs, features: Dataset, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns id, embedding and pair_embedding (vectors); prediction (their cosine) and reference (its score);
        cosine: with the vectors of the recipe's model, the mean of both texts."""
        vectors = np.stack(outputs["sentence_embedding"])
        example, side = (np.asarray(features[name]) for name in ("example", "side"))
        table = pd.DataFrame({"id": frame["id"]})
        agreements = []
        for number, (name, dense) in enumerate(SIDES.items()):
            rows = np.flatnonzero(side == number)
            if len(rows):
                table[name] = list(vectors[rows[np.argsort(example[rows])]])
            if name in table and dense in frame:
                agreements.append(cosines(table[name], frame[dense]))
        if "pair_embedding" in table:
            table["prediction"] = cosines(table["embedding"], table["pair_embedding"])
        if "score" in frame:
            table["reference"] = frame["score"]
        if agreements:
            table["cosine"] = np.mean(agreements, axis=0)
        return table

    def beside(self, frame: pd.DataFrame, outputs: Outputs, features: Dataset) -> pd.DataFrame:
        """Its examples with the vectors of the recipe's own model, which gave `outputs`."""
        rows = self.predictions(outputs, features, frame)
        return frame.assign(**{dense: rows[name] for name, dense in SIDES.items() if name in rows})

    def metric_names(self, predictions: pd.DataFrame) -> Sequence[str]:
        """spearman where pairs have scores, cosine where the vectors of the recipe's model are known."""
        needs = {"spearman": "reference", "cosine": "cosine"}
        return [name for name, column in needs.items() if column in predictions]

    def scorer(self, predictions: pd.DataFrame, metric: str) -> metrics.Scorer:
        """The metric as a fast function of row positions."""
        if metric == "cosine":
            return metrics.mean(predictions["cosine"].to_numpy())
        return metrics.correlation(
            metric, predictions["reference"].to_numpy(), predictions["prediction"].to_numpy()
        )

    def agreement(self, one: pd.DataFrame, other: pd.DataFrame) -> float:
        """Mean cosine of the vectors that two models give a text."""
        return float(np.mean([cosines(one[name], other[name]) for name in SIDES if name in one]))

    def reference_points(self) -> dict[str, float]:
        """Spearman's correlation of a bag of words, where validation has scores."""
        return reference.similarity(self.examples) if "score" in self.examples.validation else {}


def cosines(one: Sequence[Any] | pd.Series, other: Sequence[Any] | pd.Series) -> np.ndarray:
    """Cosines of vectors, row by row; 0 where one has no length."""
    x, y = (np.stack(list(side)).astype(float) for side in (one, other))
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.divide((x * y).sum(axis=1), lengths, out=np.zeros(len(x)), where=lengths > 0)


def _frame(table: Table, keys: TaskKeys, must: bool) -> pd.DataFrame:
    """The texts of a table, with pairs and scores where it has them; `must`: it has what the recipe names."""
    columns = _columns(table, keys.columns, must)
    data: dict[str, Any] = {"id": table.frame.index.astype(str)}
    data |= {role: table.texts(columns[role]) for role in ("text", "pair") if role in columns}
    if "score" in columns:
        cells = labelling.cells(table, columns["score"])
        data["score"] = labelling.scores(table, columns["score"], cells)
    return pd.DataFrame(data)


def _columns(table: Table, named: Mapping[str, Column], must: bool) -> dict[str, Column]:
    """The column of each role: as the recipe says (where train lacks a pair or scores, it has none), else by the
    usual names; a label counts as a score if it is written with a decimal point."""
    there = set(table.frame.columns)
    given = {role: name for role, name in named.items() if must or role == "text" or name in there}
    columns = text_columns(given, table, "{text: ...}")
    if "pair" not in columns:
        if must and "score" in columns:
            raise UserError("task.columns: a score is of two texts; name the second one too: pair: ...")
        return {"text": columns["text"]}
    scores = [name for name in SCORES if name in there and _has_scores(table, name)]
    return ({"score": scores[0]} if scores else {}) | columns


def _has_scores(table: Table, column: Column) -> bool:
    return labelling.is_regression(labelling.cells(table, column))

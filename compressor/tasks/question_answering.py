"""Answers as spans of a context: SQuAD version 1 and, with questions that have no answer, version 2."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from compressor.tasks import metrics, squad_metrics
from compressor.tasks.base import Examples, Outputs, Task
from compressor.tasks.readers import read_tables
from compressor.tasks.schema import COLUMNS, Column, TaskKeys
from compressor.tasks.spans import MAX_ANSWER_LENGTH, N_BEST, best_span, context_offsets, token_span
from compressor.tasks.splits import split
from compressor.tasks.tables import Table

QUESTION_TOKENS = 64  # a longer question is cut, as in BERT's own set-up
LEAST_STEP = 8  # context tokens by which windows at least advance


class QuestionAnswering(Task):
    """Columns of the examples: id, question, context, answers (texts), answer_starts (characters).

    A context that does not fit is read in windows that share `stride` tokens. A window learns the first
    answer or, where it does not hold that, the position of the classification token (usually the first).
    """

    type = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    optimum_task = "question-answering"
    output_names = ("start_logits", "end_logits")
    label_columns = ("start_positions", "end_positions")
    evaluation_columns = ("example", "truncated", "starts", "ends", "null")

    @classmethod
    def load(cls, keys: TaskKeys, seed: int) -> "QuestionAnswering":
        """Read, check and split the data; no context is on both sides of the selection split."""
        frames = {name: _frame(table, keys) for name, table in read_tables(keys).items()}
        return cls(keys, split(frames["train"], frames["validation"], keys, seed, group="context"))

    def __init__(self, keys: TaskKeys, examples: Examples, labels: Sequence[str] = ()) -> None:
        """There are no labels."""
        super().__init__(keys, examples, labels)
        frames = (examples.train, examples.selection, examples.validation)
        self.unanswerable = any((frame["answers"].str.len() == 0).any() for frame in frames)
        """Whether some question has no answer (version 2), so that "" may be predicted."""

    def model_config(self) -> dict[str, Any]:
        """A start and an end logit a token."""
        return {"num_labels": 2}

    def post_processing(self, tokenizer: Any) -> dict[str, Any]:
        """How start and end logits become an answer."""
        return {
            "n_best": N_BEST,
            "max_answer_length": MAX_ANSWER_LENGTH,
            "stride": self.keys.stride,
            "question_tokens": self._question_tokens(tokenizer),
            "null_answer": self.unanswerable,
        }

    def _encode(self, frame: pd.DataFrame, tokenizer: Any) -> dict[str, list[Any]]:
        questions, cut = self._short_questions(frame["question"].tolist(), tokenizer)
        encoded = tokenizer(
            questions,
            frame["context"].tolist(),
            truncation="only_second",
            max_length=self.keys.max_length,
            stride=self.keys.stride,
            return_overflowing_tokens=True,
        )
        example = encoded.pop("overflow_to_sample_mapping")
        windows = [context_offsets(e.offsets, e.sequence_ids) for e in encoded.encodings]
        null = [_null_position(ids, tokenizer.cls_token_id) for ids in encoded["input_ids"]]
        targets = [
            _first_answer(text, at) for text, at in zip(frame["answers"], frame["answer_starts"], strict=True)
        ]
        spans = [
            (targets[row] and token_span(starts, ends, *targets[row])) or (at, at)
            for row, (starts, ends), at in zip(example, windows, null, strict=True)
        ]
        return {
            **encoded,
            "start_positions": [first for first, _ in spans],
            "end_positions": [last for _, last in spans],
            "example": example,
            "truncated": [cut[row] for row in example],
            "starts": [starts for starts, _ in windows],
            "ends": [ends for _, ends in windows],
            "null": null,
        }

    def _short_questions(self, questions: list[str], tokenizer: Any) -> tuple[list[str], list[bool]]:
        """The questions without leading space, cut to leave windows room, and whether each was cut."""
        room = self._question_tokens(tokenizer)
        questions = [question.lstrip() for question in questions]
        encodings = tokenizer(questions, add_special_tokens=False).encodings
        cut = [len(encoding.ids) > room for encoding in encodings]
        short = [
            question[: encoding.offsets[room - 1][1]] if too_long else question
            for question, encoding, too_long in zip(questions, encodings, cut, strict=True)
        ]
        return short, cut

    def _question_tokens(self, tokenizer: Any) -> int:
        """Tokens of a question that are read: so many that every window has room for its context."""
        special = tokenizer.num_special_tokens_to_add(pair=True)
        room = self.keys.max_length - special - (self.keys.stride or 0) - LEAST_STEP
        return int(max(1, min(QUESTION_TOKENS, room)))

    def predictions(self, outputs: Outputs, features: Dataset, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns id, prediction (text), reference (list of texts), exact_match, f1, has_answer."""
        texts = _best_answers(outputs, features, frame, self.unanswerable)
        scores = [
            squad_metrics.scores(text, known) for text, known in zip(texts, frame["answers"], strict=True)
        ]
        return pd.DataFrame(
            {
                "id": frame["id"].to_numpy(),
                "prediction": texts,
                "reference": frame["answers"].to_numpy(),
                "exact_match": [exact for exact, _ in scores],
                "f1": [f1 for _, f1 in scores],
                "has_answer": (frame["answers"].str.len() > 0).to_numpy(),
            }
        )

    def metric_names(self, predictions: pd.DataFrame) -> Sequence[str]:
        """f1 and exact_match; for version 2 also those of questions with and without an answer."""
        names = ["f1", "exact_match"]
        if not predictions["has_answer"].all():
            names += ["has_answer_f1", "has_answer_exact_match", "no_answer_exact_match"]
        return names

    def scorer(self, predictions: pd.DataFrame, metric: str) -> metrics.Scorer:
        """The metric as a fast function of row positions."""
        has_answer = predictions["has_answer"].to_numpy()
        for prefix, where in (("has_answer_", has_answer), ("no_answer_", ~has_answer)):
            if metric.startswith(prefix):
                return metrics.mean(predictions[metric.removeprefix(prefix)].to_numpy(), where)
        return metrics.mean(predictions[metric].to_numpy())


def _best_answers(outputs: Outputs, features: Dataset, frame: pd.DataFrame, may_be_null: bool) -> list[str]:
    """The best answer over all windows of each example.

    It is "" where that may be and where every window's null answer (both logits of the null position) scores
    more than the best span.
    """
    best = np.full(len(frame), -np.inf)
    null = np.full(len(frame), np.inf)
    texts = [""] * len(frame)
    contexts = frame["context"].tolist()
    windows = features.select_columns(["example", "null", "starts", "ends"]).with_format("numpy")
    logits = zip(outputs["start_logits"], outputs["end_logits"], strict=True)
    for window, (start, end) in zip(windows, logits, strict=True):
        row, at = window["example"], window["null"]
        null[row] = min(null[row], start[at] + end[at])
        score, first, last = best_span(start, end, window["starts"])
        if score > best[row]:
            best[row] = score
            texts[row] = contexts[row][window["starts"][first] : window["ends"][last]].strip()
    if not may_be_null:
        return texts
    return ["" if nothing > answer else text for text, nothing, answer in zip(texts, null, best, strict=True)]


def _frame(table: Table, keys: TaskKeys) -> pd.DataFrame:
    columns = {role: keys.columns.get(role, role) for role in COLUMNS["question-answering"]}
    questions, contexts = table.texts(columns["question"]), table.texts(columns["context"])
    ids = _ids(table, columns["id"], required="id" in keys.columns)
    answers = [_answers(value) for value in table.values(columns["answers"])]
    form = "{text: [...], answer_start: [...]}"
    table.reject([answer is None for answer in answers], f"{columns['answers']!r} is not {form}")
    known = [answer or ([], []) for answer in answers]
    _check_answers(table, ids, contexts, known)
    return pd.DataFrame(
        {
            "id": ids,
            "question": questions,
            "context": contexts,
            "answers": [texts for texts, _ in known],
            "answer_starts": [starts for _, starts in known],
        }
    )


def _ids(table: Table, column: Column, required: bool) -> list[str]:
    if not required and column not in table.frame.columns:
        return [str(place) for place in table.frame.index]
    ids = [str(value) for value in table.values(column)]
    seen = pd.Series(ids).duplicated().to_numpy()
    table.reject(seen, f"the id '{ids[int(seen.argmax())]}' was there before; ids must be unique")
    return ids


def _answers(value: Any) -> tuple[list[str], list[int]] | None:
    """Texts and the characters they start at; None where this is no pair of lists of the same length."""
    try:
        texts, starts = [str(text) for text in value["text"]], [int(start) for start in value["answer_start"]]
    except (TypeError, KeyError, ValueError):
        return None
    return (texts, starts) if len(texts) == len(starts) else None


def _check_answers(
    table: Table, ids: Sequence[str], contexts: Sequence[str], answers: Sequence[tuple[list[str], list[int]]]
) -> None:
    """Raise UserError naming the first question whose context does not hold an answer where it should."""
    lost = [
        next(
            (
                text
                for text, at in zip(*pair, strict=True)
                if not text.strip() or context[at : at + len(text)] != text
            ),
            None,
        )
        for context, pair in zip(contexts, answers, strict=True)
    ]
    bad = np.array([text is not None for text in lost])
    first = int(bad.argmax())
    problem = f"the context does not hold the answer {lost[first]!r} at its answer_start"
    table.reject(bad, f"question {ids[first]}: {problem}")


def _first_answer(texts: Sequence[str], starts: Sequence[int]) -> tuple[int, int] | None:
    """The characters [first, last) of the answer that is learned, without white space around it."""
    if not texts:
        return None
    text, start = texts[0], starts[0]
    first = start + len(text) - len(text.lstrip())
    return first, first + len(text.strip())


def _null_position(ids: Sequence[int], cls_token: int | None) -> int:
    return ids.index(cls_token) if cls_token in ids else 0

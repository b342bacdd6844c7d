"""From the label cells of a file to class numbers or scores."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from compressor.errors import UserError
from compressor.schema import suggest
from compressor.tasks.schema import Column
from compressor.tasks.tables import Table


def cells(table: Table, column: Column) -> list[str]:
    """The labels of a column as text; class numbers get the names the data set stores for them.

    Raises UserError for a row without a label, or with several.
    """
    return [label for (label,) in names(table, column, [[value] for value in table.values(column)], "row")]


def names(table: Table, column: Column, rows: Sequence[Sequence[Any]], each: str) -> list[list[str]]:
    """The labels of every row of a column as text, one for each `each` ("row" or "word").

    Class numbers get the names the data set stores for them; a number out of range stays a number. Raises
    UserError naming the first row where a label is missing, or is a list.
    """
    remedy = f"give every {each} one, or leave the row out"
    table.reject(
        [any(map(_is_list, row)) for row in rows], f"{column!r} holds several labels in one place", remedy
    )
    table.reject([any(map(_is_missing, row)) for row in rows], f"{column!r} has no label", remedy)
    class_names = table.class_names.get(column)
    known = {} if class_names is None else dict(enumerate(class_names))
    return [[known.get(label, _text(label)) for label in row] for row in rows]


def is_regression(texts: Sequence[str]) -> bool:
    """Whether labels are scores: most read as numbers, and those are written with a decimal point."""
    scores = [text for text in texts if _number(text) is not None and not _is_integer(text)]
    return 2 * len(scores) > len(texts)


def scores(table: Table, column: Column, texts: Sequence[str]) -> list[float]:
    """Labels as numbers. Raises UserError naming the first row whose label is none."""
    numbers = [_number(text) for text in texts]
    bad = next((text for text, number in zip(texts, numbers, strict=True) if number is None), "")
    table.reject([number is None for number in numbers], f"{column!r} holds {bad!r}, not a number")
    return [number for number in numbers if number is not None]


def label_set(given: Sequence[str] | None, train: Table, column: Column, texts: Sequence[str]) -> list[str]:
    """The names of the classes, in the head's order.

    The recipe's `labels`, else the names the data set stores, else the labels of train in alphabetical order
    (in numerical order when all are whole numbers). Raises UserError when there is only one class, or so many
    that the column cannot be the label.
    """
    if given is not None:
        return list(given)
    if column in train.class_names:
        return list(train.class_names[column])
    found = set(texts)
    labels = sorted(found, key=int) if all(map(_is_integer, found)) else sorted(found)
    if len(labels) < 2:
        raise UserError(f"{train.source}: every row has the label '{labels[0]}'; there is nothing to learn")
    if len(labels) > 20 and len(labels) * 2 > len(texts):
        raise UserError(
            f"{train.source}: {column!r} has {len(labels):,} different values in {len(texts):,} rows; is it "
            "the label? If it is, list all labels in task.labels"
        )
    return labels


def given_names(texts: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Labels as the names the recipe gives, where the data has positions in that list (0, 1, ...) instead."""
    positions = {str(number): label for number, label in enumerate(labels)}
    if set(texts) <= positions.keys() - set(labels):
        return [positions[text] for text in texts]
    return list(texts)


def class_numbers(table: Table, column: Column, texts: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Labels as positions in `labels`. Raises UserError naming the first row with a label outside the set."""
    numbers = {label: number for number, label in enumerate(labels)}
    bad = next((text for text in texts if text not in numbers), "")
    table.reject([text not in numbers for text in texts], not_a_label(column, bad, labels))
    return [numbers[text] for text in texts]


def not_a_label(column: Column, text: str, labels: Sequence[str]) -> str:
    """What is wrong with a label outside the set."""
    known = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    return f"{column!r} holds '{text}', which is not among the labels ({known}){suggest(text, labels)}"


def _is_list(label: Any) -> bool:
    return isinstance(label, Collection) and not isinstance(label, str)


def _is_missing(label: Any) -> bool:
    return label is None or label != label or label in ("", "nan", "NaN")  # a NaN differs from itself


def _text(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label).strip()


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""Reads what `task.dataset` names into tables; every way a file can be wrong ends in one clear UserError."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from compressor.errors import UserError
from compressor.files import digest, sha256
from compressor.schema import expand, suggest
from compressor.tasks import docstrings, hub, json_text
from compressor.tasks.schema import DatasetBuiltin, DatasetFiles, DatasetHub, TaskKeys, file_format
from compressor.tasks.squad_format import flatten
from compressor.tasks.tables import Table

log = logging.getLogger(__name__)


def read_tables(keys: TaskKeys) -> dict[str, Table]:
    """The tables `train` and `validation` of a task's data set, as their source names and orders them.

    Raises UserError for whatever is wrong with a file or with the hub's answer.
    """
    dataset = keys.dataset
    if isinstance(dataset, DatasetBuiltin):
        frames = docstrings.build()
        return {split: Table(frame, f"docstrings {split}") for split, frame in frames.items()}
    if isinstance(dataset, str | DatasetHub):
        return hub.read(DatasetHub(hub=dataset) if isinstance(dataset, str) else dataset)
    if dataset.train == dataset.validation:
        log.warning("train and validation are the same file: the reported metrics are of seen examples")
    return {
        split: read_file(path, keys.type, dataset)
        for split, path in (("train", dataset.train), ("validation", dataset.validation))
    }


def fingerprint(keys: TaskKeys) -> dict[str, Any]:
    """What identifies the content of the data: file hashes, the hub's commit, or a digest of built rows.

    The commit of a hub data set is known once it is in the local cache (None before): ask after loading.
    """
    dataset = keys.dataset
    if isinstance(dataset, DatasetBuiltin):
        frames = docstrings.build()
        rows = {split: frame.to_numpy().tolist() for split, frame in frames.items()}
        return {"builtin": dataset.builtin, "rows": digest(rows)}
    if isinstance(dataset, DatasetFiles):
        return {split: sha256(find_file(getattr(dataset, split))) for split in ("train", "validation")}
    return hub.fingerprint(DatasetHub(hub=dataset) if isinstance(dataset, str) else dataset)


def find_file(name: str) -> Path:
    """The path of an existing file (`~` means home). Raises UserError with the nearest name beside it."""
    path = expand(name)
    if path.is_dir():
        raise UserError(f"task.dataset: {name} is a folder, not a file")
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        folder = "" if path.parent.is_dir() else f" (there is no folder {path.parent} here)"
        raise UserError(f"task.dataset: no file {name}{suggest(path.name, siblings)}{folder}")
    return path


def read_file(name: str, task_type: str, dataset: DatasetFiles) -> Table:
    """Read one file in the format the recipe or its name says."""
    path = find_file(name)
    kind = file_format(task_type, dataset, name)
    if kind == "parquet":
        table = _parquet(path, name)
    elif kind == "csv" or kind == "tsv":
        quoting = dataset.quoting if dataset.quoting is not None else kind == "csv"
        separator = "," if kind == "csv" else "\t"
        table = _delimited(decode(path, name, dataset.encoding), name, separator, quoting, dataset.header)
    elif kind == "jsonl":
        table = _json_lines(decode(path, name, dataset.encoding), name)
    elif kind == "text":
        table = _lines(decode(path, name, dataset.encoding), name)
    else:
        table = flatten(decode(path, name, dataset.encoding), name)
    if table.frame.empty:
        raise UserError(f"{name} holds no rows")
    return table


def decode(path: Path, name: str, encoding: str) -> str:
    """The text of a file. Raises UserError naming the line that is not in `encoding`."""
    content = path.read_bytes()
    if b"\0" in content and not encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32")):
        raise UserError(
            f"{name} holds NUL bytes: it is a binary file, or in another encoding than {encoding}: set "
            "task.dataset.encoding (for example utf-16)"
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name} line {line}: byte 0x{content[error.start]:02x} is not {encoding}; "
            "set task.dataset.encoding (for example cp1252)"
        ) from None
    if not text.strip():
        raise UserError(f"{name} is empty")
    return text


def _delimited(text: str, name: str, separator: str, quoting: bool, header: bool) -> Table:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        for row in reader:
            if row:  # a blank line is no row
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        hint = "; if quotes are ordinary characters here, set task.dataset.quoting: false" if quoting else ""
        raise UserError(f"{name} line {line}: {error}{hint}") from None
    for row, at in zip(rows, lines, strict=True):
        if len(row) != len(rows[0]):
            other = "true" if not quoting else "false"
            raise UserError(
                f"{name} line {at}: {len(row)} fields where line {lines[0]} has {len(rows[0])} "
                f"(separator {separator!r}; is task.dataset.quoting: {other} meant?)"
            )
    columns: list[Any] = list(range(len(rows[0])))
    if header:
        columns, rows, lines = list(rows[0]), rows[1:], lines[1:]
        if len(set(columns)) < len(columns):
            twice = next(c for c in columns if columns.count(c) > 1)
            raise UserError(
                f"{name}: the header names '{twice}' twice; "
                "if there is no header, set task.dataset.header: false"
            )
    index = pd.Index(lines, name="line")
    return Table(pd.DataFrame(rows, columns=columns, index=index, dtype=object), name)


def _lines(text: str, name: str) -> Table:
    """A row a line; the last one's end may be missing, and other ends than newlines are made into these."""
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    index = pd.RangeIndex(1, len(lines) + 1, name="line")
    return Table(pd.DataFrame({"text": lines}, index=index, dtype=object), name)


def _json_lines(text: str, name: str) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = json_text.parse(line, name, number, hint="; one object a line is read")
        if not isinstance(row, dict):
            raise UserError(f"{name} line {number}: a JSON {type(row).__name__}; one object a line is read")
        rows.append(row)
        lines.append(number)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = {column: pd.Series([row.get(column) for row in rows], dtype=object) for column in columns}
    frame = pd.DataFrame(cells)
    frame.index = pd.Index(lines, name="line")
    return Table(frame, name)


def _parquet(path: Path, name: str) -> Table:
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name} is no readable parquet file: {str(error).splitlines()[0]}") from None
    return hub.from_arrow(table, name)

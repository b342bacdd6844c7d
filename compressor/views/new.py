"""`new`: a commented recipe to start from."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape

from compressor.benchmark.machine import usable_cores
from compressor.errors import UserError
from compressor.files import write_text
from compressor.schema import IdOrPath, suggest
from compressor.tasks.schema import MAX_LENGTH, METRICS

TEMPLATE = Path(__file__).with_name("new.yaml")
TASKS = {
    "text-classification": {"dataset": "sst2", "ending": "csv", "long": "cut"},
    "token-classification": {
        "dataset": "{hub: unimelb-nlp/wikiann, config: en}",
        "ending": "jsonl",
        "long": "cut",
    },
    "question-answering": {"dataset": "squad", "ending": "json", "long": "read in overlapping windows"},
    "feature-extraction": {
        "dataset": "sentence-transformers/stsb",
        "ending": "jsonl",
        "long": "cut",
        "dense": "An encoder of texts",
        "more": "  pooling: mean                 # or cls: as the model was trained\n"
        "  normalize: true               # vectors of length 1\n",
        "first": "",
        "teacher": "model",
    },
}
"""For each task a public data set, so that the recipe runs before one's own data are in it."""
LABELLED = {
    "dense": "A fine-tuned dense model",
    "more": "",
    "first": "  # The dense model: what the result is compared with, and the teacher of all that follows.\n"
    "  - finetune: {id: teacher, epochs: 3, learning_rate: 3.0e-5, batch_size: 16}\n",
    "teacher": "teacher",
}
"""What a recipe says of the dense model where texts have labels: it is trained first."""


def write_new(model: str, task: str, target: Path) -> str:
    """Write a recipe for `model` and `task` to `target`; returns what to say about it.

    Raises:
        UserError: `target` exists, the task is unknown, or `model` is neither a hub id nor a folder's path.
    """
    if target.exists():
        raise UserError(f"{target} exists; give another name, or remove it first")
    if task not in TASKS:
        raise UserError(f"--task {task}: unknown{suggest(task, TASKS)} (known: {', '.join(TASKS)})")
    try:
        TypeAdapter(IdOrPath).validate_python(model)
    except ValidationError as error:
        raise UserError(f"--model: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    write_text(target, recipe_text(model, task, target))
    shown = escape(str(target))
    return f"wrote {shown}; put your data into task.dataset, then: compressor plan {shown}"


def recipe_text(model: str, task: str, target: Path) -> str:
    """The recipe; `target` is the file its header says to run."""
    values: dict[str, Any] = {
        "file": target,
        "name": yaml.safe_dump({"name": _name(target)}).strip(),
        "model": yaml.safe_dump({"model": model}, width=1000).strip(),
        "task": task,
        "length": MAX_LENGTH[task],
        "metric": METRICS[task][0],
        "threads": min(2, usable_cores()),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values | LABELLED | TASKS[task])


def _name(target: Path) -> str:
    """A name for run and folder, the file's own: `my.yaml` runs in `runs/my`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", target.stem).strip("-._") or "recipe"

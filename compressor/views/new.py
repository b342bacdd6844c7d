"""`new`: a commented recipe to start from, out of answers or options."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape

from compressor.benchmark.machine import usable_cores
from compressor.errors import UserError
from compressor.files import write_text
from compressor.pruning.base import METHODS, Pruner, method_class
from compressor.report.fields import is_fraction
from compressor.schema import IdOrPath, suggest
from compressor.tasks.schema import MAX_LENGTH, METRICS, TaskKeys, TaskType

TEMPLATE = Path(__file__).with_name("new.yaml")
TASKS = get_args(TaskType)
PUBLIC = {
    "text-classification": "sst2",
    "token-classification": "{hub: unimelb-nlp/wikiann, config: en}",
    "question-answering": "squad",
    "feature-extraction": "sentence-transformers/stsb",
    "language-modeling": "{hub: Salesforce/wikitext, config: wikitext-2-raw-v1}",
    "summarization": "EdinburghNLP/xsum",
}
"""For a task a public data set, so that the recipe runs before one's own data are in it."""
FILES = {"text-classification": "csv", "question-answering": "json", "language-modeling": "txt"}
"""What one's own files most often end in."""
GOALS = {"speedup": 2.0, "sparsity": 0.6, "latency_ms": 10.0, "max_metric_drop": 0.01}
"""A goal of each kind, for methods that aim at one."""
LABELLED = {
    "dense": "A fine-tuned dense model",
    "more": "",
    "first": "  # The dense model: what the result is compared with, and the teacher of all that follows.\n"
    "  - finetune: {id: teacher, epochs: 3, learning_rate: 3.0e-5, batch_size: 16}\n",
    "teacher": "teacher",
    "distill": ", distill: {teacher: teacher}",
}
"""What a recipe says of the dense model where texts have labels: it is trained first."""
UNLABELLED = {
    "dense": "An encoder of texts",
    "more": "  pooling: mean                 # or cls: as the model was trained\n"
    "  normalize: true               # vectors of length 1\n",
    "first": "",
    "teacher": "model",
    "distill": ", distill: {teacher: model}",
}
"""What it says where there are none: the model itself teaches."""
STREAMED = LABELLED | {
    "dense": "A language model",
    "first": "  # The dense model: what the result is compared with.\n"
    "  - finetune: {id: dense, epochs: 1, learning_rate: 5.0e-5, batch_size: 16}\n",
    "teacher": "",
    "distill": "",
}
"""What it says of a running text: next tokens teach enough."""
LONG = {
    "question-answering": "longer text is read in overlapping windows",
    "language-modeling": "a text is read so many at a time",
}
"""What becomes of text that is longer than `max_length`, where it is not cut."""


WRITTEN = LABELLED | {
    "more": "  max_target_length: 64\n  generation: {max_tokens: 60, beams: 1}    # how summaries are written\n",
}
"""What it says where texts are written."""


class Answers(NamedTuple):
    """What a recipe is made of; `train` and `validation` are files, empty for a public data set."""

    model: str
    task: str
    method: str = "movement"
    train: str = ""
    validation: str = ""


def ask(given: dict[str, str | None], prompt: Callable[..., str]) -> Answers:
    """The answers: those that were given and, where model or task are not, what the user says on the terminal.

    `prompt` asks a question and takes `default`. What makes no sense is said and asked again.

    Raises:
        UserError: something must be asked and there is nobody to ask.
    """
    known = {key: value for key, value in given.items() if value}
    if missing := [f"--{key}" for key in ("model", "task") if key not in known]:
        if not sys.stdin.isatty():
            raise UserError(f"say {' and '.join(missing)}: there is no terminal here to ask on")
        _ask_rest(known, prompt)
    answers = Answers(**known)
    check(answers)
    return answers


def _ask_rest(known: dict[str, str], prompt: Callable[..., str]) -> None:
    questions: list[tuple[str, str, str, Callable[[str], Any]]] = [
        ("model", "model: a hub id, or a folder (./...)", "bert-base-uncased", _check_model),
        ("task", f"task: {', '.join(TASKS)}", TASKS[0], lambda name: _check_choice("task", name, TASKS)),
        (
            "method",
            f"method: {', '.join(METHODS)}",
            "movement",
            lambda n: _check_choice("method", n, METHODS),
        ),
        ("train", "training file (none: a public data set)", "", lambda _: None),
    ]
    for key, question, default, checked in questions:
        while key not in known:
            answer = prompt(question, default=default).strip()
            try:
                checked(answer)
                known[key] = answer
            except UserError as error:
                sys.stderr.write(f"{error}\n")
    if known["train"] and "validation" not in known:
        known["validation"] = prompt("validation file").strip()


def check(answers: Answers) -> None:
    """Raise UserError for answers that no valid recipe can be made of."""
    _check_model(answers.model)
    _check_choice("task", answers.task, TASKS)
    _check_choice("method", answers.method, METHODS)
    if bool(answers.train) != bool(answers.validation):
        raise UserError("--train and --validation go together: name both files, or neither")
    if answers.train:
        files = {"train": answers.train, "validation": answers.validation}
        try:
            TaskKeys(type=answers.task, dataset=files)  # type: ignore[arg-type]
        except ValidationError as error:
            raise UserError(f"--train, --validation: {_said(error)}") from None


def _check_model(name: str) -> None:
    try:
        TypeAdapter(IdOrPath).validate_python(name)
    except ValidationError as error:
        raise UserError(f"--model: {_said(error)}") from None


def _check_choice(option: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UserError(f"--{option} {name}: unknown{suggest(name, known)} (known: {', '.join(known)})")


def _said(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def write_new(answers: Answers, target: Path) -> str:
    """Write a recipe to `target`; returns what to say about it.

    Raises:
        UserError: `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} exists; give another name, or remove it first")
    write_text(target, recipe_text(answers, target))
    shown = escape(str(target))
    first = "" if answers.train else "put your data into task.dataset, then: "
    return f"wrote {shown}; {first}compressor plan {shown}"


def recipe_text(answers: Answers, target: Path) -> str:
    """The recipe; `target` is the file its header says to run."""
    task, method = answers.task, method_class(answers.method)
    metric = METRICS[task][0]
    dense = {
        "feature-extraction": UNLABELLED,
        "language-modeling": STREAMED,
        "summarization": WRITTEN,
    }.get(task, LABELLED)
    values: dict[str, Any] = {
        "file": target,
        "name": yaml.safe_dump({"name": _name(target)}).strip(),
        "model": yaml.safe_dump({"model": answers.model}, width=1000).strip(),
        "task": task,
        "dataset": _dataset(answers),
        "ending": FILES.get(task, "jsonl"),
        "length": MAX_LENGTH[task],
        "long": LONG.get(task, "longer text is cut"),
        "threads": min(2, usable_cores()),
        "about": textwrap.fill(_title(method), 116, initial_indent="  # ", subsequent_indent="  # "),
        "prune": textwrap.indent(_taught(method, dense["teacher"]), "  "),
        "target": _target(method),
        "gate": "max_metric_drop: 0.01        " if is_fraction(metric) else "max_metric_drop_relative: 0.02",
        "metric": f"{metric}, absolute"
        if is_fraction(metric)
        else f"{metric}, as a share of the dense model's",
    }

    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values | dense)


def _dataset(answers: Answers) -> str:
    if not answers.train and answers.task in PUBLIC:
        return PUBLIC[answers.task]
    files = {
        split: getattr(answers, split) or f"{split}.{FILES.get(answers.task, 'jsonl')}"
        for split in ("train", "validation")
    }
    return yaml.safe_dump(files, default_flow_style=True, width=1000, sort_keys=False).strip()


def _title(method: type[Pruner]) -> str:
    """The first paragraph of a method's docstring: what it is, and whose."""
    return " ".join(inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].split())


def _example(method: type[Pruner]) -> str:
    """The stage that a method's docstring shows."""
    _, _, example = inspect.cleandoc(method.__doc__ or "").partition("\nExample:\n")
    return textwrap.dedent(example).strip()


def _taught(method: type[Pruner], teacher: str) -> str:
    """The same stage with this teacher or none; where it is the model itself, whatever is trained must have it."""
    example = _example(method)
    plain = re.sub(r",\s*distill: \{.*?\}", "", example, flags=re.DOTALL)
    if not teacher:
        return plain
    if teacher != "model" or _shown(method).training is None:
        return example
    return f"{plain[:-1]},\n          distill: {{teacher: {teacher}}}}}"


def _shown(method: type[Pruner]) -> Pruner:
    """The method as its docstring shows it."""
    ((stage,),) = [item.values() for item in yaml.safe_load(_example(method))]
    return method(**{key: value for key, value in stage.items() if key not in ("id", "from")})


def _target(method: type[Pruner]) -> str:
    """A `target` for methods that need one, else nothing."""
    made = _shown(method)
    if not made.needs_target:
        return ""
    goal = next(goal for goal in GOALS if goal in made.targets)
    return f"target: {{{goal}: {GOALS[goal]}}}    # what pruning aims at\n"


def _name(target: Path) -> str:
    """A name for run and folder, the file's own: `my.yaml` runs in `runs/my`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", target.stem).strip("-._") or "recipe"

"""The recipe: its schema, its reading, and messages that say what is wrong, where, and what to do."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from compressor.benchmark.schema import BenchmarkKeys
from compressor.errors import UserError
from compressor.models.source import ModelSource
from compressor.pruning.base import METHODS, method_class
from compressor.pruning.target import Target
from compressor.references import among, check_references
from compressor.schema import Keys, suggest
from compressor.stages.base import TEACHER, Stage
from compressor.stages.chain import STAGES, Outline, Problem, check_order, stage_ids
from compressor.stages.prune import Prune
from compressor.stages.release import GateKeys
from compressor.tasks.schema import PARTS, TaskKeys
from compressor.yamlfile import Document, parse_value, read_yaml


class Recipe(Keys):
    """Everything a run depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    model: ModelSource
    task: TaskKeys
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    stages: Annotated[list[SerializeAsAny[Stage]], Field(min_length=1)]
    baseline: str | None = None
    benchmark: BenchmarkKeys = BenchmarkKeys()
    target: Target | None = None
    gates: GateKeys = GateKeys()
    release: str = "final"

    @model_validator(mode="before")
    @classmethod
    def _parts_of_the_task(cls, keys: Any) -> Any:
        """Time all parts of models that run in parts, unless the recipe names some."""
        task, grid = (keys.get(name) for name in ("task", "benchmark")) if isinstance(keys, dict) else (0, 0)
        kind = task.get("type") if isinstance(task, dict) else getattr(task, "type", None)
        grid = {} if grid is None else grid
        if isinstance(kind, str) and kind in PARTS and isinstance(grid, dict):
            return keys | {"benchmark": {"parts": list(PARTS[kind])} | grid}
        return keys


@dataclass(frozen=True)
class Loaded:
    """A valid recipe with the plain data it was read from (overrides applied)."""

    recipe: Recipe
    data: dict[str, Any]
    path: Path
    overrides: tuple[str, ...] = ()


class RecipeError(UserError):
    """All that is wrong with a recipe, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read and validate the recipe in `path`; `overrides` are `a.b=value` texts.

    Raises:
        UserError: with every problem found, each with file, line, key path and what is allowed.
    """
    document = read_yaml(path)
    for override in overrides:
        apply_override(document, override)
    return Loaded(parse(document), document.value, path, tuple(overrides))


def parse(document: Document) -> Recipe:
    """The recipe in a document.

    Raises:
        RecipeError: it is not valid.
    """
    data = dict(document.value)
    stages, outlines, problems = _parse_stages(data.get("stages"))
    if "stages" in data:
        data["stages"] = stages
    recipe, complete = None, len(stages) == len(outlines)
    try:
        recipe = Recipe(**data)
    except ValidationError as error:
        problems += [p for p in _problems(error, document.value) if p[0][:1] != ("stages",) or complete]
    if outlines and None not in outlines:
        baseline = data.get("baseline")
        known = [outline for outline in outlines if outline]
        problems += check_order(known, baseline if isinstance(baseline, str) else None)
    if recipe and not problems:
        aiming = [s.aiming(recipe.target) if isinstance(s, Prune) else s for s in recipe.stages]
        recipe = recipe.model_copy(update={"stages": aiming})
        problems += check_references(recipe)
    if problems or recipe is None:
        ids = _ids_of(document.value.get("stages"))
        rows = {(document.line(at), document.place(at), _dotted(at, ids), text) for at, text in problems}
        raise RecipeError([f"{place}: {where}: {text}" for _, place, where, text in sorted(rows)])
    return recipe


def _parse_stages(value: Any) -> tuple[list[Stage], list[Outline | None], list[Problem]]:
    """The valid stages, an outline of every one (`None` where it cannot be told), and what is wrong."""
    stages: list[Stage] = []
    outlines: list[Outline | None] = []
    problems: list[Problem] = []
    if value is None:
        return stages, outlines, problems
    if not isinstance(value, list):
        return stages, [None], [(("stages",), "should be a list of stages, such as: - finetune: {}")]
    for i, item in enumerate(value):
        outlines.append(None)
        if not isinstance(item, dict) or len(item) != 1:
            problems.append((("stages", i), f"each stage is one verb with its keys: {', '.join(STAGES)}"))
            continue
        (verb, keys), at = next(iter(item.items())), ("stages", i)
        if verb not in STAGES:
            message = f"unknown stage{suggest(verb, STAGES)} (allowed: {', '.join(STAGES)})"
            problems.append(((*at, verb), message))
        elif keys is not None and not isinstance(keys, dict):
            problems.append(((*at, verb), f"should hold keys, such as: - {verb}: {{}}"))
        else:
            stage, wrong = _parse_stage(verb, keys or {}, (*at, verb))
            stages += stage
            problems += wrong
            outlines[i] = _outline(verb, keys or {})
    return stages, outlines, problems


def _parse_stage(
    verb: str, keys: dict[str, Any], at: tuple[str | int, ...]
) -> tuple[list[Stage], list[Problem]]:
    """The stage, or what is wrong with it."""
    try:
        if verb != "prune":
            return [STAGES[verb](**keys)], []
        method = keys.get("method")
        if not isinstance(method, str) or method not in METHODS:
            known = f"(allowed: {', '.join(METHODS)})"
            message = f"unknown method {method!r}{suggest(str(method), METHODS)}" if method else "is missing"
            return [], [((*at, "method"), f"{message} {known}")]
        stage: dict[str, Any] = {k: v for k, v in keys.items() if k in ("id", "from")}
        stage["pruner"] = {k: v for k, v in keys.items() if k not in stage}
        return [Prune(**stage)], []
    except ValidationError as error:
        return [], [((*at, *where), message) for where, message in _problems(error, keys)]


def _outline(verb: str, keys: dict[str, Any]) -> Outline:
    """What can be told of a stage whose keys may be wrong."""
    name, source = (value if isinstance(value := keys.get(key), str) else None for key in ("id", "from"))
    method = str(keys.get("method"))
    pruner = method_class(method) if verb == Prune.verb and method in METHODS else None
    named: dict[tuple[str, ...], Any] = {(key,): keys.get(key) for key in (pruner.guides if pruner else ())}
    where = (*(pruner.training_at if pruner else ()), *TEACHER)
    teacher: Any = keys
    for key in where:
        teacher = teacher.get(key) if isinstance(teacher, dict) else None
    named[where] = teacher
    return Outline(verb, name, source, {key: other for key, other in named.items() if isinstance(other, str)})


CLEARER = {
    "missing": "is missing",
    "model_type": "should be a mapping of keys",
    "dict_type": "should be a mapping of keys",
    "too_short": "should not be empty",
    "string_pattern_mismatch": "should be one word of letters, digits, '-' and '_'",
}
"""What pydantic says in the words of Python, in words of a recipe, by its kinds of errors."""


def _problems(error: ValidationError, data: Any) -> Iterator[Problem]:
    """Every problem once: what several kinds of value could have been is one sentence."""
    found: dict[tuple[str | int, ...], list[str]] = {}
    got: dict[tuple[str | int, ...], str] = {}
    for row in error.errors(include_url=False):
        kind, value = row["type"], row["input"]
        at = tuple(_in_data(row["loc"], data, absent=kind == "missing"))
        message = row["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        if kind == "literal_error":
            message += suggest(str(value), re.findall("'([^']*)'", message))
        if isinstance(value, str | int | float | bool) and kind not in ("extra_forbidden", "value_error"):
            got[at] = f" (got {reprlib.repr(value)})"
        found.setdefault(at, []).append(CLEARER.get(kind, message))
    for at, messages in found.items():
        if not any(other[: len(at)] == at and other != at for other in found):  # said better further inside
            yield at, ", or ".join(dict.fromkeys(messages)) + got.get(at, "")


def _in_data(location: Sequence[str | int], data: Any, absent: bool) -> Iterator[str | int]:
    """A pydantic location without the names of union members: only what is in the data (or is `absent` there)."""
    for i, part in enumerate(location):
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int)
        )
        if inside:
            yield part
            data = data[part]
        elif absent and i == len(location) - 1 and isinstance(data, dict):
            yield part


def _dotted(at: Sequence[str | int], ids: list[str]) -> str:
    """`("stages", 3, "finetune", "epochs")` as the user would write it: `stages.finetune-2.epochs`."""
    parts = [str(part) for part in at]
    if len(at) > 1 and at[0] == "stages" and isinstance(at[1], int):
        parts = ["stages", ids[at[1]], *parts[3:]]
    return ".".join(parts) or "recipe"


def _ids_of(stages: Any) -> list[str]:
    """Ids of stages that may not be valid."""
    outlines = []
    for item in stages if isinstance(stages, list) else []:
        verb, keys = next(iter(item.items())) if isinstance(item, dict) and item else ("?", None)
        outlines.append(_outline(verb, keys if isinstance(keys, dict) else {}))
    return stage_ids(outlines)


def apply_override(document: Document, override: str) -> None:
    """Set one key of a recipe's plain data in place: `a.b=value`, stages by id.

    Raises:
        UserError: no `=`, or a path through something that is no mapping.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: write it as key=value, such as --set seed=7")
    value = parse_value(text)
    at = _location(document.value, path.split("."), override)
    if at[:2] == ("task", "dataset") and at[2:] in (("train",), ("validation",)):
        _make_way(document.value, at[2])
    here = document.value
    for key, inner in pairwise(at):
        if isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]
        if not isinstance(here, dict | list) or isinstance(here, list) is isinstance(inner, str):
            raise UserError(f"--set {override}: '{key}' holds no keys")
    here[at[-1]] = value
    document.overrides[at] = override


def _location(data: dict[str, Any], keys: list[str], override: str) -> tuple[str | int, ...]:
    """Where an override's key lies: a stage's id stands for its place in the list and its verb."""
    if keys[0] != "stages" or len(keys) == 1:
        return tuple(keys)
    ids = _ids_of(data.get("stages"))
    if keys[1] not in ids:
        raise UserError(f"--set {override}: no stage '{keys[1]}'{suggest(keys[1], ids)} {among(ids)}")
    if len(keys) == 2:
        raise UserError(f"--set {override}: name a key of that stage, such as --set stages.{keys[1]}.id=a")
    place = ids.index(keys[1])
    return ("stages", place, next(iter(data["stages"][place])), *keys[2:])


def _make_way(data: dict[str, Any], split: str | int) -> None:
    """A hub id, {hub: ...} and {builtin: ...} make way for a local file; the other split's file stays."""
    task = data.get("task")
    dataset = task.get("dataset") if isinstance(task, dict) else None
    if isinstance(task, dict) and not (isinstance(dataset, dict) and "train" in dataset):
        kept = {k: v for k, v in dataset.items() if k == "validation"} if isinstance(dataset, dict) else {}
        task["dataset"] = kept

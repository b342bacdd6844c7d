"""The recipe: its schema, its reading, and messages that say what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationError

from compressor.benchmark.schema import BenchmarkKeys
from compressor.errors import UserError
from compressor.models.source import ModelSource
from compressor.pruning.base import METHODS, Target, method_class
from compressor.schema import Keys, suggest
from compressor.stages.base import Stage
from compressor.stages.chain import STAGES, Problem, check_order, stage_ids
from compressor.stages.prune import Prune
from compressor.stages.release import GateKeys
from compressor.tasks.schema import TaskKeys
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


@dataclass(frozen=True)
class Loaded:
    """A valid recipe with the plain data it was read from (overrides applied)."""

    recipe: Recipe
    data: dict[str, Any]
    path: Path


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
        apply_override(document.value, override)
    return Loaded(parse(document), document.value, path)


def parse(document: Document) -> Recipe:
    """The recipe in a document.

    Raises:
        RecipeError: it is not valid.
    """
    problems: list[Problem] = []
    data = dict(document.value)
    stages, found = _parse_stages(data.get("stages"))
    problems += found
    if "stages" in data:
        data["stages"] = stages
    recipe = None
    try:
        recipe = Recipe(**{str(k): v for k, v in data.items()})
    except ValidationError as error:
        problems += [p for p in _problems(error, document.value) if p[0][:1] != ("stages",) or not found]
    if not found and stages:
        baseline = data.get("baseline")
        problems += check_order(stages, baseline if isinstance(baseline, str) else None)
    if recipe and not problems:
        problems += _check_target(recipe)
    if problems or recipe is None:
        ids = _ids_of(document.value.get("stages"))
        rows = sorted({(document.line(at), _dotted(at, ids), message) for at, message in problems})
        raise RecipeError([f"{document.path}:{line}: {where}: {message}" for line, where, message in rows])
    return recipe


def _parse_stages(value: Any) -> tuple[list[Stage], list[Problem]]:
    stages: list[Stage] = []
    problems: list[Problem] = []
    if not isinstance(value, list):
        return stages, [] if value is None else [(("stages",), "should be a list of stages, such as: - finetune: {}")]
    for i, item in enumerate(value):
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
            made = _parse_stage(verb, keys or {}, (*at, verb))
            (stages if isinstance(made, Stage) else problems).extend([made] if isinstance(made, Stage) else made)
    return stages, problems


def _parse_stage(verb: str, keys: dict[str, Any], at: tuple[str | int, ...]) -> Any:
    try:
        if verb != "prune":
            return STAGES[verb](**keys)
        method = keys.get("method")
        if method not in METHODS:
            known = f"(allowed: {', '.join(METHODS)})"
            message = "is missing" if method is None else f"unknown method '{method}'{suggest(method, METHODS)}"
            return [((*at, "method"), f"{message} {known}")]
        own = {k: v for k, v in keys.items() if k in ("id", "from")}
        rest = {k: v for k, v in keys.items() if k not in own}
        return Prune(**own, pruner=method_class(method)(**rest))
    except ValidationError as error:
        return [((*at, *where), message) for where, message in _problems(error, keys)]


def _problems(error: ValidationError, data: Any) -> Iterator[Problem]:
    for row in error.errors(include_url=False):
        at = tuple(_in_data(row["loc"], data))
        message = row["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
        if row["type"] == "missing":
            message = "is missing"
        elif row["type"] != "extra_forbidden" and isinstance(row["input"], str | int | float | bool):
            message += f" (got {row['input']!r})"
        yield at, message


def _in_data(location: Sequence[str | int], data: Any) -> Iterator[str | int]:
    """A pydantic location without the names of union members: only what is really in the data."""
    for i, part in enumerate(location):
        inside = isinstance(data, dict) and part in data or isinstance(data, list) and isinstance(part, int)
        if inside:
            yield part
            data = data[part]  # type: ignore[index]
        elif i == len(location) - 1 and isinstance(data, dict):
            yield part


def _dotted(at: Sequence[str | int], ids: list[str]) -> str:
    """`("stages", 3, "finetune", "epochs")` as the user would write it: `stages.finetune-2.epochs`."""
    parts = [str(part) for part in at]
    if len(at) > 1 and at[0] == "stages" and isinstance(at[1], int):
        parts = ["stages", ids[at[1]], *parts[3:]]
    return ".".join(parts) or "recipe"


def _ids_of(stages: Any) -> list[str]:
    """Ids of stages that may not be valid."""
    pairs: list[Stage | tuple[str, str | None]] = []
    for item in stages if isinstance(stages, list) else []:
        verb, keys = next(iter(item.items())) if isinstance(item, dict) and item else ("?", None)
        given = keys.get("id") if isinstance(keys, dict) else None
        pairs.append((str(verb), given if isinstance(given, str) else None))
    return stage_ids(pairs)


def _check_target(recipe: Recipe) -> Iterator[Problem]:
    pruners = [s.pruner for s in recipe.stages if isinstance(s, Prune)]
    accepted = frozenset().union(*(p.targets for p in pruners)) if pruners else frozenset()
    if recipe.target and not set(recipe.target.given()) <= accepted:
        methods = ", ".join(p.method for p in pruners) or "this chain"
        yield ("target",), f"{methods} does not aim at {' or '.join(recipe.target.given())}; leave `target` out"


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one key of a recipe's plain data in place: `a.b=value`, stages by id.

    Raises:
        UserError: no `=`, or a path through something that is no mapping.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: write it as key=value, such as --set seed=7")
    value = parse_value(text)
    keys = path.split(".")
    here: Any = data
    if keys[0] == "stages" and len(keys) > 1:
        ids = _ids_of(data.get("stages"))
        if keys[1] not in ids:
            raise UserError(f"--set {override}: no stage '{keys[1]}'{suggest(keys[1], ids)} (there are: {', '.join(ids)})")
        item = data["stages"][ids.index(keys[1])]
        verb = next(iter(item))
        item[verb] = item[verb] or {}
        here, keys = item[verb], keys[2:]
    if not keys:
        raise UserError(f"--set {override}: name a key of that stage, such as --set {path}.epochs=1")
    if keys[:2] == ["task", "dataset"] and len(keys) == 3 and isinstance(data.get("task"), dict):
        dataset = data["task"].get("dataset")
        # A hub id makes way for local files; {hub: ...} and {builtin: ...} do too.
        if keys[2] in ("train", "validation") and (not isinstance(dataset, dict) or "train" not in dataset):
            other = {"train": "validation", "validation": "train"}[keys[2]]
            data["task"]["dataset"] = {k: v for k, v in dataset.items() if k == other} if isinstance(dataset, dict) else {}
    for key in keys[:-1]:
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise UserError(f"--set {override}: '{key}' is a single value, it has no keys")
    here[keys[-1]] = value

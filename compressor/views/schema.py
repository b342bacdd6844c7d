"""`schema`: the JSON schema of recipes, with which editors complete and check them."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from compressor.pruning.base import METHODS, Pruner, method_class
from compressor.recipe import Recipe
from compressor.schema import Keys
from compressor.stages.base import Stage
from compressor.stages.chain import STAGES
from compressor.stages.prune import Prune

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Keys, types and ranges of a recipe; not the rules that tie keys together, which `validate` checks."""
    methods = {name: method_class(name) for name in METHODS}
    blocks: list[type[Keys]] = [Recipe, *STAGES.values(), *methods.values()]
    references, whole = models_json_schema([(block, "validation") for block in blocks])
    definitions = whole["$defs"]
    of = {block: references[block, "validation"] for block in blocks}
    names = {block: reference["$ref"].rpartition("/")[2] for block, reference in of.items()}
    for stage in STAGES.values():  # `- slice:` alone is a stage too
        definitions[names[stage]]["type"] = ["object", "null"]
    stage_keys = {key: definitions[names[Prune]]["properties"][key] for key in ("id", "from")}
    for method in methods.values():  # in a recipe the keys of `prune` and of its method stand side by side
        definitions[names[method]]["properties"] |= stage_keys
    verbs = {verb: of[stage] for verb, stage in STAGES.items()}
    verbs[Prune.verb] = _by_method({name: of[method] for name, method in methods.items()})
    recipe = definitions.pop(names[Recipe])
    recipe["properties"]["stages"]["items"] = _one_of_the(verbs)
    unused = {names[Prune], Stage.__name__, Pruner.__name__}
    kept = {name: value for name, value in definitions.items() if name not in unused}
    return {"$schema": DIALECT, **recipe, "title": "A recipe of compressor", "$defs": kept}


def _one_of_the(verbs: dict[str, Any]) -> dict[str, Any]:
    """A mapping of one verb to its keys."""
    return {
        "type": "object",
        "properties": verbs,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }


def _by_method(methods: dict[str, Any]) -> dict[str, Any]:
    """The keys that `method` calls for; by conditions, so that an error names the key and not the choice."""
    return {
        "type": "object",
        "properties": {"method": {"enum": list(methods)}},
        "required": ["method"],
        "allOf": [
            {"if": {"properties": {"method": {"const": name}}, "required": ["method"]}, "then": reference}
            for name, reference in methods.items()
        ],
    }

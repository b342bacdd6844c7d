"""The table of a model's family, and what a model has by it."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig, PreTrainedModel

from compressor.errors import UserError
from compressor.models.families import ARCHITECTURES as ARCHITECTURES
from compressor.models.structure import Structure
from compressor.models.tables import DECODER_INPUT as DECODER_INPUT
from compressor.models.tables import Architecture as Architecture
from compressor.models.tables import StackTable as StackTable
from compressor.models.tables import SubLayerTable as SubLayerTable
from compressor.models.tables import module_at as module_at
from compressor.schema import suggest


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The table of a model's family.

    Raises:
        UserError: the family has no table, or the config is of a kind that the table does not fit.
    """
    name = config.model_type
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(
            f"model family '{name}' is not supported{suggest(name, ARCHITECTURES)} (supported: {known})"
        )
    family = ARCHITECTURES[name]
    if family.shares_layers and (config.num_hidden_groups, config.inner_group_num) != (1, 1):
        raise UserError(
            f"{name}: only models in which one layer stands for all are supported (num_hidden_groups and "
            "inner_group_num 1, as published)"
        )
    if family.gated and config.is_gated_act:
        family = replace(family, stacks=family.gated)
    heads = {getattr(config, stack.heads_key) for stack in family.stacks}
    if len(heads) > 1:
        raise UserError(
            f"{name}: only models with as many heads in the decoder as in the encoder are supported"
        )
    return family


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, its modules as its family's table names them (in place)."""
    prepare = architecture_of(model.config).prepare
    if prepare:
        prepare(model)
    return model


def structure_of(model: PreTrainedModel) -> Structure:
    """What the model physically has."""
    return structure_in(model.config)


def structure_in(config: PretrainedConfig) -> Structure:
    """What a model of this config has: read from `config.compressor` if it was sliced, else dense.

    Raises:
        UserError: what is written there is no structure.
    """
    try:
        if stored := (getattr(config, "compressor", None) or {}).get("structure"):
            return Structure.from_json(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"config.json does not describe a model: its `compressor` entry is damaged ({error})"
        ) from error
    return Structure.dense(architecture_of(config).sizes(config))

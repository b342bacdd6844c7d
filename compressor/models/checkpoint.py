"""Model folders: writing them, and opening them again with whatever widths slicing left.

A folder is what transformers writes (`config.json`, `model.safetensors`, tokenizer files). The `compressor`
key of its config holds the `structure` that the weights have and, for a pruned model that is not sliced
yet, the `gates` it is held to. Pickled weights are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import no_init_weights

from compressor.errors import UserError
from compressor.files import read_json
from compressor.models.architecture import ARCHITECTURES, architecture_of, prepared
from compressor.models.gates import Gates
from compressor.models.heads import class_named, head_fits
from compressor.models.norms import KEY, replace_norms, without_statistics
from compressor.models.refusals import fitting, hub_errors
from compressor.models.slicing import cut
from compressor.models.source import HubModel, NewModel, describe, folder_of
from compressor.models.structure import Structure
from compressor.models.weights import WEIGHTS, check_weights, read_weights
from compressor.schema import expand, suggest


def save(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    gates: Structure | None = None,
) -> None:
    """Write a model folder. `gates`: the structure a model that is not sliced yet is held to."""
    keys = getattr(model.config, "compressor", None) or {}
    keys = {key: value for key, value in keys.items() if key != "gates"}
    if gates is not None:
        keys["gates"] = gates.to_json()
    if keys:
        model.config.compressor = keys
    elif hasattr(model.config, "compressor"):
        del model.config.compressor
    model.save_pretrained(folder, safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load(folder: str | Path, auto_class: str | None = None) -> PreTrainedModel:
    """Open a model folder in eval mode, sliced and held to gates as it was saved.

    `auto_class` (such as "AutoModelForSequenceClassification") asks for a head; by default the saved one.
    The gates of a pruned, unsliced model are at `model.compressor_gates`.

    Raises:
        UserError: no such folder, no safetensors weights, an unsupported family, or weights that do not fit.
    """
    folder = expand(str(folder))
    config = read_config(folder)
    weights = read_weights(folder)
    keys = getattr(config, "compressor", None) or {}
    with no_init_weights(), fitting(f"{folder / 'config.json'} does not describe a model"):
        model = _skeleton(config, auto_class)
        if keys.get(KEY) == "affine":
            replace_norms(model, without_statistics)
        if "structure" in keys:
            target = Structure.from_json(keys["structure"])
            cut(model, _same_layers(target), target)
    with fitting(f"{folder / WEIGHTS} does not fit its config.json"):
        missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = tuple(getattr(model, "_tied_weights_keys", None) or ())
    # Older versions of transformers stored the constant position_ids.
    unexpected = [k for k in unexpected if not k.endswith("position_ids")]
    wrong = [*(k for k in missing if not (tied and k.endswith(tied))), *unexpected]
    if wrong:
        raise UserError(f"{folder / WEIGHTS} does not fit its config.json: {', '.join(wrong[:4])}")
    model.tie_weights()
    model.eval()
    hold(model)
    return model


def hold(model: PreTrainedModel) -> None:
    """Hold a model to the gates its config names, if any (kept at `model.compressor_gates`)."""
    keys = getattr(model.config, "compressor", None) or {}
    model.compressor_gates = None
    if "gates" in keys:
        model.compressor_gates = Gates(model, Structure.from_json(keys["gates"]))


def open_source(
    source: Any, auto_class: str, model_config: Mapping[str, Any]
) -> tuple[PreTrainedModel, bool]:
    """The model a recipe names, with the task's head, and whether that head was already trained.

    A folder of ours opens with `load`; anything else through transformers, safetensors only.

    Raises:
        UserError: it cannot be had, or its head has other labels than the task.
    """
    loader = class_named(auto_class)
    if isinstance(source, NewModel):
        config = config_from(source, model_config)
        return prepared(loader.from_config(config)).eval(), False
    folder, revision = folder_of(source), source.revision if isinstance(source, HubModel) else None
    config = peek(source)
    trained = head_fits(config, auto_class, model_config)
    if folder is not None and getattr(config, "compressor", None):
        return load(folder), True
    name = describe(source)
    with hub_errors(source):
        config.update(dict(model_config))
        model, info = loader.from_pretrained(
            folder or name,
            config=config,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    body = f"{model.base_model_prefix}."
    for key in info["mismatched_keys"]:
        if trained or key.startswith(body):
            shape = tuple(model.state_dict()[key].shape)
            raise UserError(f"{name}: the weights of {key} are not {shape} as its config.json says")
    head_missing = [k for k in info["missing_keys"] if not k.endswith("position_ids")]
    body_missing = [k for k in head_missing if k.startswith(body) and "pooler" not in k]
    if body_missing:
        raise UserError(f"{name} lacks weights of its own architecture: {', '.join(body_missing[:4])}")
    return prepared(model.float()).eval(), trained and not head_missing


def peek(source: Any, offline: bool = False) -> PretrainedConfig:
    """The config behind a recipe's `model`, its family checked; of a folder, that it has safe weights too.

    Raises:
        UserError: it cannot be had or is not supported.
    """
    if isinstance(source, NewModel):
        return config_from(source, {})
    folder = folder_of(source)
    if folder is not None:
        config = read_config(folder)
        check_weights(folder)
    else:
        name, revision = (source.id, source.revision) if isinstance(source, HubModel) else (source, None)
        with hub_errors(source):
            config = AutoConfig.from_pretrained(
                name, revision=revision, trust_remote_code=False, local_files_only=offline
            )
    return _possible(config, describe(source))


def config_from(source: NewModel, model_config: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers config of a model from scratch.

    Raises:
        UserError: an unknown family or impossible sizes.
    """
    values = dict(source.config)
    model_type = values.pop("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise UserError(
            f"model.config: unknown model_type '{model_type}'{suggest(model_type, ARCHITECTURES)}"
        )
    with fitting("model.config"):
        config = AutoConfig.for_model(model_type, **values)
    default = AutoConfig.for_model(model_type)
    for name in values:
        if not hasattr(default, name):
            raise UserError(f"model.config: unknown key '{name}'{suggest(name, default.to_dict())}")
    config.update(dict(model_config))
    return _possible(config, "model.config")


def _possible(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """The same config: of a supported family, and a model of its sizes can be made (tried without memory)."""
    family = architecture_of(config)
    with fitting(f"{name}: no model has these sizes"), torch.device("meta"):
        family.sizes(config)
        AutoModel.from_config(config)
    return config


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a model folder.

    Raises:
        UserError: no such folder or no readable `config.json`.
    """
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model folder: it has no config.json")
    with fitting(f"{folder / 'config.json'} is no config of a model"):
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "auto_map" in values and values.get("model_type") not in transformers.CONFIG_MAPPING:
            raise UserError(
                f"{folder} needs code of its own to open; only transformers' own families are opened"
            )
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    written = folder / "generation_config.json"
    if getattr(config, "forced_bos_token_id", 0) is None and written.is_file():
        # where transformers puts it when it saves a model
        config.forced_bos_token_id = read_json(written).get("forced_bos_token_id")
    return config


def _skeleton(config: PretrainedConfig, auto_class: str | None) -> PreTrainedModel:
    architecture_of(config)
    if auto_class:
        return prepared(class_named(auto_class).from_config(config))
    name = (config.architectures or [""])[0]
    model_class = class_named(name)
    if model_class is None:
        raise UserError(f"config.json names the class '{name}', which transformers does not have")
    return prepared(model_class(config))


def _same_layers(target: Structure) -> Structure:
    """The dense structure over the layers that `target` keeps: what the config's layer count builds."""
    dense = {(la.stack, la.index): la for la in Structure.dense(target.sizes).layers}
    return Structure(target.sizes, tuple(dense[la.stack, la.index] for la in target.layers))

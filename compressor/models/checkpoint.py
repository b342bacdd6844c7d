"""Model folders: writing them, and opening them again with whatever widths slicing left.

A folder is what transformers writes (`config.json`, `model.safetensors`, tokenizer files). The `compressor`
key of its config holds the `structure` that the weights have and, for a pruned model that is not sliced
yet, the `gates` it is held to. Pickled weights are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import no_init_weights

from compressor.errors import UserError
from compressor.models.architecture import architecture_of
from compressor.models.gates import Gates
from compressor.models.slicing import cut
from compressor.models.source import HubModel, NewModel, describe, folder_of
from compressor.models.structure import Structure

WEIGHTS = "model.safetensors"


def save(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    gates: Structure | None = None,
) -> None:
    """Write a model folder. `gates`: the structure a model that is not sliced yet is held to."""
    keys = dict(getattr(model.config, "compressor", None) or {})
    keys.pop("gates", None)
    if gates is not None:
        keys["gates"] = gates.to_json()
    if keys:
        model.config.compressor = keys
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
    folder = Path(folder).expanduser()
    config = read_config(folder)
    weights = read_weights(folder)
    keys = getattr(config, "compressor", None) or {}
    with no_init_weights():
        model = _skeleton(config, auto_class)
    if "structure" in keys:
        target = Structure.from_json(keys["structure"])
        cut(model, _same_layers(target), target)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or [])
    wrong = [*(k for k in missing if k not in tied), *unexpected]
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
    loader = getattr(transformers, auto_class)
    if isinstance(source, NewModel):
        config = config_from(source, model_config)
        return loader.from_config(config).eval(), False
    folder, revision = folder_of(source), source.revision if isinstance(source, HubModel) else None
    if folder is not None:
        config = read_config(folder)
        if getattr(config, "compressor", None):
            return load(folder), True
        _weights_path(folder)
    name = str(folder) if folder else describe(source)
    with hub_errors(name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        architecture_of(config)
        trained = _head_fits(config, auto_class, model_config)
        config.update(dict(model_config))
        model, info = loader.from_pretrained(
            name,
            config=config,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=not trained,
        )
    head_missing = [k for k in info["missing_keys"] if not k.endswith("position_ids")]
    body = f"{model.base_model_prefix}."
    body_missing = [k for k in head_missing if k.startswith(body) and "pooler" not in k]
    if body_missing:
        raise UserError(f"{name} lacks weights of its own architecture: {', '.join(body_missing[:4])}")
    return model.float().eval(), trained and not head_missing


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
        _weights_path(folder)
    else:
        name, revision = (source.id, source.revision) if isinstance(source, HubModel) else (source, None)
        with hub_errors(name):
            config = AutoConfig.from_pretrained(
                name, revision=revision, trust_remote_code=False, local_files_only=offline
            )
    architecture_of(config)
    return config


def has_head(config: PretrainedConfig, auto_class: str) -> bool:
    """Whether a checkpoint with this config was saved with a head of that kind."""
    expected = getattr(transformers, auto_class)._model_mapping.get(type(config), None)
    return getattr(expected, "__name__", "") in (config.architectures or [])


def config_from(source: NewModel, model_config: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers config of a model from scratch.

    Raises:
        UserError: an unknown family or impossible sizes.
    """
    values = dict(source.config)
    model_type = values.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError) as error:
        raise UserError(f"model.config: {str(error).splitlines()[0]}") from error
    architecture_of(config)
    config.update(dict(model_config))
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
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "auto_map" in values and values.get("model_type") not in transformers.CONFIG_MAPPING:
            raise UserError(
                f"{folder} needs code of its own to open; only transformers' own families are opened"
            )
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: {str(error).splitlines()[0]}") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder, sharded or not.

    Raises:
        UserError: none in safetensors format, or a damaged file.
    """
    path = _weights_path(folder)
    files = [path]
    if path.suffix == ".json":
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / Path(name).name for name in sorted(names)]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is no readable safetensors file ({error}); save the model again"
            ) from error
    return tensors


def _weights_path(folder: Path) -> Path:
    for name in (WEIGHTS, f"{WEIGHTS}.index.json"):
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    if pickles:
        raise UserError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when opened; convert them with "
            "`model.save_pretrained(folder, safe_serialization=True)` where you trust them"
        )
    raise UserError(f"{folder} has no {WEIGHTS}")


def _skeleton(config: PretrainedConfig, auto_class: str | None) -> PreTrainedModel:
    architecture_of(config)
    if auto_class:
        return getattr(transformers, auto_class).from_config(config)
    name = (config.architectures or [""])[0]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise UserError(f"config.json names the class '{name}', which transformers does not have")
    return model_class(config)


def _same_layers(target: Structure) -> Structure:
    """The dense structure over the layers that `target` keeps: what the config's layer count builds."""
    dense = {(la.stack, la.index): la for la in Structure.dense(target.sizes).layers}
    return Structure(target.sizes, tuple(dense[la.stack, la.index] for la in target.layers))


def _head_fits(config: PretrainedConfig, auto_class: str, model_config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint has a head of this kind; labels in another order are refused.

    Raises:
        UserError: the same labels in another order.
    """
    wanted = model_config.get("id2label")
    have = {int(k): v for k, v in config.id2label.items()} if config.id2label else None
    if not has_head(config, auto_class):
        return False
    if wanted is None or have is None or all(str(v).startswith("LABEL_") for v in have.values()):
        return wanted is None or have is None or len(have) == len(wanted)
    if have != dict(wanted) and sorted(have.values()) == sorted(wanted.values()):
        raise UserError(
            f"the checkpoint's labels are in another order ({list(have.values())}) than the task's "
            f"({list(wanted.values())}); give task.labels in the checkpoint's order"
        )
    return have == dict(wanted)


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn transformers' many ways to fail into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot open the model '{name}': {first} (a hub id needs a network or a cached copy; a folder "
            "starts with ./ ../ / or ~; weights must be safetensors)"
        ) from error

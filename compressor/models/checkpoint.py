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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import no_init_weights

from compressor.errors import CompressorError, UserError
from compressor.files import disk_is_full, read_json
from compressor.models.architecture import ARCHITECTURES, architecture_of, prepared
from compressor.models.embedding import CLASSES, EMBEDDING
from compressor.models.gates import Gates
from compressor.models.language import CLASSES as LANGUAGE
from compressor.models.norms import KEY, replace_norms, without_statistics
from compressor.models.slicing import cut
from compressor.models.source import HubModel, NewModel, describe, folder_of
from compressor.models.structure import Structure
from compressor.schema import expand, refuse_namesake, suggest

WEIGHTS = "model.safetensors"


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
    with no_init_weights(), _fitting(f"{folder / 'config.json'} does not describe a model"):
        model = _skeleton(config, auto_class)
        if keys.get(KEY) == "affine":
            replace_norms(model, without_statistics)
        if "structure" in keys:
            target = Structure.from_json(keys["structure"])
            cut(model, _same_layers(target), target)
    with _fitting(f"{folder / WEIGHTS} does not fit its config.json"):
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


def has_head(config: PretrainedConfig, auto_class: str) -> bool:
    """Whether a checkpoint with this config was saved with a head of that kind."""
    expected = class_named(auto_class)._model_mapping.get(type(config), None)
    if auto_class in CLASSES and not getattr(config, "compressor", None):
        return expected is not None  # pooling has no weights: every encoder brings all that it needs
    return getattr(expected, "__name__", "") in (config.architectures or [])


def class_named(name: str) -> Any:
    """A class of ours, or of transformers where we have none; `None` where there is neither."""
    return LANGUAGE.get(name) or getattr(transformers, name, None) or CLASSES.get(name)


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
    with _fitting("model.config"):
        config = AutoConfig.for_model(model_type, **values)
    config.update(dict(model_config))
    return _possible(config, "model.config")


def _possible(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """The same config: of a supported family, and a model of its sizes can be made (tried without memory)."""
    family = architecture_of(config)
    with _fitting(f"{name}: no model has these sizes"), torch.device("meta"):
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
    with _fitting(f"{folder / 'config.json'} is no config of a model"):
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


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder, sharded or not.

    Raises:
        UserError: none in safetensors format, or a damaged file.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in _weight_files(folder):
        with _readable(file):
            tensors.update(load_file(file))
    return tensors


def check_weights(folder: Path) -> None:
    """That a model folder's weights are whole safetensors files, by their headers alone.

    Raises:
        UserError: none in safetensors format, or a damaged file.
    """
    for file in _weight_files(folder):
        with _readable(file), safe_open(file, "pt"):
            pass


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is no readable safetensors file ({error}); save the model again") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        with _fitting(f"{index} is no index of weights"):
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / Path(name).name for name in sorted(names)]
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


def head_fits(config: PretrainedConfig, auto_class: str, model_config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint has a head of this kind, for these labels.

    Raises:
        UserError: the same labels in another order, embeddings pooled in another way, or a pruned model (which gets
            no new head) of another task.
    """
    same_embeddings(getattr(config, EMBEDDING, None), model_config)
    fits = has_head(config, auto_class) and _labels_fit(config, model_config)
    if not fits and getattr(config, "compressor", None):
        raise UserError(
            f"this pruned model is a {(config.architectures or ['model'])[0]} with the labels "
            f"{list(config.id2label.values())}, which is not the recipe's task; start from a dense model"
        )
    return fits


def same_embeddings(have: Mapping[str, Any] | None, model_config: Mapping[str, Any]) -> None:
    """Raise UserError where a checkpoint is known to pool in another way than the recipe."""
    wanted = model_config.get(EMBEDDING)
    if have and wanted and have != wanted:
        raise UserError(
            f"the checkpoint's embeddings are made with {_said(have)}, the recipe says {_said(wanted)}: set "
            "task.pooling and task.normalize as the checkpoint has them"
        )


def _said(keys: Mapping[str, Any]) -> str:
    return f"pooling {keys['pooling']}, normalize {str(keys['normalize']).lower()}"


def _labels_fit(config: PretrainedConfig, model_config: Mapping[str, Any]) -> bool:
    wanted = model_config.get("id2label")
    have = {int(k): v for k, v in config.id2label.items()} if config.id2label else None
    if wanted is None or have is None or all(str(v).startswith("LABEL_") for v in have.values()):
        return wanted is None or have is None or len(have) == len(wanted)
    if have != dict(wanted) and sorted(have.values()) == sorted(wanted.values()):
        raise UserError(
            f"the checkpoint's labels are in another order ({list(have.values())}) than the task's "
            f"({list(wanted.values())}); give task.labels in the checkpoint's order"
        )
    return have == dict(wanted)


@contextmanager
def _fitting(problem: str) -> Iterator[None]:
    """Say what is the matter with a file or config that transformers or torch stumble over."""
    try:
        yield
    except CompressorError:
        raise
    except Exception as error:  # of any kind: what stumbles is somewhere in their depths
        reason = (str(error).strip() or type(error).__name__).splitlines()
        raise UserError(f"{problem}: {' '.join(line.strip() for line in reason[:2])}") from error


@contextmanager
def hub_errors(source: Any, what: str = "model") -> Iterator[None]:
    """Turn transformers' many ways to fail into one sentence."""
    name = describe(source)
    refuse_namesake(name, what)
    try:
        yield
    except CompressorError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        if disk_is_full(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = " (a hub id needs a network or a cached copy; a folder starts with ./ ../ / or ~)"
        raise UserError(
            f"cannot open the {what} '{name}': {first}{'' if folder_of(source) else hint}"
        ) from error

"""`doctor`: what this machine and installation can do, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import RenderableType
from rich.text import Text

from compressor.benchmark.machine import bf16_sets, busy, disturbance, fingerprint
from compressor.estimate import free_disk
from compressor.onnx.presets import preset_for
from compressor.report.fields import listed
from compressor.tables import facts

REQUIRED = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "datasets", "accelerate")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
FOLDERS = ("COMPRESSOR_DATA", "COMPRESSOR_MODELS", "HF_HOME")
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def doctor_view() -> list[RenderableType]:
    """Versions, machine and folders, then everything that is missing or in the way."""
    machine = fingerprint()
    packages = {name: _version(name) for name in ("compressor", *REQUIRED, *RUNTIMES)}
    providers, gpus = _providers(), _torch_gpus()
    seen = disturbance(busy())
    sections: dict[str, list[tuple[str, object]]] = {
        "versions": [("python", machine["versions"]["python"]), *((n, v) for n, v in packages.items() if v)],
        "machine": [
            ("processor", machine["cpu"]),
            ("instruction sets", listed(machine["isa"]) or "none that matter here"),
            ("int8", int8_here(machine["isa"])),
            ("cores", f"{machine['usable_cores']} usable of {os.cpu_count()}"),
            ("memory", _free(psutil.virtual_memory().available, machine["memory_bytes"])),
            ("disk here", f"{free_disk(Path.cwd()) / 1e9:.1f} GB free"),
            ("onnxruntime runs on", listed(providers) or "nothing"),
            ("torch trains on", listed(gpus) or f"the CPU (no CUDA); {training_here(bf16_sets())}"),
            ("right now", f"not quiet: {seen}" if seen else "quiet, timings can be trusted"),
        ],
        "folders": [(name, _folder(name)) for name in FOLDERS]
        + [(name, os.environ[name]) for name in OFFLINE if os.environ.get(name)],
    }
    shown: list[RenderableType] = []
    for title, rows in sections.items():
        shown += [Text(title, style="bold"), facts(rows), ""]
    found = missing({name for name, made in packages.items() if made}, providers, machine["gpus"])
    return [*shown, *(Text(line, style="yellow") for line in found or ["nothing is missing"])]


def int8_here(isa: Collection[str]) -> str:
    """What the instruction sets mean for a quantized model."""
    preset = preset_for(isa)
    return f"{preset.name}: {preset.effect}"


def training_here(sets: Collection[str]) -> str:
    """What the instruction sets for bf16 mean for training on this CPU."""
    how = f"faster here ({listed(sets)})" if sets else "no faster here"
    return f"`precision: bf16` in a stage that trains is {how}"


def missing(packages: Collection[str], providers: Collection[str], gpus: Collection[str]) -> list[str]:
    """What to install or repair, a line each."""
    lines = [f"missing: {name}; install compressor again" for name in REQUIRED if name not in packages]
    runtimes = [name for name in RUNTIMES if name in packages]
    if not providers:
        lines.append("missing: onnxruntime; install compressor[cpu] or compressor[gpu]")
    if len(runtimes) > 1:
        lines.append(
            "onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, then install one of them"
        )
    if gpus and providers and "CUDAExecutionProvider" not in providers:
        lines.append(
            "there is a GPU, but onnxruntime cannot use it: install compressor[gpu] instead of [cpu]"
        )
    for name in ("COMPRESSOR_DATA", "COMPRESSOR_MODELS"):
        if os.environ.get(name) and not Path(os.environ[name]).is_dir():
            lines.append(f"{name} names a folder that is not there: {os.environ[name]}")
    return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _torch_gpus() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _free(available: int, total: int) -> str:
    return f"{available / 1e9:.1f} GB free of {total / 1e9:.1f} GB"


def _folder(variable: str) -> Any:
    value = os.environ.get(variable)
    if not value:
        return "not set"
    return value if Path(value).is_dir() else Text(f"{value} (not there)", style="yellow")

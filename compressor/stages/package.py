"""The artifact: a folder to hand to those who serve the model, and its verification."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor import __version__
from compressor.errors import GateError, UserError
from compressor.files import appearing, digest, json_text, read_json, sha256, write_json
from compressor.parts import MODEL_FILE, PARTS_FILE, STATE_FILE, graphs_of, parts_of
from compressor.report.card import model_card
from compressor.report.markdown import public
from compressor.serve import triton
from compressor.signing import SIGNATURE, check_signature
from compressor.stages.base import Data, open_tokenizer
from compressor.stages.provenance import sources_of
from compressor.stages.sample import SAMPLE, SAMPLE_ROWS, replay, write_sample
from compressor.tasks.schema import STREAMED

if TYPE_CHECKING:
    from compressor.onnx.runtime import OnnxModel
    from compressor.tasks.base import Task

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
TOLERANCE = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.5}
"""Largest difference of a sample's logit on another machine; int8 sums saturate on CPUs without VNNI.

Where all outputs are smaller than 1, as numbers of a vector of length 1 are, it is a share of the largest.
"""
ROLES = {
    PARTS_FILE: "parts",
    STATE_FILE: "state",
    "config.json": "config",
    SAMPLE: "sample",
    "README.md": "model card",
    "tokenizer.json": "tokenizer",
    "client.py": "client",
    "generation.py": "client",
    "streaming.py": "client",
    "config.pbtxt": "server configuration",
}
CLIENT = Path(triton.__file__).with_name("client.py")
LOOP = "generation.py"
STREAM = "streaming.py"


def package(
    results: dict[str, Any], variant: str, source: Path, target: Path, data: Data, model: Any
) -> None:
    """Write the artifact of `variant` from its stage folder to `target`."""
    with appearing(target) as folder:
        folder.mkdir()
        for file in sorted(source.iterdir()):
            if file.is_file() and file.name != "stage.json":
                _link(file, folder / file.name)
        largest = write_sample(folder, data)
        manifest = _manifest(results, variant, folder, data, model)
        manifest["sample"]["tolerance"] *= min(1.0, largest)
        (folder / "README.md").write_text(model_card(results, variant, manifest), encoding="utf-8")
        (folder / "serve").mkdir()
        shutil.copyfile(CLIENT, folder / "serve" / "client.py")
        if MODEL_FILE in graphs_of(folder):
            (folder / "serve" / "config.pbtxt").write_text(triton.triton_config(manifest), encoding="utf-8")
        if any(part.tokens for part in parts_of(folder)):
            shutil.copyfile(CLIENT.with_name(LOOP), folder / "serve" / LOOP)
        if data.keys.type in STREAMED:
            shutil.copyfile(CLIENT.with_name(STREAM), folder / "serve" / STREAM)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest["files"] = {path.relative_to(folder).as_posix(): _file(path) for path in files}
        write_json(folder / MANIFEST, sealed(manifest))


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with a hash of the text that it is without it."""
    return manifest | {"sha256": hashlib.sha256(json_text(manifest).encode()).hexdigest()}


def verify(artifact: Path, public_key: Path | None = None) -> dict[str, Any]:
    """Check an artifact: every hash, that it loads, and that the stored sample gives the stored outputs.

    `public_key`: also that it is signed with the private key of this one (see `signing`).

    Raises:
        UserError: no artifact there, or no such key.
        GateError: something differs.
    """
    if not (artifact / MANIFEST).is_file():
        raise UserError(f"{artifact} is no artifact: it has no {MANIFEST}")
    try:
        text = (artifact / MANIFEST).read_bytes().decode()
        manifest = json.loads(text)
        del manifest["sha256"]
        whole = text == json_text(sealed(manifest))
        hashes = {name: about["sha256"] for name, about in manifest["files"].items()}
        tolerance = float(manifest["sample"]["tolerance"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GateError(f"{artifact / MANIFEST} is damaged; fetch the artifact again") from error
    if not whole:
        raise GateError(
            f"{artifact / MANIFEST} is not the one that was released: its own sha256 is of another content"
        )
    _check_files(artifact, hashes)
    if public_key is not None:
        check_signature(artifact, public_key)
    try:
        worst = replay(artifact)
    except Exception as error:  # of numpy, onnxruntime or zipfile
        raise GateError(f"the sample stored in {artifact} cannot be replayed: {error}") from error
    if not worst <= tolerance:
        raise GateError(
            f"the sample's outputs differ by {worst:.2e} from the stored ones (allowed {tolerance:.0e})"
        )
    signature = ", signature checked" if public_key else ""
    if not public_key and (artifact / SIGNATURE).exists():
        signature = f"; {SIGNATURE} was not checked: give --public-key"
    return {"files": len(hashes), "max_abs_error": worst, "tolerance": tolerance, "signature": signature}


def _check_files(artifact: Path, hashes: dict[str, str]) -> None:
    """Raise GateError unless the artifact holds exactly the files of its manifest."""
    paths = [path for path in artifact.rglob("*") if path.is_symlink() or not path.is_dir()]
    there = {path.relative_to(artifact).as_posix() for path in paths} - {MANIFEST, SIGNATURE}
    for name in sorted(hashes):
        if name not in there:
            raise GateError(f"{name} is missing from {artifact}")
        if sha256(artifact / name) != hashes[name]:
            raise GateError(
                f"{artifact / name} is not the file that was released: its sha256 differs from the manifest's"
            )
    for name in (*graphs_of(artifact), SAMPLE):
        if name not in hashes:
            raise GateError(f"{artifact / MANIFEST} does not name {name}")
    if extra := there - set(hashes):
        raise GateError(f"{artifact} holds files the manifest does not name: {', '.join(sorted(extra))}")


def _manifest(results: dict[str, Any], variant: str, folder: Path, data: Data, model: Any) -> dict[str, Any]:
    from compressor.onnx.runtime import OnnxModel

    made = results["variants"][variant]
    graphs = {name: _tensors(OnnxModel(folder / name)) for name in graphs_of(folder)}
    task, tokenizer = data.task, open_tokenizer(folder, data.kind)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": results["name"],
        "variant": variant,
        "files": {},
        **graphs.get(MODEL_FILE, {}),
        **({"graphs": graphs} if list(graphs) != [MODEL_FILE] else {}),
        **({"parts": read_json(folder / PARTS_FILE)} if (folder / PARTS_FILE).exists() else {}),
        "state": _state(folder),
        **({"optimum_class": None} if (folder / STATE_FILE).is_file() else {}),  # it feeds no state of ours
        "padding_side": tokenizer.padding_side,
        "tokenizer": {
            "pad_token_id": tokenizer.pad_token_id,
            "pad_token_type_id": tokenizer.pad_token_type_id,
            "cls_token_id": tokenizer.cls_token_id,
            "truncation_side": tokenizer.truncation_side,
        },
        "task": data.keys.type,
        "labels": task.labels,
        "max_length": data.keys.max_length,
        "stride": data.keys.stride,
        **_written(task, folder),
        "post_processing": task.post_processing(tokenizer),
        "sample": {"rows": SAMPLE_ROWS, "tolerance": TOLERANCE[made["precision"]]},
        "precision": made["precision"],
        "metrics": made["metrics"],
        "metric_drop": made.get("metric_drop"),
        "latency": made.get("latency", []),
        "speedup": made.get("speedup", []),
        "sources": sources_of(model, data),
        "recipe": public(results["recipe"]),
        "recipe_sha256": digest(results["recipe"]),
        "tool": {"name": "compressor", "version": __version__},
        "seed": results["seed"],
        "environment": results["environment"],
    }


def _state(folder: Path) -> dict[str, Any]:
    """What is handed on from run to run: the output that each such input is fed with, and how a text begins.

    There its `length` (the last axis but one) is filled with `value`, a number or a list that is spread out.
    """
    if not (folder / STATE_FILE).is_file():
        return {}
    state = read_json(folder / STATE_FILE)
    return {name: {"output": f"{name}_out", **about} for name, about in state.items()}


def _written(task: Task, folder: Path) -> dict[str, Any]:
    """How a model that writes does so."""
    from compressor.models.checkpoint import read_config

    settings = task.settings(read_config(folder)) if task.writes else None
    return {"generation": asdict(settings), "optimum_class": None} if settings else {}


def _tensors(graph: OnnxModel) -> dict[str, Any]:
    """Names, types and shapes of a graph's inputs and outputs."""
    nodes = {"inputs": graph.session.get_inputs(), "outputs": graph.session.get_outputs()}
    return {
        kind: {node.name: {"type": node.type, "shape": node.shape} for node in every}
        for kind, every in nodes.items()
    }


def _file(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        return {"sha256": sha256(path), "bytes": path.stat().st_size, "role": "graph"}
    role = ROLES.get(path.name, "tokenizer" if "token" in path.name or "vocab" in path.name else "other")
    return {"sha256": sha256(path), "bytes": path.stat().st_size, "role": role}


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system allows one, else a copy: stage outputs never change in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

"""After the last stage: measure every variant, judge the gates, package, write results and report."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.files import digest, sha256, write_json
from compressor.onnx.graph import file_bytes
from compressor.schema import json_of
from compressor.stages import evaluate
from compressor.stages.export import MODEL_FILE
from compressor.stages.package import package, verify
from compressor.stages.release import judge

if TYPE_CHECKING:
    from compressor.pipeline import Pipeline

SCHEMA_VERSION = 1
SIZES = ("parameters", "body_parameters", "nonzero_density", "sliced_density", "structure")


def finish(pipeline: Pipeline, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that follows the stages; returns (and writes) the results."""
    from compressor.benchmark.machine import fingerprint, machine_key
    from compressor.report.page import write_report

    machine = fingerprint()
    records = {row["id"]: row for row in stages}
    variants = {name: _variant(pipeline, name, records) for name in pipeline.chain.variants}
    results = _head(pipeline, machine, stages) | {"variants": variants}
    _latency(pipeline, results, machine_key(machine))
    results["gates"] = judge(pipeline.recipe.gates, results)
    _package(pipeline, results)
    write_json(pipeline.output / "results.json", results)
    write_report(results, pipeline.output)
    return results


def passed(results: dict[str, Any], on_noise: str) -> bool:
    """Whether every gate passed; an inconclusive one counts as passed only where noise may be warned about."""
    return all(g["passed"] or (g["inconclusive"] and on_noise == "warn") for g in results["gates"])


def _head(pipeline: Pipeline, machine: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    recipe, data = pipeline.recipe, pipeline.data
    examples = data.task.examples
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "recipe": pipeline.loaded.data,
        "command": _command(pipeline),
        "seed": recipe.seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": machine | {"git_revision": _git_revision()},
        "task": {
            "type": recipe.task.type,
            "metric": data.task.primary,
            "dataset": json_of(recipe.task)["dataset"],
            "examples": {name: len(getattr(examples, name)) for name in ("train", "selection", "validation")},
            "reference_points": data.task.reference_points(),
        },
        "baseline": "dense_fp32",
        "final": pipeline.chain.final,
        "stages": [
            {k: row[k] for k in ("id", "verb", "seconds", "peak_rss_bytes", "cached")} for row in stages
        ],
        "training": [
            {"stage": row["id"], "log": row["info"]["log"]} for row in stages if row["info"].get("log")
        ],
    }


def _command(pipeline: Pipeline) -> str:
    """The command that makes this run again."""
    words = ["compressor", "run", str(pipeline.loaded.path)]
    words += [word for override in pipeline.loaded.overrides for word in ("--set", override)]
    if pipeline.output != Path("runs") / pipeline.recipe.name:
        words += ["--output", str(pipeline.output)]
    return shlex.join(words)


def _variant(pipeline: Pipeline, name: str, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    node = pipeline.chain.node(pipeline.chain.variants[name])
    folder = pipeline.output / node.name
    info = records[node.name]["info"]
    sized = info if "parameters" in info else records[node.inputs[0]]["info"]
    key = digest(
        [pipeline.keys[node.name], json_of(pipeline.recipe.task), evaluate.VERSION, pipeline.training_data]
    )
    with pipeline.display.stage(f"evaluate {name}") as progress:
        measured = evaluate.measure_accuracy(pipeline.data, folder, _measured(pipeline, name), key, progress)
    made = {
        "metric": evaluate.metric_of(pipeline.data, measured),
        "metrics": measured["metrics"],
        "precision": info["precision"],
        **{k: sized[k] for k in SIZES},
        "file_bytes": file_bytes(folder / MODEL_FILE),
        "sha256": sha256(folder / MODEL_FILE),
    }
    if name != "dense_fp32":
        made["metric_drop"] = evaluate.metric_drop(
            pipeline.data, _measured(pipeline, "dense_fp32"), _measured(pipeline, name)
        )
    if info["precision"] == "fp32":
        made["parity"] = info["parity"] | {"agreement": None}
    else:
        sibling = f"{name.rpartition('_')[0]}_fp32"
        made["parity"] = evaluate.agreement(_measured(pipeline, name), _measured(pipeline, sibling))
    return made


def _latency(pipeline: Pipeline, results: dict[str, Any], machine: str) -> None:
    from compressor.stages.benchmark import measure_latency

    task = pipeline.data.task
    variants = pipeline.chain.variants
    folders = {name: pipeline.output / node for name, node in variants.items()}
    from compressor.stages.base import open_tokenizer

    tokenizer = open_tokenizer(folders["dense_fp32"], pipeline.data.kind)
    lengths = [len(ids) for ids in task.features(task.examples.validation, tokenizer)["input_ids"]]
    with pipeline.display.stage("benchmark") as progress:
        measured = measure_latency(
            pipeline.recipe.benchmark,
            folders,
            "dense_fp32",
            lengths,
            pipeline.output / "measurements" / "latency",
            machine,
            progress,
        )
    for name, variant in results["variants"].items():
        variant["latency"] = measured["latency"][name]
        variant["speedup"] = measured["speedup"].get(name, [])
    results["conditions"] = measured["conditions"]


def _package(pipeline: Pipeline, results: dict[str, Any]) -> None:
    """Every variant into artifacts/, the released one into artifact/; what a gate refused into rejected/."""
    output = pipeline.output
    released = pipeline.recipe.release
    chosen = results["final"] if released == "final" else released
    good = passed(results, pipeline.recipe.gates.on_noise)
    for name in ("artifacts", "artifact", "rejected"):
        shutil.rmtree(output / name, ignore_errors=True)
    for name, node in pipeline.chain.variants.items():
        refused = not good and name == results["final"]
        target = output / ("rejected" if refused else "artifacts") / name
        with pipeline.display.stage(f"package {name}") as progress:
            progress("package", 0.0)
            package(results, name, output / node, target, pipeline.data, pipeline.recipe.model)
            verify(target)
    if good and chosen != "all":
        shutil.copytree(output / "artifacts" / chosen, output / "artifact")
        verify(output / "artifact")


def _measured(pipeline: Pipeline, variant: str) -> Path:
    folder: Path = pipeline.output / "measurements" / variant
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _git_revision() -> str | None:
    """Revision of the tool's own checkout, where it runs from one."""
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None if done.returncode == 0 else None

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
    from compressor.project import Project

SCHEMA_VERSION = 1
SIZES = ("parameters", "body_parameters", "nonzero_density", "sliced_density", "structure")


def finish(project: Project, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that follows the stages; returns (and writes) the results."""
    from compressor.benchmark.machine import fingerprint, machine_key
    from compressor.report.page import write_report

    machine = fingerprint()
    records = {row["id"]: row for row in stages}
    variants = {name: _variant(project, name, records) for name in project.chain.variants}
    results = _head(project, machine, stages) | {"variants": variants}
    _latency(project, results, machine_key(machine))
    results["gates"] = judge(project.recipe.gates, results)
    _package(project, results)
    write_json(project.output / "results.json", results)
    write_report(results, project.output)
    return results


def passed(results: dict[str, Any], on_noise: str) -> bool:
    """Whether every gate passed; an inconclusive one counts as passed only where noise may be warned about."""
    return all(g["passed"] or (g["inconclusive"] and on_noise == "warn") for g in results["gates"])


def _head(project: Project, machine: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    recipe, data = project.recipe, project.data
    examples = data.task.examples
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "recipe": project.loaded.data,
        "command": _command(project),
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
        "final": project.chain.final,
        "stages": [
            {k: row[k] for k in ("id", "verb", "seconds", "peak_rss_bytes", "cached")} for row in stages
        ],
        "training": [
            {"stage": row["id"], "log": row["info"]["log"]} for row in stages if row["info"].get("log")
        ],
    }


def _command(project: Project) -> str:
    """The command that makes this run again."""
    words = ["compressor", "run", str(project.loaded.path)]
    words += [word for override in project.loaded.overrides for word in ("--set", override)]
    if project.output != Path("runs") / project.recipe.name:
        words += ["--output", str(project.output)]
    return shlex.join(words)


def _variant(project: Project, name: str, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    node = project.chain.node(project.chain.variants[name])
    folder = project.output / node.name
    info = records[node.name]["info"]
    sized = info if "parameters" in info else records[node.inputs[0]]["info"]
    key = digest(
        [project.keys[node.name], json_of(project.recipe.task), evaluate.VERSION, project.training_data]
    )
    with project.display.stage(f"evaluate {name}") as progress:
        measured = evaluate.measure_accuracy(project.data, folder, _measured(project, name), key, progress)
    made = {
        "metric": evaluate.metric_of(project.data, measured),
        "metrics": measured["metrics"],
        "precision": info["precision"],
        **{k: sized[k] for k in SIZES},
        "file_bytes": file_bytes(folder / MODEL_FILE),
        "sha256": sha256(folder / MODEL_FILE),
    }
    if name != "dense_fp32":
        made["metric_drop"] = evaluate.metric_drop(
            project.data, _measured(project, "dense_fp32"), _measured(project, name)
        )
    if info["precision"] == "fp32":
        made["parity"] = info["parity"] | {"agreement": None}
    else:
        sibling = f"{name.rpartition('_')[0]}_fp32"
        made["parity"] = evaluate.agreement(_measured(project, name), _measured(project, sibling))
    return made


def _latency(project: Project, results: dict[str, Any], machine: str) -> None:
    from compressor.stages.benchmark import measure_latency

    task = project.data.task
    variants = project.chain.variants
    folders = {name: project.output / node for name, node in variants.items()}
    from compressor.stages.base import open_tokenizer

    tokenizer = open_tokenizer(folders["dense_fp32"], project.data.kind)
    lengths = [len(ids) for ids in task.features(task.examples.validation, tokenizer)["input_ids"]]
    with project.display.stage("benchmark") as progress:
        measured = measure_latency(
            project.recipe.benchmark,
            folders,
            "dense_fp32",
            lengths,
            project.output / "measurements" / "latency",
            machine,
            progress,
        )
    for name, variant in results["variants"].items():
        variant["latency"] = measured["latency"][name]
        variant["speedup"] = measured["speedup"].get(name, [])
    results["conditions"] = measured["conditions"]


def _package(project: Project, results: dict[str, Any]) -> None:
    """Every variant into artifacts/, the released one into artifact/; what a gate refused into rejected/."""
    output = project.output
    released = project.recipe.release
    chosen = results["final"] if released == "final" else released
    good = passed(results, project.recipe.gates.on_noise)
    for name in ("artifacts", "artifact", "rejected"):
        shutil.rmtree(output / name, ignore_errors=True)
    for name, node in project.chain.variants.items():
        refused = not good and name == results["final"]
        target = output / ("rejected" if refused else "artifacts") / name
        with project.display.stage(f"package {name}") as progress:
            progress("package", 0.0)
            package(results, name, output / node, target, project.data, project.recipe.model)
            verify(target)
    if good and chosen != "all":
        shutil.copytree(output / "artifacts" / chosen, output / "artifact")
        verify(output / "artifact")


def _measured(project: Project, variant: str) -> Path:
    folder: Path = project.output / "measurements" / variant
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

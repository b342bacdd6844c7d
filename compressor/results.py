"""After the last stage: measure every variant, judge the gates, package, write results and report."""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.files import appearing, digest, remove, write_json
from compressor.onnx.graph import file_bytes
from compressor.parts import content_of, graphs_of
from compressor.schema import json_of
from compressor.stages import evaluate
from compressor.stages.base import RESULTS, open_tokenizer
from compressor.stages.benchmark import measure_latency
from compressor.stages.package import package, verify
from compressor.stages.release import BASELINE, final_of, fp32_of, judge, let_through, stands_for

if TYPE_CHECKING:
    from compressor.project import Project

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
CHECKOUT = Path(__file__).resolve().parents[1]
"""The tool's own, where it is not installed: there it is a folder of packages."""
REPORT, ARTIFACT, ARTIFACTS, REJECTED = "report.html", "artifact", "artifacts", "rejected"
MEASUREMENTS = "measurements"
SIZES = ("parameters", "body_parameters", "nonzero_density", "sliced_density", "structure")


def finish(project: Project, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that follows the stages; returns (and writes) the results."""
    from compressor.benchmark.machine import fingerprint, machine_key
    from compressor.report.page import write_report
    from compressor.report.verdict import verdict

    machine = fingerprint()
    records = {row["id"]: row for row in stages}
    variants = {name: _variant(project, name, records) for name in project.chain.variants}
    results = _head(project, machine, stages) | {"variants": variants}
    _latency(project, results, machine_key(machine))
    _settle_final(project, results)
    results["gates"] = judge(project.recipe.gates, project.recipe.release, results, project.recipe.target)
    log.info(verdict(results))
    withdraw(project.output)
    _package(project, results)
    write_json(project.output / RESULTS, results)
    write_report(results, project.output)
    return results


def passed(results: dict[str, Any], on_noise: str) -> bool:
    """Whether every gate passed; an inconclusive one counts as passed only where noise may be warned about."""
    return all(let_through(gate, on_noise) for gate in results["gates"])


def handed_over(project: Project, results: dict[str, Any]) -> Path:
    """Where that lies which a user waits for: what was released or, where a gate was missed, what was refused."""
    if not passed(results, project.recipe.gates.on_noise):
        return project.output / REJECTED
    return project.output / (ARTIFACTS if project.recipe.release == "all" else ARTIFACT)


def withdraw(output: Path) -> None:
    """Take back what an earlier run made of its stages: it does not belong to what lies beside it from now on."""
    for name in (RESULTS, REPORT, ARTIFACT, ARTIFACTS, REJECTED):
        remove(output / name)


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
        "environment": machine | {"git_revision": _git_revision(CHECKOUT)},
        "task": {
            "type": recipe.task.type,
            "metric": data.task.primary,
            "dataset": json_of(recipe.task)["dataset"],
            "examples": {name: len(getattr(examples, name)) for name in ("train", "selection", "validation")},
            "reference_points": data.task.reference_points(),
        },
        "baseline": BASELINE,
        "final": project.chain.final,
        "stages": [
            {k: row[k] for k in ("id", "verb", "seconds", "peak_rss_bytes", "cached")} for row in stages
        ],
        "pruning": [
            {"stage": row["id"], "members": row["info"]["members"]}
            for row in stages
            if row["info"].get("members")
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
    if project.processes > 1:
        words += ["--nproc", str(project.processes)]
    return shlex.join(words)


def _variant(project: Project, name: str, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    node = project.chain.node(project.chain.variants[name])
    folder = project.output / node.name
    info = records[node.name]["info"]
    sized = info if "parameters" in info else records[node.inputs[0]]["info"]
    file = content_of(folder)
    task = json_of(project.recipe.task)
    key = digest([project.keys[node.name], file, task, evaluate.VERSION, project.training_data])
    with project.display.stage(f"evaluate {name}") as progress:
        measured = evaluate.measure_accuracy(project.data, folder, _measured(project, name), key, progress)
    metric = evaluate.metric_of(project.data, measured)
    log.info("%s: %s %.4f", name, metric["name"], metric["value"])
    made = {
        "metric": metric,
        "metrics": measured["metrics"],
        "precision": info["precision"],
        **{k: sized[k] for k in SIZES},
        "file_bytes": sum(file_bytes(folder / name) for name in graphs_of(folder)),
        "sha256": file,
    }
    if "scheme" in info:
        made["quantization"] = {key: info[key] for key in ("scheme", "tried")}
    if name != BASELINE:
        made["metric_drop"] = evaluate.metric_drop(
            project.data, _measured(project, BASELINE), _measured(project, name)
        )
    if "parity" in info:
        made["parity"] = info["parity"] | {"agreement": None}
    else:
        made["parity"] = evaluate.agreement(
            project.data, _measured(project, name), _measured(project, fp32_of(name))
        )
    return made


def _latency(project: Project, results: dict[str, Any], machine: str) -> None:
    task = project.data.task
    variants = project.chain.variants
    folders = {name: project.output / node for name, node in variants.items()}
    tokenizer = open_tokenizer(folders[BASELINE], project.data.kind)
    lengths = [len(ids) for ids in task.features(task.examples.validation, tokenizer)["input_ids"]]
    with project.display.stage("benchmark") as progress:
        measured = measure_latency(
            project.recipe.benchmark,
            folders,
            BASELINE,
            {name: fp32_of(name) for name, made in results["variants"].items() if "quantization" in made},
            lengths,
            project.output / MEASUREMENTS,
            machine,
            progress,
        )
    for name, variant in results["variants"].items():
        variant["latency"] = measured["latency"][name]
        variant["speedup"] = measured["speedup"].get(name, [])
        if "quantization" in variant:
            variant["quantization"]["speedup"] = measured["over_fp32"][name]
    results["conditions"] = measured["conditions"]


def _settle_final(project: Project, results: dict[str, Any]) -> None:
    """A quantized variant that is slower than fp32 never ships: fp32 is `final` in its place."""
    chosen = results["final"]
    results["final"] = final_of(chosen, results["variants"], project.recipe.gates)
    if results["final"] != chosen:
        project.display.line(
            f"{chosen} is slower than {results['final']}, which is final in its place "
            "(`quantize: {mode: auto}` looks for what pays)"
        )


def _package(project: Project, results: dict[str, Any]) -> None:
    """Every variant into artifacts/, or into rejected/ if it missed a gate; if none did, the released one's copy."""
    output, gates = project.output, results["gates"]
    refused = {g["variant"] for g in gates if not let_through(g, project.recipe.gates.on_noise)}
    for name, node in project.chain.variants.items():
        target = output / (REJECTED if name in refused else ARTIFACTS) / name
        with project.display.stage(f"package {name}") as progress:
            progress("package", 0.0)
            package(results, name, output / node, target, project.data, project.recipe.model)
            verify(target)
    if not refused and project.recipe.release != "all":
        (released,) = stands_for(project.recipe.release, results["final"], results["variants"])
        with appearing(output / ARTIFACT) as folder:
            shutil.copytree(output / ARTIFACTS / released, folder)
            verify(folder)


def _measured(project: Project, variant: str) -> Path:
    folder: Path = project.output / MEASUREMENTS / variant
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _git_revision(root: Path) -> str | None:
    """Revision of the checkout at `root`; `None` where there is none, or no git to ask."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None

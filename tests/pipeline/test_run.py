"""A whole run, its files, and runs that are killed, repeated, changed or spread over processes."""

import json
import random
import time
from pathlib import Path

import pandas as pd
import pytest

from compressor.cli import main
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from tests.pipeline.served import serve
from tests.pipeline.tiny import STAGES, finish, kill, outcome, start, write_recipe

AFTERWARDS = ["measurements/dense_fp32", "measurements/dense_int8", "measurements/latency.json", "artifacts"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    finish(start(recipe, output))
    return output


def test_what_a_run_leaves(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text(encoding="utf-8"))
    assert list(results["variants"]) == ["dense_fp32", "pruned_fp32", "dense_int8", "pruned_int8"]
    assert results["final"] in ("pruned_int8", "pruned_fp32")  # whichever is faster of so small a model
    assert [s["id"] for s in results["stages"]] == STAGES
    pruned, dense = results["variants"]["pruned_fp32"], results["variants"]["dense_fp32"]
    assert dense["metric"]["value"] > 0.9
    assert pruned["parameters"] < dense["parameters"]
    assert pruned["sliced_density"] < dense["sliced_density"] == 1.0
    assert pruned["nonzero_density"] == pruned["sliced_density"]  # filled
    assert {row["sequence_length"] for row in dense["latency"]} == {16, "data"}
    assert all(g["passed"] for g in results["gates"])
    left = {p.name for p in whole.iterdir()}
    assert {"report.html", "run.log", "artifact", "artifacts", "measurements", "results.json"} <= left
    assert not list(whole.glob("**/.*.tmp"))
    for variant in results["variants"]:
        folder = whole / "measurements" / variant
        assert (folder / "predictions.parquet").is_file()
        assert main(["verify", str(whole / "artifacts" / variant)]) == 0
    small = checkpoint.load(whole / "finetune-2")
    assert structure_of(small).to_json() == pruned["structure"]


@pytest.mark.parametrize("variant", ["dense_fp32", "pruned_int8"])
def test_an_artifact_serves_itself(recipe: Path, whole: Path, variant: str) -> None:
    rows = pd.read_csv(recipe.parent / "validation.csv").to_dict("records")
    stored = pd.read_parquet(whole / "measurements" / variant / "predictions.parquet")["prediction"]
    answers = serve(whole / "artifacts" / variant, rows)
    assert [answer["label"] for answer in answers] == stored.tolist()
    assert all(max(a["scores"], key=a["scores"].get) == a["label"] for a in answers)


def test_an_artifact_loads_with_optimum(whole: Path) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whole / "artifact")
    model = ORTModelForSequenceClassification.from_pretrained(whole / "artifact")
    answers = model(**tokenizer(["red and green paint", "one two three"], return_tensors="pt", padding=True))
    assert [model.config.id2label[int(i)] for i in answers.logits.argmax(-1)] == ["colours", "numbers"]


def test_a_second_run_repeats_no_stage(recipe: Path, whole: Path) -> None:
    before = {name: (whole / name / "stage.json").stat().st_mtime_ns for name in STAGES}
    printed = finish(start(recipe, whole))
    assert printed.count("done before, kept") == len(STAGES)
    assert before == {name: (whole / name / "stage.json").stat().st_mtime_ns for name in STAGES}


def test_a_changed_stage_redoes_it_and_what_follows(recipe: Path, whole: Path) -> None:
    printed = finish(start(recipe, whole, "--set", "stages.finetune-2.epochs=1"))
    kept = {line.split(":")[0].strip() for line in printed.splitlines() if "done before, kept" in line}
    assert kept == {"model", "teacher", "prune", "slice", "export/dense", "quantize/dense"}


def test_gates_and_benchmark_retrain_nothing_and_a_missed_gate_is_exit_3(recipe: Path, whole: Path) -> None:
    process = start(recipe, whole, "--set", "stages.finetune-2.epochs=1", "--set", "gates.min_speedup=1000")
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 3, printed
    assert "min_speedup" in printed
    assert printed.count("done before, kept") == len(STAGES)
    final = json.loads((whole / "results.json").read_text(encoding="utf-8"))["final"]
    assert (whole / "rejected" / final / "manifest.json").is_file()
    assert not (whole / "artifact").exists()
    assert not (whole / "artifacts" / final).exists()


def interrupted(recipe: Path, output: Path, moments: list[str], dice: random.Random) -> str:
    """Kill a run soon after each of `moments` (stages or folders) has begun; what the last, whole run prints."""
    for moment in moments:
        process = start(recipe, output)
        scratch = f"{moment.replace('/', '.')}-*"
        while process.poll() is None:
            if (output / moment).exists() or list((output / "work").glob(scratch)):
                break
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 1.0))
        kill(process)
    return finish(start(recipe, output))


def test_killed_while_pruning(recipe: Path, whole: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    finish(start(recipe, reference))
    printed = interrupted(recipe, tmp_path / "killed", ["prune"], random.Random(5))
    assert "teacher: done before, kept" in printed
    assert outcome(tmp_path / "killed") == outcome(reference)


@pytest.mark.slow
def test_killed_in_every_stage(recipe: Path, tmp_path: Path) -> None:
    finish(start(recipe, tmp_path / "reference"))
    for attempt in range(3):
        output = tmp_path / f"killed-{attempt}"
        interrupted(recipe, output, [*STAGES, *AFTERWARDS], random.Random(attempt))
        assert outcome(output) == outcome(tmp_path / "reference")
        assert not list(output.glob("**/.*.tmp"))


def test_two_processes_train_together(recipe: Path, tmp_path: Path) -> None:
    printed = finish(start(recipe, tmp_path / "two", "--nproc", "2"))
    assert "prune: " in printed
    results = json.loads((tmp_path / "two" / "results.json").read_text(encoding="utf-8"))
    assert results["variants"]["dense_fp32"]["metric"]["value"] > 0.9
    assert finish(start(recipe, tmp_path / "two")).count("done before, kept") == len(STAGES)

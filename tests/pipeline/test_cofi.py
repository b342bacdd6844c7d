"""CoFi in the whole chain: a ladder of sparsities, distilled by logits and layers, each recovered and exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor.errors import UserError
from compressor.recipe import load_recipe
from tests.pipeline.tiny import finish, start, write_recipe

TAUGHT = "distill: {teacher: teacher, alpha: 0.5, layers: 0.5}"
PRUNE = f"""  - prune: {{method: cofi, from: model, epochs: 16, learning_rate: 1.0e-3, batch_size: 16,
            evaluate_every: 0.1, gate_learning_rate: 0.3, preparation: 0.15, sparsity_warmup: 0.4, {TAUGHT}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = write_recipe(tmp_path)
    text = path.read_text(encoding="utf-8")
    text = text[: text.index("  - prune:")] + PRUNE + text[text.index("  - slice:") :]
    text = text.replace("fill: 0.01, distill: {teacher: teacher}", f"schedule: constant, {TAUGHT}")
    path.write_text(text + "target: {sparsity: [0.3, 0.6]}\n", encoding="utf-8")
    return path


def test_a_ladder_makes_a_family(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    finish(start(recipe, output, "--set", "stages.quantize.mode=dynamic"))
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    found = results["variants"]
    assert list(found)[:3] == ["dense_fp32", "s30_fp32", "s60_fp32"]
    info = {stage["id"]: stage for stage in results["stages"]}
    assert set(info) >= {"prune", "slice/s30", "slice/s60", "finetune-2/s30", "finetune-2/s60"}
    members = json.loads((output / "prune" / "stage.json").read_text(encoding="utf-8"))["info"]["members"]
    for name, sparsity in (("s30", 0.3), ("s60", 0.6)):
        variant = found[f"{name}_fp32"]
        assert members[name]["sparsity"] == pytest.approx(sparsity, abs=0.05)  # a head is 14 % of this model
        assert 1 - variant["sliced_density"] == pytest.approx(members[name]["sparsity"], abs=0.01)
        assert variant["parity"]["max_abs_error"] < 1e-4
        assert variant["metric"]["value"] > 0.8
        assert (output / "slice" / name / "layer_transform.safetensors").exists()
    assert found["s30_fp32"]["body_parameters"] > found["s60_fp32"]["body_parameters"]
    assert "done before, kept" in finish(start(recipe, output))


@pytest.mark.slow
def test_two_processes_learn_gates_multipliers_and_the_map_of_hidden_states(
    recipe: Path, tmp_path: Path
) -> None:
    finish(start(recipe, tmp_path / "two", "--nproc", "2", "--set", "target.sparsity=0.5"))
    info = json.loads((tmp_path / "two" / "prune" / "stage.json").read_text(encoding="utf-8"))["info"]
    assert info["members"]["pruned"]["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert info["members"]["pruned"]["expected_sparsity"] == pytest.approx(0.5, abs=0.1)
    learned = load_file(tmp_path / "two" / "slice" / "layer_transform.safetensors")
    assert not torch.equal(learned["weight"], torch.eye(32))


def test_a_recipe_without_a_target_is_refused(recipe: Path) -> None:
    with pytest.raises(
        UserError, match="target: is missing: cofi needs a latency_ms or sparsity or speedup to aim at"
    ):
        load_recipe(recipe, ["target=null"])
    with pytest.raises(UserError, match="cofi does not aim at max_metric_drop"):
        load_recipe(recipe, ["target={max_metric_drop: 0.01}"])

"""What recipes may ask for beside the usual chain: a rewind, a family of sparsities, static int8."""

import json
from pathlib import Path

import onnx
import pytest

from tests.pipeline.tiny import RECIPE, finish, start, write_recipe

PRUNE = RECIPE[RECIPE.index("  - prune:") : RECIPE.index("  - slice:")]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def results(output: Path) -> dict:
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def test_a_rewind_keeps_the_guide_s_heads(recipe: Path, tmp_path: Path) -> None:
    guide = PRUNE.replace("method: movement", "id: guide, method: movement, variant: struct")
    guide = guide.replace("attention_block: [8, 8], regularization: 5", "regularization: 40")
    again = PRUNE.replace("method: movement", "method: movement, rewind: guide")
    text = recipe.read_text(encoding="utf-8")
    old = PRUNE.replace("DATA", str(recipe.parent))
    assert old in text
    recipe.write_text(
        text.replace(old, guide + again.replace("from: teacher", "from: model")), encoding="utf-8"
    )
    finish(start(recipe, tmp_path / "run", "--set", "gates={}"))
    found = results(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "guide" / "config.json").read_text(encoding="utf-8"))
    kept = config["compressor"]["gates"]["layers"]
    for mine, theirs in zip(found["variants"]["pruned_fp32"]["structure"]["layers"], kept, strict=True):
        if theirs["attention"] != "constant":
            assert set(theirs["attention"]["kept"]) <= set(mine["attention"]["kept"])


def test_a_list_of_sparsities_makes_a_family(recipe: Path, tmp_path: Path) -> None:
    options = ["--set", "target={sparsity: [0.3, 0.7]}", "--set", "stages.prune.epochs=2"]
    finish(start(recipe, tmp_path / "run", *options))
    found = results(tmp_path / "run")["variants"]
    assert list(found) == ["dense_fp32", "s30_fp32", "s70_fp32", "dense_int8", "s30_int8", "s70_int8"]
    unit = 4 * 16 * 32 / (2 * (4 * 32 * 32 + 2 * 32 * 48))  # a head is the largest piece that is cut
    for name, sparsity in (("s30_fp32", 0.3), ("s70_fp32", 0.7)):
        assert sparsity - unit <= 1 - found[name]["sliced_density"] <= sparsity
    assert (tmp_path / "run" / "artifact" / "model.onnx").exists()


def test_static_int8_is_calibrated_on_training_examples(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text(encoding="utf-8").replace(
        "{mode: dynamic}", "{mode: static, calibration: {examples: 20}}"
    )
    recipe.write_text(text, encoding="utf-8")
    finish(start(recipe, tmp_path / "run", "--set", "stages.prune.epochs=1"))
    found = results(tmp_path / "run")["variants"]
    assert found["dense_int8"]["parity"]["agreement"] > 0.9
    graph = onnx.load(tmp_path / "run" / "artifacts" / "dense_int8" / "model.onnx").graph
    assert "QuantizeLinear" in {node.op_type for node in graph.node}


def test_auto_ships_nothing_slower_than_fp32(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text(encoding="utf-8").replace(
        "{mode: dynamic}", "{mode: auto, calibration: {examples: 20}}"
    )
    recipe.write_text(text, encoding="utf-8")
    options = ["--set", "stages.prune.epochs=1", "--set", "gates={}"]
    finish(start(recipe, tmp_path / "run", *options))
    found = results(tmp_path / "run")["variants"]
    assert list(found) == ["dense_fp32", "pruned_fp32", "dense_auto", "pruned_auto"]
    tried = found["pruned_auto"]["quantization"]["tried"]
    assert len(tried) >= 4
    (taken,) = [row for row in tried if row["admitted"]]
    assert found["pruned_auto"]["precision"] == ("fp32" if taken["scheme"] == "fp32" else "int8")
    assert taken["scheme"] == "fp32" or taken["ci95"][0] > 1
    assert "what was tried" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "done before, kept" in finish(start(recipe, tmp_path / "run", *options))


METHODS = {
    "layer-drop by place": "{method: layer-drop, strategy: top, drop: 1}",
    "layer-drop by contribution": "{method: layer-drop, strategy: contribution, drop: 1}",
    "layer-drop step by step": "{method: layer-drop, strategy: top, drop: 1, iterative: {epochs: 1, batch_size: 16}}",
    "greedy": "{method: greedy, from: model, drop: 1, epochs: 1, learning_rate: 3.0e-3, batch_size: 16}",
    "greedy, screened": "{method: greedy, from: model, drop: 1, search: screened, screen: 1, batch_size: 16}",
    "heads by sensitivity": "{method: heads, keep: 0.5, steps: 2}",
}


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.slow if "," in m else []) for m in METHODS]
)
def test_methods_in_the_whole_chain(method: str, recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    start_of, end_of = text.index("  - prune:"), text.index("  - slice:")
    text = f"{text[:start_of]}  - prune: {METHODS[method]}\n{text[end_of:]}"
    recipe.write_text(text.replace(", fill: 0.01", ""), encoding="utf-8")
    finish(start(recipe, tmp_path / "run", "--set", "gates={}"))
    found = results(tmp_path / "run")["variants"]
    layers = found["pruned_fp32"]["structure"]["layers"]
    if "heads" in method:
        assert sum(len(la["attention"]["kept"]) for la in layers if la["attention"] != "constant") == 2
    else:
        assert len(layers) == 1
        assert found["pruned_fp32"]["sliced_density"] == pytest.approx(0.5)
    assert found["pruned_fp32"]["parity"]["max_abs_error"] < 1e-4

"""What plan, compare, recipes, new, schema and doctor show, and how they refuse."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from compressor.benchmark import machine
from compressor.estimate import BF16_GAIN, features_of
from compressor.files import read_json
from compressor.models.structure import Sizes
from compressor.plan import plan as planned
from compressor.project import Project
from compressor.pruning.base import METHODS, method_class
from compressor.recipe import load_recipe
from compressor.stages.chain import STAGES
from compressor.views import doctor, recipes
from compressor.views.new import TASKS
from compressor.views.plan import UNKNOWN, plan_view
from compressor.views.schema import json_schema
from compressor.yamlfile import read_yaml


def test_plan_of_a_local_model_and_files(call, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    said = call("plan", recipe)
    assert said.code == 0
    assert said.rows[0] == "tiny in runs/tiny"
    assert "teacher model to run under a minute" in said.rows
    assert "prune model, teacher to run under a minute" in said.rows
    assert "rows train 54, selection 6, validation 6" in said.rows
    assert "model encoder of 3 layers, each 4 attention heads, FFN 40; hidden width 48" in said.rows
    assert "measured dense_fp32, pruned_fp32" in said.rows
    assert UNKNOWN not in said.out
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("sets", [[], ["amx_bf16"]])
def test_plan_knows_where_training_in_bf16_is_faster(sets, recipe, monkeypatch):
    monkeypatch.setattr(machine, "bf16_sets", lambda: sets)
    names = [f"stages.{name}.precision=bf16" for name in ("teacher", "prune")]
    fp32, bf16 = (planned(Project(load_recipe(recipe, changes), Path("nowhere"))) for changes in ([], names))
    times = [[stage["seconds"] for stage in made["stages"]] for made in (fp32, bf16)]
    assert np.allclose(times[0], np.array(times[1]) * (BF16_GAIN if sets else 1))
    assert (fp32["bf16"], bf16["bf16"]) == (bool(sets), False)


def test_plan_counts_the_characters_of_a_text_that_is_one_stream(tmp_path):
    (tmp_path / "text.txt").write_text("ann sees the cat\n" * 500, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
name: tiny
model:
  config: {{model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 64}}
  tokenizer: {{train: character}}
task:
  type: language-modeling
  dataset: {{train: {tmp_path}/text.txt, validation: {tmp_path}/text.txt}}
  max_length: 50
stages:
  - finetune: {{}}
  - export: {{}}
""",
        encoding="utf-8",
    )
    project = Project(load_recipe(recipe), tmp_path / "run")
    train = sum(map(len, project.data.task.examples.train["text"]))
    assert train > 0.8 * 500 * 17
    assert features_of(project) == (train / 50, 50)
    words = Project(load_recipe(recipe, ["model.tokenizer.train=word"]), tmp_path / "run")
    assert features_of(words)[0] == pytest.approx(train / 50 / 5.5)


def test_plan_says_what_is_unknown_until_downloaded(call, recipe):
    said = call("plan", recipe, "--set", "model=nobody/nothing")
    assert said.code == 0
    assert f"parameters {UNKNOWN}" in said.rows
    assert f"disk {UNKNOWN}" in said.rows
    assert f"teacher model to run {UNKNOWN}" in said.rows


def test_plan_shows_what_is_cached_and_where_room_is_short():
    plan = {
        "name": "big",
        "output": "runs/big",
        "stages": [
            {"id": "model", "from": [], "cached": True, "seconds": 0.0},
            {"id": "teacher", "from": ["model"], "cached": True, "seconds": 1e6},
            {"id": "prune", "from": ["teacher", "teacher"], "cached": False, "seconds": 9000.0},
            {"id": "finetune-2", "from": ["prune"], "cached": False, "seconds": 600.0},
        ],
        "rows": {"train": 60_614, "selection": 6735, "validation": 872},
        "baseline": "teacher",
        "variants": ["dense_fp32"],
        "bf16": False,
        "sizes": Sizes({"encoder": {"layers": 6, "attention": 12, "ffn": 1536}}, 384, 32, {}),
        "parameters": 22_700_000,
        "disk_bytes": 10**18,
        "memory_bytes": 10**6,
    }
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(*plan_view(plan), sep="\n")
    styled = console.export_text(styles=True, clear=False)
    rows = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "teacher model cached –" in rows
    assert "prune teacher to run about 2.5 h" in rows
    assert "finetune-2 prune to run about 10 min" in rows
    assert any(row.startswith("training about 2.7 h on") for row in rows)
    red = "\x1b[1;31m"
    assert f"{red}about 1000000000.0 GB" in styled
    assert f"{red}about 0.0 GB and activations" not in styled


def test_compare_prints_a_table_and_writes_the_page(call, finished, tmp_path):
    page = tmp_path / "new" / "page.html"
    said = call("compare", finished("a"), finished("b", name="other"), "--output", page)
    assert said.code == 0
    assert said.rows.count("pruned_fp32 89.00 % 1.00 [0.00, 2.00] 2.00x [1.90, 2.10] 5.00 ms –") == 2
    assert f"page: {page}" in said.rows
    assert "other" in page.read_text(encoding="utf-8")


def test_compare_writes_markdown_too(call, finished, tmp_path):
    page, file = tmp_path / "page.html", tmp_path / "summary.md"
    assert call("compare", finished("a"), "--output", page, "--markdown", file).code == 0
    assert "| pruned_fp32 | 89.00 % |" in file.read_text(encoding="utf-8")
    said = call("compare", finished("b"), "--output", page, "--markdown", tmp_path)
    assert said.code == 2
    assert "is a folder; name a file" in said.err


def test_compare_tells_runs_of_one_recipe_apart(call, finished, tmp_path):
    first, second = finished("a"), finished("b")
    said = call("compare", first, second, "--output", tmp_path / "page.html")
    assert f"tiny ({first})" in said.out
    assert f"tiny ({second})" in said.out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema_version": 99}, "schema version 99, this program reads version 1"),
        ({"variants": {"dense_fp32": None}}, "is damaged"),
        ({"variants": []}, "is damaged"),
    ],
)
def test_compare_refuses_results_it_cannot_read(call, finished, tmp_path, changes, says):
    said = call("compare", finished("a"), finished("b", **changes), "--output", tmp_path / "page.html")
    assert said.code == 2
    assert f"{tmp_path / 'b' / 'results.json'}" in said.err
    assert says in said.err
    assert not (tmp_path / "page.html").exists()


def test_compare_refuses_half_a_file_and_a_folder_without_results(call, finished, tmp_path):
    half = finished("half") / "results.json"
    half.write_text(half.read_text(encoding="utf-8")[:100], encoding="utf-8")
    page = tmp_path / "page.html"
    assert "is damaged (JSONDecodeError" in call("compare", half.parent, "--output", page).err
    said = call("compare", tmp_path, "--output", page)
    assert (said.code, "it has no results.json" in said.err) == (2, True)


def test_compare_does_not_replace_a_folder_by_its_page(call, finished, tmp_path):
    run = finished("a")
    said = call("compare", run, "--output", run)
    assert said.code == 2
    assert (run / "results.json").is_file()


def test_run_says_its_verdict_once(call, recipe, finished, tmp_path, monkeypatch):
    about = {"task": {"metric": "accuracy", "reference_points": {"bag_of_words": 0.8}}}
    results = read_json(finished("done", **about) / "results.json")
    monkeypatch.setattr("compressor.pipeline.run_recipe", lambda *_, **__: results)
    said = call("run", recipe, "--output", tmp_path / "run")
    assert said.code == 0, said.err
    assert said.out.count("2.00x faster") == 1
    assert "reference point bag of words: accuracy 0.8000" in said.rows


def test_recipes_lists_every_shipped_one(call, monkeypatch):
    monkeypatch.chdir(recipes.PACKAGE.parent)
    said = call("recipes")
    assert said.code == 0
    names = sorted(path.name for path in (recipes.PACKAGE.parent / "recipes").glob("*.yaml"))
    assert [row.split()[0] for row in said.rows if row.startswith("recipes/")] == [
        f"recipes/{n}" for n in names
    ]
    assert "text-classification: finetune, prune (movement), slice, finetune, export, quantize" in said.out
    assert "Fully offline" in said.out
    assert "compressor run" not in said.out


def test_recipes_of_an_installed_package_lie_inside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path / "site" / "compressor")
    beside, inside = tmp_path / "site" / "recipes", tmp_path / "site" / "compressor" / "recipes"
    for folder in (beside, inside):
        folder.mkdir(parents=True)
        (folder / "a.yaml").write_text("name: a\n", encoding="utf-8")
    assert recipes.shipped() == [inside / "a.yaml"]
    assert recipes.header(inside / "a.yaml") == ""


def shipped_and_new(call, tmp_path: Path) -> list[Path]:
    for task in TASKS:
        call("new", "--model", "./m", "--task", task, tmp_path / f"{task}.yaml")
    return [*recipes.shipped(), *tmp_path.glob("*.yaml")]


def test_the_schema_knows_every_key_of_stages_and_methods():
    schema = json_schema()
    keys = {name: set(block.get("properties", ())) for name, block in schema["$defs"].items()}
    verbs = schema["properties"]["stages"]["items"]["properties"]
    assert set(verbs) == set(STAGES)
    for verb, stage in STAGES.items():
        if verb != "prune":
            assert (
                keys[verbs[verb]["$ref"].removeprefix("#/$defs/")]
                == set(stage.allowed_keys())
                >= {"id", "from"}
            )
    assert set(verbs["prune"]["properties"]["method"]["enum"]) == set(METHODS)
    for case in verbs["prune"]["allOf"]:
        method = method_class(case["if"]["properties"]["method"]["const"])
        found = keys[case["then"]["$ref"].removeprefix("#/$defs/")]
        assert found == {*method.allowed_keys(), "id", "from"}


def test_the_schema_is_closed_and_whole():
    schema = json_schema()
    closed = {name for name, block in schema["$defs"].items() if block["additionalProperties"] is False}
    assert closed == set(schema["$defs"])
    assert schema["additionalProperties"] is False
    assert {"name", "model", "task", "stages"} == set(schema["required"])
    for name in schema["$defs"]:
        assert f"#/$defs/{name}" in str(schema), f"{name} is referred to nowhere"


def test_recipes_fit_the_schema_and_mistakes_do_not(call, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    for path in shipped_and_new(call, tmp_path):
        assert list(validator.iter_errors(read_yaml(path).value)) == [], path
    recipe = read_yaml(recipes.shipped()[0]).value
    recipe["stages"] = [
        {"finetune": {"epoch": 1}},
        {"prune": {"method": "movement", "wat": 1}},
        {"sliec": {}},
    ]
    places = [list(error.path) for error in validator.iter_errors(recipe)]
    assert places == [["stages", 0, "finetune"], ["stages", 1, "prune"], ["stages", 2]]


def test_doctor(call, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESSOR_DATA", str(tmp_path / "gone"))
    monkeypatch.setenv("COMPRESSOR_MODELS", str(tmp_path))
    said = call("doctor")
    assert said.code == 0
    assert f"COMPRESSOR_MODELS {tmp_path}" in said.rows
    assert f"COMPRESSOR_DATA names a folder that is not there: {tmp_path / 'gone'}" in said.rows
    assert "CPUExecutionProvider" in said.out
    assert any(row.startswith("torch 2.") for row in said.rows)


@pytest.mark.parametrize(
    ("isa", "says"),
    [
        (["avx2", "amx_int8", "avx512_vnni"], "AMX"),
        (["avx2", "avx_vnni"], "VNNI: int8 products are fast"),
        (["avx2", "avx512f"], "no VNNI"),
        (["neon", "dotprod"], "dotprod"),
        ([], "measure"),
    ],
)
def test_doctor_says_what_int8_will_do(isa, says):
    assert doctor.int8_here(isa).startswith(says) or says in doctor.int8_here(isa)


def test_doctor_says_where_training_in_bf16_pays() -> None:
    assert doctor.training_here(["avx512_bf16"]).endswith("is faster here (avx512_bf16)")
    assert doctor.training_here([]).endswith("is no faster here")


def test_doctor_finds_what_is_missing(monkeypatch):
    for name in doctor.FOLDERS:
        monkeypatch.delenv(name, raising=False)
    everything = {*doctor.REQUIRED, "onnxruntime"}
    assert doctor.missing(everything, ["CPUExecutionProvider"], []) == []
    assert "onnx; install" in doctor.missing(everything - {"onnx"}, ["CPUExecutionProvider"], [])[0]
    assert "compressor[cpu]" in doctor.missing(everything - {"onnxruntime"}, [], [])[0]
    assert "overwrite" in doctor.missing({*everything, "onnxruntime-gpu"}, ["CPUExecutionProvider"], [])[0]
    assert "compressor[gpu]" in doctor.missing(everything, ["CPUExecutionProvider"], ["H200"])[0]

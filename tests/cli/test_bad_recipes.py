"""Recipes that are refused: every mistake with its line, its key, what is allowed, and nothing left behind."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from compressor.recipe import RecipeError, parse
from compressor.yamlfile import Document
from tests.cli.refusals import Call, everything_in, lines_of, refused

# The tests below count on these line numbers.
GOOD = """\
name: tiny
model: ./model
task:
  type: text-classification
  dataset: {train: a.csv, validation: b.csv}
seed: 1
stages:
  - finetune: {id: teacher, epochs: 1}
  - prune: {method: movement, from: model, distill: {teacher: teacher}}
  - slice: {}
  - finetune: {epochs: 1}
  - export: {}
  - quantize: {}
benchmark: {batch_sizes: [1]}
gates: {min_speedup: 2}
"""
TEACHER = "finetune: {id: teacher, epochs: 1}"
PRUNE = "prune: {method: movement, from: model, distill: {teacher: teacher}}"
FILES = "dataset: {train: a.csv, validation: b.csv}"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str | bytes, name: str = "r.yaml") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def replaced(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def check(call: Call, here: Path, text: str, problems: list[tuple[int, str, str]], *options: str) -> None:
    """`run` must name exactly these problems, each as file:line: key: words, and write nothing."""
    name = write(text)
    before = everything_in(here)
    lines = lines_of(call("run", name, *options), 2)
    assert len(lines) == len(problems), lines
    for line, (number, key, words) in zip(lines, problems, strict=True):
        assert line.startswith(f"r.yaml:{number}: {key}: "), line
        assert words in line
    assert everything_in(here) == before


def test_the_recipe_that_all_others_differ_from_is_valid(call: Call) -> None:
    assert call("validate", write(GOOD)).code == 0


def test_heads_are_named_by_layer(call: Call) -> None:
    """Keys are text in a recipe, also those that are numbers."""
    heads = 'prune: {method: heads, score: explicit, drop: {"0": [1, 2], "3": [0]}}'
    assert call("validate", write(GOOD.replace(PRUNE, heads))).code == 0
    wrong = call("validate", write(GOOD.replace(PRUNE, heads.replace('"3"', "first"))))
    assert (wrong.code, "stages.prune.drop.first" in wrong.err) == (2, True)


KEYS = [
    # unknown keys, with the nearest one
    ("seed: 1", "sed: 1", 6, "sed", "unknown key; did you mean 'seed'? (allowed: name, model, task"),
    ("  type: text", "  metrik: f1\n  type: text", 4, "task.metrik", "did you mean 'metric'?"),
    (TEACHER, "finetune: {id: teacher, epoch: 1}", 8, "stages.teacher.epoch", "did you mean 'epochs'?"),
    ("from: model,", "regularisation: 1,", 9, "stages.prune.regularisation", "mean 'regularization'?"),
    ("from: model,", "source: model,", 9, "stages.prune.source", "unknown key"),
    ("min_speedup", "min_speed", 15, "gates.min_speed", "did you mean 'min_speedup'?"),
    ("batch_sizes", "batches", 14, "benchmark.batches", "did you mean 'batch_sizes'?"),
    (FILES, "dataset: {hub: squad, conf: a}", 5, "task.dataset.conf", "did you mean 'config'?"),
    ("./model", "{id: bert, tag: v1}", 2, "model.tag", "(allowed: id, revision)"),
    ("{teacher: teacher}", "{teacher: teacher, heat: 2}", 9, "stages.prune.distill.heat", "unknown key"),
    # unknown verbs, methods, tasks, metrics, columns, variants, with the nearest one
    ("slice: {}", "slcie: {}", 10, "stages.slcie", "unknown stage; did you mean 'slice'?"),
    ("movement", "movment", 9, "stages.prune.method", "unknown method 'movment'; did you mean 'movement'?"),
    ("method: movement, ", "", 9, "stages.prune.method", "is missing (allowed: movement"),
    ("movement", "[movement]", 9, "stages.prune.method", "unknown method ['movement']"),
    ("text-classification", "text-clasification", 4, "task.type", "mean 'text-classification'? (got "),
    ("  type: text", "  metric: acuracy\n  type: text", 4, "task.metric", "did you mean 'accuracy'?"),
    ("  type: text", "  columns: {txt: a}\n  type: text", 4, "task.columns", "did you mean 'text'?"),
    ("seed: 1", "release: prund_int8", 6, "release", "did you mean 'pruned_int8'? (there are: final, all, "),
    ("speedup: 2", "speedup: {value: 2, variant: x}", 15, "gates.min_speedup.variant", "no variant 'x'"),
    ("speedup: 2", "speedup: {value: 2, batch_size: 9}", 15, "gates.min_speedup", "no cell with batch_size 9"),
    # gates that have nothing to judge
    ("seed: 1", "release: dense_fp32", 15, "gates.min_speedup", "dense_fp32 is what speedups are measured from"),
    ("speedup: 2", "speedup: {value: 2, variant: dense_fp32}", 15, "gates.min_speedup", "name another variant"),
    ("min_speedup: 2}", "min_agreement: 0.9}\nrelease: pruned_fp32", 15, "gates.min_agreement", "is quantized"),
    # wrong types
    ("seed: 1", "seed: one", 6, "seed", "should be a valid integer (got 'one')"),
    ("seed: 1", 'seed: "1"', 6, "seed", "should be a valid integer (got '1')"),
    ("seed: 1", "seed: true", 6, "seed", "should be a valid integer (got True)"),
    ("seed: 1", "seed: 1.5", 6, "seed", "should be a valid integer"),
    ("name: tiny", "name: 7", 1, "name", "should be a valid string (got 7)"),
    ("name: tiny", "name: a b/c", 1, "name", "should be one word of letters, digits"),
    ("./model", "[a]", 2, "model", "should be a valid string"),
    ("./model", "a/b/c", 2, "model", "'a/b/c' is neither a hub id (name or owner/name) nor a folder"),
    ("./model", "{id: ./model, revision: main}", 2, "model", "`revision` is for hub ids"),
    ("./model", "{config: {hidden_size: 8}}", 2, "model", "needs `model_type`, such as: {model_type: bert"),
    ("./model", "{config: {model_type: bert, x: .nan}}", 2, "model", "cannot hold .nan or .inf"),
    ("{batch_sizes: [1]}", "fast", 14, "benchmark", "should be a mapping of keys (got 'fast')"),
    ("{batch_sizes: [1]}", "", 14, "benchmark", "should be a mapping of keys"),
    ("[1]", "[1, 1]", 14, "benchmark.batch_sizes", "lists 1 twice"),
    ("[1]", "[]", 14, "benchmark.batch_sizes", "should not be empty"),
    ("[1]", "[1, x]", 14, "benchmark.batch_sizes.1", "should be a valid integer (got 'x')"),
    ("speedup: 2", "speedup: fast", 15, "gates.min_speedup", "valid number, or should be a mapping of keys"),
    ("speedup: 2", "speedup: {batch_size: 1}", 15, "gates.min_speedup.value", "is missing"),
    ("{}\n  - finetune", "3\n  - finetune", 10, "stages.slice", "should hold keys, such as: - slice: {}"),
    (f"  - {PRUNE}", "  - prune", 9, "stages.?", "each stage is one verb with its keys"),
    # values out of range
    ("seed: 1", "seed: -1", 6, "seed", "should be greater than or equal to 0 (got -1)"),
    (TEACHER, "finetune: {id: teacher, epochs: -1}", 8, "stages.teacher.epochs", "should be greater than 0"),
    (TEACHER, "finetune: {id: teacher, epochs: .nan}", 8, "stages.teacher.epochs", "a finite number (got nan)"),
    (TEACHER, "finetune: {id: teacher, epochs: .inf}", 8, "stages.teacher.epochs", "a finite number (got inf)"),
    (TEACHER, "finetune: {id: teacher, epochs: 1e999}", 8, "stages.teacher.epochs", "a finite number"),
    (TEACHER, "finetune: {id: teacher, warmup: 1.5}", 8, "stages.teacher.warmup", "should be less than 1, or"),
    ("from: model,", "threshold: 2,", 9, "stages.prune.threshold", "between 0 and 1 for mask sigmoid (got 2)"),
    ("from: model,", "mask: topk,", 9, "stages.prune", "mask topk needs a `threshold`: the share of"),
    ("from: model,", "mask: l0, threshold: 0.1,", 9, "stages.prune.threshold", "mask l0 has none"),
    ("from: model,", "mask: raw, threshold: -11,", 9, "stages.prune.threshold", "should be greater than -10"),
    ("from: model,", "mask: topK, threshold: 0.5,", 9, "stages.prune.mask", "did you mean 'topk'?"),
    ("from: model,", "variant: strukt,", 9, "stages.prune.variant", "did you mean 'struct'?"),
    ("from: model,", "variant: struct, attention_block: 32,", 9, "stages.prune", "leave attention_block out"),
    ("from: model,", "variant: block, align: 8,", 9, "stages.prune", "align needs one score a neuron"),
    ("from: model,", "variant: unstructured, joint_heads: true,", 9, "stages.prune", "needs blocks of weights"),
    ("from: model,", "heads: reference, uniform_heads: drop,", 9, "stages.prune", "leave uniform_heads out"),
    ("from: model,", "mask: topk, threshold: 0.5, regularization: 1,", 9, "stages.prune", "keeps a given share"),
    ("from: model,", "rewind: techer,", 9, "stages.prune.rewind", "no stage 'techer'"),
    ("from: model,", "rewind: teacher,", 9, "stages.prune.rewind", "'teacher' is not pruned"),
    ("from: model,", "attention_block: [8],", 9, "stages.prune.attention_block", "should be rows and columns"),
    ("from: model,", "warmup: 0.6, cooldown: 0.5,", 9, "stages.prune", "together must leave steps"),
    ("quantize: {}", "quantize: {mode: int4}", 13, "stages.quantize.mode", "should be 'dynamic', 'static'"),
    ("quantize: {}", "quantize: {symmetric: true}", 13, "stages.quantize", "dynamic has no `symmetric`"),
    ("quantize: {}", "quantize: {mode: fp16, per_channel: true}", 13, "stages.quantize", "no `per_channel`"),
    ("export: {}", "export: {opset: 3}", 12, "stages.export.opset", "greater than or equal to 14"),
    ("seed: 1", "target: {speedup: 2}", 6, "target", "movement does not aim at speedup"),
    ("seed: 1", "target: {speedup: 1}", 6, "target", "a speedup is above 1: 2 asks for half the time"),
    ("min_speedup: 2", "max_metric_drop: 1", 15, "gates.max_metric_drop", "0.01 is one point"),
    ("seed: 1", "target: {sparsity: 1.5}", 6, "target", "sparsity is the share of the layers' weights"),
    ("seed: 1", "target: {sparsity: [0.5, 0.5]}", 6, "target", "names each value once"),
    ("seed: 1", "target: {speedup: 2, sparsity: 0.5}", 6, "target", "give exactly one of speedup, latency_ms"),
    # data that cannot be meant
    (FILES, "dataset: {train: a.csv}", 5, "task.dataset.validation", "is missing"),
    (FILES, "dataset: a.csv", 5, "task.dataset", "'a.csv' is a file, not a hub id; give files as `train:`"),
    (FILES, "dataset: {train: a.csv, validation: b.xyz}", 5, "task.dataset", "add `format:` (csv, tsv"),
    (FILES, "dataset: {builtin: docstring}", 5, "task.dataset.builtin", "did you mean 'docstrings'?"),
    ("b.csv", "b.csv, encoding: utf9", 5, "task.dataset.encoding", "'utf9' is no encoding Python knows"),
    ("b.csv", "b.csv, encoding: hex", 5, "task.dataset.encoding", "'hex' is no encoding Python knows"),
    ("text-classification", "question-answering", 5, "task.dataset", "cannot be read from csv files"),
    # impossible orders
    (f"  - {PRUNE}\n", "", 9, "stages.slice", "cuts what a `prune` before it chose: there is none"),
    ("  - slice: {}\n", "", 11, "stages.export", "a model with masks: put `slice` between"),
    (f"{PRUNE}\n", f"{PRUNE}\n  - prune: {{method: movement}}\n", 10, "stages.prune-2", "put `slice` between"),
    ("  - quantize: {}\n", "  - quantize: {}\n  - finetune: {}\n", 14, "stages.finetune-3", "can follow `export`"),
    ("quantize: {}", "quantize: {from: teacher}", 13, "stages.quantize.from", "leave `from` out"),
    ("from: model", "from: techer", 9, "stages.prune.from", "no stage 'techer' before this one; did you mean"),
    ("teacher: teacher", "teacher: tutor", 9, "stages.prune.distill.teacher", "no stage 'tutor' before"),
    ("seed: 1", "baseline: prune", 6, "baseline", "'prune' is no dense model"),
    ("seed: 1", "baseline: techer", 6, "baseline", "no stage 'techer'"),
    ("slice: {}", "slice: {id: teacher}", 8, "stages.teacher", "is the id of two stages: give one of them"),
    ("slice: {}", "slice: {id: model}", 10, "stages.model", "'model' is the recipe's model"),
    ("slice: {}", "slice: {id: artifact}", 10, "stages.artifact", "is a folder of every run"),
    ("slice: {}", "slice: {id: ../x}", 10, "stages.../x.id", "should be one word of letters"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "words"), KEYS, ids=[f"{k[3]}-{k[1][:30]}" for k in KEYS]
)
def test_one_mistake(call: Call, here: Path, old: str, new: str, line: int, key: str, words: str) -> None:
    check(call, here, replaced(old, new), [(line, key, words)])


SPEED = "seed: 1\ntarget: {speedup: 2, at: {precision: int8}}"
TWICE = "prune: {method: layer-drop, drop: [1, 2]}\n  - slice: {}\n  - prune: {method: heads, keep: 0.5}"
ENTROPY = "quantize: {mode: auto, calibration: {method: entropy}}"
CHAINS = [
    (PRUNE, TWICE, (11, "stages.prune-2", "prunes one model, 'slice' makes several")),
    ("quantize: {}", ENTROPY, (13, "stages.quantize", "finds `calibration.method` itself")),
]


@pytest.mark.parametrize(("old", "new", "problem"), CHAINS)
def test_one_mistake_in_a_chain(
    call: Call, here: Path, old: str, new: str, problem: tuple[int, str, str]
) -> None:
    check(call, here, replaced(old, new), [problem])


def test_a_family_teaches_nobody(call: Call, here: Path) -> None:
    family = replaced(PRUNE, "prune: {method: layer-drop, drop: [1, 2]}")
    text = family.replace(
        "  - finetune: {epochs: 1}",
        "  - finetune: {id: all, epochs: 1}\n  - finetune: {distill: {teacher: all}}",
    )
    check(call, here, text, [(12, "stages.finetune-3.distill.teacher", "'all' makes several")])


def test_int8_is_aimed_at_with_what_the_chain_ends_with(call: Call, here: Path) -> None:
    """By the pruner that aims; others may stand before it."""
    chain = "prune: {method: layer-drop, drop: 1}\n  - slice: {}\n  - prune: {method: speed}"
    text = replaced(PRUNE, chain).replace("seed: 1", SPEED)
    assert call("validate", write(text)).code == 0
    own = text.replace("quantize: {}", "quantize: {per_channel: false}")
    check(
        call,
        here,
        own,
        [(16, "stages.quantize.per_channel", "is not what target.at.precision int8 aims with")],
    )


def test_without_stages_or_with_none(call: Call, here: Path) -> None:
    head = GOOD[: GOOD.index("stages:")]
    check(call, here, head, [(1, "stages", "is missing")])
    check(call, here, head + "stages:\n", [(7, "stages", "should not be empty")])
    check(call, here, head + "stages: []\n", [(7, "stages", "should not be empty")])
    check(call, here, head + "stages: {finetune: {}}\n", [(7, "stages", "should be a list of stages")])
    check(
        call, here, head + "stages:\n  - finetune: {}\n", [(7, "stages", "the chain ends without `export`")]
    )


def test_quantize_before_export(call: Call, here: Path) -> None:
    text = replaced("  - export: {}\n  - quantize: {}\n", "  - quantize: {}\n  - export: {}\n")
    check(call, here, text, [(12, "stages.quantize", "put `export` before it")])


def test_all_mistakes_of_a_recipe_come_at_once(call: Call, here: Path) -> None:
    text = (
        GOOD.replace("seed: 1", "sead: 1")
        .replace("text-classification", "text")
        .replace(TEACHER, "finetune: {id: teacher, epochs: -1, batch_size: true, learning_rate: fast}")
        .replace("method: movement", "id: 3, threshold: 2, method: movement")
        .replace("  - slice: {}\n", "")
    )
    problems = [
        (4, "task.type", "should be 'text-classification'"),
        (6, "sead", "did you mean 'seed'?"),
        (8, "stages.teacher.batch_size", "(got True)"),
        (8, "stages.teacher.epochs", "(got -1)"),
        (8, "stages.teacher.learning_rate", "(got 'fast')"),
        (9, "stages.prune.id", "should be a valid string (got 3)"),
        (9, "stages.prune.threshold", "between 0 and 1"),
        (11, "stages.export", "put `slice` between"),
    ]
    check(call, here, text, problems)


def test_all_mistakes_of_all_recipes_come_at_once(call: Call, here: Path) -> None:
    files = [
        write(replaced("seed: 1", "sed: 1"), "a.yaml"),
        write(GOOD, "good.yaml"),
        write("- a list\n", "b.yaml"),
        write(replaced("slice: {}", "slcie: {}"), "c.yaml"),
    ]
    lines = lines_of(call("validate", *files, "gone.yaml"), 2)
    starts = ["a.yaml:6: sed: ", "b.yaml: ", "c.yaml:10: stages.slcie: ", "no recipe at gone.yaml"]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"
NO_RECIPES = {
    "list": ("- a\n- b\n", "r.yaml: a recipe is a mapping of keys, this file is a list"),
    "scalar": ("hello\n", "this file is a single value"),
    "empty": ("", "this file is empty; see `compressor recipes`"),
    "only a comment": ("# soon\n", "this file is empty"),
    "binary": (bytes(range(256)), "r.yaml is not a text file in UTF-8"),
    "NUL": ("name: a\0b\n", "r.yaml is not a text file in UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "r.yaml is not a text file in UTF-8"),
    "Latin-1": ("name: caf\xe9\n".encode("latin-1"), "r.yaml is not a text file in UTF-8"),
    "2 MB": ("a: b\n" * 420_000, "r.yaml is larger than 128 kB: no recipe"),
    "tag": ("name: x\nseed: !!int abc\n", "r.yaml:2: tags such as !!int are not allowed"),
    "python tag": (
        "a: !!python/object/apply:os.system [touch x]\n",
        "tags such as !!python/object/apply:os.system",
    ),
    "own tag": ("a: !include other.yaml\n", "r.yaml:1: tags such as !include are not allowed"),
    "bomb": (BOMB, "r.yaml:1: anchors and aliases are not allowed in a recipe; write the value out"),
    "alias of itself": ("a: &a [*a]\n", "r.yaml:1: anchors and aliases"),
    "deep flow": ("a: " + "[" * 50_000, "r.yaml:1: nested too deeply"),
    "deep block": ("\n".join("  " * n + "a:" for n in range(100)), "nested too deeply"),
    "tab": ("name: x\ntask:\n\ttype: a\n", "r.yaml:3: not valid YAML: "),
    "unclosed": ("a: [1, 2\nb: 3\n", "r.yaml:2: not valid YAML: "),
    "two documents": ("a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML: expected a single document"),
    "duplicate key": ("name: a\nseed: 1\nname: b\n", "r.yaml:3: key 'name' is given twice"),
    "number as key": ("1: a\n", "r.yaml:1: a key must be text"),
    "list as key": ("name: x\n[a]: b\n", "r.yaml:2: a key must be text"),
    "number that is none": ("name: x\nseed: 0x_\n", "r.yaml:2: '0x_' is neither a number nor text"),
    "half a character": ('name: "\\ud800"\n', "r.yaml:1: '\\ud800' is neither a number nor text"),
    "control character": ("name: x\nseed: \x07\n", "r.yaml:2: character '\\x07' is not allowed"),
}


@pytest.mark.parametrize(("text", "words"), NO_RECIPES.values(), ids=list(NO_RECIPES))
def test_files_that_are_no_recipe(call: Call, here: Path, text: str | bytes, words: str) -> None:
    refused(call, here, ["run", write(text)], words)


def test_tabs_are_told_what_to_be_instead(call: Call, here: Path) -> None:
    refused(call, here, ["run", write("name: x\ntask:\n\ttype: a\n")], "indent with spaces, not with tabs")


def test_dates_and_merges_are_plain_text(call: Call, here: Path) -> None:
    assert call("validate", write(replaced("name: tiny", "name: 2024-13-45"))).code == 0
    check(call, here, replaced("seed: 1", "<<: {seed: 1}"), [(6, "<<", "unknown key")])


def test_recipes_that_are_not_there(call: Call, here: Path) -> None:
    refused(call, here, ["run", "gone.yaml"], "no recipe at gone.yaml (`compressor recipes` lists")
    refused(call, here, ["plan", here], f"no recipe at {here}")
    refused(call, here, ["validate", "x" * 300], "cannot read xxx")


OVERRIDES = {
    "no value": ("seed", "--set seed: write it as key=value, such as --set seed=7"),
    "no key": ("=7", "--set =7: write it as key=value"),
    "wrong type": ("seed=abc", "--set seed=abc: seed: should be a valid integer (got 'abc')"),
    "unknown key": ("sed=7", "--set sed=7: sed: unknown key; did you mean 'seed'?"),
    "unknown key of a stage": (
        "stages.teacher.epoch=1",
        "stages.teacher.epoch: unknown key; did you mean 'epochs'?",
    ),
    "unknown stage": ("stages.finetune-3.epochs=1", "no stage 'finetune-3'; did you mean 'finetune-2'?"),
    "a whole stage": ("stages.teacher=1", "name a key of that stage, such as --set stages.teacher.id=a"),
    "into a single value": ("name.first=x", "--set name.first=x: 'name' holds no keys"),
    "into a list": ("benchmark.batch_sizes.x=1", "'batch_sizes' holds no keys"),
    "broken YAML": ("seed=[", "--set: '[': not valid YAML"),
    "alias": ("seed=&a [*a]", "--set: '&a [*a]': anchors and aliases are not allowed"),
    "tag": ("seed=!!python/name:os.system", "tags such as !!python/name:os.system are not allowed"),
    "control character": ("seed=\x07", "character '\\x07' is not allowed"),
    "deep": ("seed=" + "[" * 5000, "nested too deeply"),
    "impossible order": (
        "stages.quantize.from=teacher",
        "--set stages.quantize.from=teacher: stages.quantize.from: ",
    ),
}


@pytest.mark.parametrize(("override", "words"), OVERRIDES.values(), ids=list(OVERRIDES))
def test_overrides_gone_wrong(call: Call, here: Path, override: str, words: str) -> None:
    refused(call, here, ["run", write(GOOD), "--set", override], words)


def test_an_override_reaches_through_an_empty_block(call: Call) -> None:
    name = write(replaced("benchmark: {batch_sizes: [1]}", "benchmark:"))
    assert call("validate", name, "--set", "benchmark.threads=[1]").code == 0


ARGUMENTS = {
    "unknown verb": (["validat"], "No such command 'validat'"),
    "unknown option": (["run", "r.yaml", "--frm", "x"], "No such option: --frm"),
    "no recipe": (["run"], "Missing argument 'RECIPE'"),
    "no processes": (["run", "r.yaml", "--nproc", "0"], "--nproc"),
    "no number": (["run", "r.yaml", "--nproc", "two"], "--nproc"),
}


@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_arguments_gone_wrong(call: Call, here: Path, arguments: list[object], words: str) -> None:
    write(GOOD)
    refused(call, here, arguments, words)


FULL: dict[str, Any] = {
    "name": "tiny",
    "model": {"config": {"model_type": "bert"}, "tokenizer": {"train": "wordpiece", "vocab_size": 300}},
    "task": {
        "type": "text-classification",
        "dataset": {"train": "a.csv", "validation": "b.csv", "format": "csv", "header": False, "encoding": "utf-8"},
        "columns": {"text": 0, "label": 1},
        "selection": {"fraction": 0.1},
        "max_length": 16,
        "limit": {"train": 10},
        "metric": "f1",
        "labels": ["a", "b"],
    },
    "seed": 1,
    "stages": [
        {"finetune": {"id": "teacher", "epochs": 1.0, "warmup": 0.1}},
        {"prune": {"method": "movement", "attention_block": [8, 8], "distill": {"teacher": "teacher"}}},
        {"slice": {}},
        {"finetune": {"fill": 0.01, "distill": {"teacher": {"model": "./model"}, "alpha": 0.5}}},
        {"export": {"opset": 18}},
        {"quantize": {"operators": ["MatMul"], "reduce_range": "auto"}},
    ],
    "baseline": "teacher",
    "benchmark": {"providers": ["cpu"], "threads": [1]},
    "gates": {"min_speedup": {"value": 2, "variant": "final"}, "max_metric_drop": 0.1},
    "release": "all",
}  # fmt: skip
ODD = (
    None,
    True,
    -1,
    0.5,
    10**30,
    "",
    "x",
    "~/y",
    [],
    [None],
    [[1]],
    {},
    {"x": 1},
    {"model": None},
    {"hub": 1},
)


def with_odd_values(value: Any) -> Iterator[Any]:
    """Copies of `value`, in each of which one part is something odd."""
    yield from ODD
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for odd in with_odd_values(part):
            copy = value.copy()
            copy[key] = odd
            yield copy


def test_no_value_in_any_place_is_more_than_bad_input() -> None:
    parse(Document(Path("r.yaml"), FULL))
    for recipe in with_odd_values(FULL):
        document = Document(Path("r.yaml"), recipe)
        if isinstance(recipe, dict):  # else the reader refuses it
            with suppress(RecipeError):
                parse(document)

"""Models, tokenizers and teachers that are refused before the first stage."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from tests.cli.refusals import Call, refused
from tests.zoo import tiny_model

RECIPE = """\
name: tiny
model: {model}
task:
  type: text-classification
  dataset: {{train: data.csv, validation: data.csv}}
  labels: [bad, good]
  max_length: 16
stages:
  - finetune: {{id: teacher, epochs: 1}}
  - prune: {{method: movement, from: model, attention_block: 8, epochs: 1, distill: {{teacher: teacher}}}}
  - slice: {{}}
  - export: {{}}
benchmark: {{threads: [1], sequence_lengths: [16]}}
"""
Run = Callable[..., None]
Break = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny model at ./model, to be broken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text,label\na cat,good\na dog,bad\nthe dog,bad\n", encoding="utf-8")
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(call: Call, folder: Path) -> Run:
    """Runs the recipe on a model with overrides; it must be refused with these words, leaving nothing."""

    def refuse(model: str, *words: str, sets: tuple[str, ...] = ()) -> None:
        Path("recipe.yaml").write_text(RECIPE.format(model=model), encoding="utf-8")
        options = [part for text in sets for part in ("--set", text)]
        refused(call, folder.parent, ["run", "recipe.yaml", *options], *words)

    return refuse


def text(name: str, content: str) -> Break:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


def config(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")

    return change


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    no_weights(folder)
    torch.save(tensors, folder / "pytorch_model.bin")


def pickle_in_disguise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0] * 100}))


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def lost_shard(folder: Path) -> None:
    no_weights(folder)
    text("model.safetensors.index.json", json.dumps({"weight_map": {"a": "model-1-of-1.safetensors"}}))(
        folder
    )


def damaged_index(folder: Path) -> None:
    no_weights(folder)
    text("model.safetensors.index.json", '{"weights": {}}')(folder)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


FFN = "bert.encoder.layer.0.intermediate.dense.weight"
FOLDERS: dict[str, tuple[Break, list[str]]] = {
    "no config": (no_config, ["is no model folder: it has no config.json"]),
    "config is no JSON": (
        text("config.json", "{'a': 1}"),
        ["config.json is no config of a model: Expecting prop"],
    ),
    "config is a list": (text("config.json", "[]"), ["config.json is no config of a model"]),
    "config is empty": (
        text("config.json", "{}"),
        ["config.json is no config of a model: Unrecognized model"],
    ),
    "config is binary": (
        lambda f: (f / "config.json").write_bytes(b"\x80\x04") and None,
        ["no config of a model"],
    ),
    "no such family": (config(model_type="brt"), ["config.json is no config of a model", "`brt`"]),
    "unsupported family": (
        config(model_type="big_bird"),
        ["model family 'big_bird' is not supported (supported: albert, "],
    ),
    "nearly supported family": (
        config(model_type="mbart"),
        ["'mbart' is not supported; did you mean 'bart'?"],
    ),
    "code of its own": (
        config(model_type="mine", auto_map={"AutoConfig": "code.Config"}),
        ["model needs code of its own to open; only transformers' own families are opened"],
    ),
    "heads that do not divide": (config(num_attention_heads=5), ["no model has these sizes", "(5)"]),
    "no heads": (config(num_attention_heads=0), ["no model has these sizes"]),
    "text as size": (config(hidden_size="48"), ["no model has these sizes"]),
    "negative size": (config(intermediate_size=-4), ["no model has these sizes"]),
    "unknown activation": (config(hidden_act="gleu"), ["no model has these sizes", "gleu"]),
    "no weights": (no_weights, ["model has no model.safetensors"]),
    "pickle": (
        pickled,
        ["holds pickled weights (pytorch_model.bin), which can run code when opened", "convert"],
    ),
    "pickle in disguise": (pickle_in_disguise, ["model.safetensors is no readable safetensors file"]),
    "truncated": (truncated, ["model.safetensors is no readable safetensors file", "save the model again"]),
    "empty weights": (emptied, ["model.safetensors is no readable safetensors file"]),
    "lost shard": (lost_shard, ["model-1-of-1.safetensors is no readable safetensors file"]),
    "damaged index": (damaged_index, ["index.json is no index of weights: 'weight_map'"]),
    "other shapes": (
        weights(lambda w: w.update({FFN: torch.zeros(7, 48)})),
        [f"./model: the weights of {FFN} are not (40, 48) as its config.json says"],
    ),
    "other sizes": (config(intermediate_size=64), ["are not (64", "as its config.json says"]),
    "lost tensors": (
        weights(lambda w: w.pop(FFN)),
        [f"./model lacks weights of its own architecture: {FFN}"],
    ),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.glob("*") if "token" in p.name or "vocab" in p.name] and None,
        ["cannot open the tokenizer './model'"],
    ),
    "damaged tokenizer": (text("tokenizer.json", "{"), ["cannot open the tokenizer './model'"]),
    "fewer embeddings than tokens": (
        lambda f: checkpoint.save(tiny_model("bert", vocab_size=20), f),
        ["tokens, its model 20: they do not belong together"],
    ),
}


@pytest.mark.parametrize(("spoil", "words"), FOLDERS.values(), ids=list(FOLDERS))
def test_broken_folders(run: Run, folder: Path, spoil: Break, words: list[str]) -> None:
    spoil(folder)
    run("./model", *words)


def test_a_tokenizer_without_padding(run: Run, folder: Path, tokenizer: BertTokenizerFast) -> None:
    inner = BertWordPieceTokenizer(vocab=tokenizer.get_vocab())
    BertTokenizerFast(tokenizer_object=inner._tokenizer, pad_token=None).save_pretrained(folder)
    run("./model", "the tokenizer has no padding token; set its pad_token")


NAMES = {
    "gone": ("./gone", "no model folder at gone"),
    "file": ("./data.csv", "no model folder at data.csv"),
    "home of nobody": ("~nobody-here/model", "no model folder at ~nobody-here/model"),
    "without ./": ("model", "'model' is a folder here: write ./model if it is the model"),
    "hub": (
        "nobody/nothing",
        "cannot open the model 'nobody/nothing'",
        "(a hub id needs a network or a cached copy; ",
    ),
    "hub revision": ("{id: nobody/nothing, revision: v1}", "cannot open the model 'nobody/nothing'"),
    "no such family": (
        "{config: {model_type: brt}}",
        "model.config: unknown model_type 'brt'; did you mean 'bert'?",
    ),
    "other family": ("{config: {model_type: mpnet}}", "model family 'mpnet' is not supported"),
    "sizes": (
        "{config: {model_type: bert, hidden_size: 50}}",
        "model.config: no model has these sizes",
        "(50)",
    ),
    "tokenizer": ("{config: {model_type: bert}, tokenizer: ./gone}", "cannot open the tokenizer './gone'"),
}


@pytest.mark.parametrize("words", NAMES.values(), ids=list(NAMES))
def test_models_that_are_not_there(run: Run, words: tuple[str, ...]) -> None:
    run(*words)


SETTINGS = {
    "blocks": ("stages.prune.attention_block=7", "attention_block [7, 7] does not divide", "divisors of 48"),
    "one side": ("stages.prune.attention_block=[8, 5]", "attention_block [8, 5] does not divide"),
    "long texts": ("task.max_length=65", "task.max_length 65 is more than the model takes (64 tokens)"),
    "long timing": (
        "benchmark.sequence_lengths=[16, 65]",
        "asks for 65 tokens, the model reads at most 64; lower it",
    ),
    "other labels": ("baseline=model", "the baseline would be './model', whose head is not trained"),
    "labels in another order": ("task.labels=[good, bad]", "labels are in another order (['bad', 'good'])"),
}


@pytest.mark.parametrize(
    ("override", "words"), [(s[0], s[1:]) for s in SETTINGS.values()], ids=list(SETTINGS)
)
def test_settings_that_do_not_fit_the_model(
    run: Run, folder: Path, override: str, words: tuple[str, ...]
) -> None:
    if override == "baseline=model":
        checkpoint.save(tiny_model("bert", num_labels=3), folder)
    run("./model", *words, sets=(override,))


TEACHERS = {
    "gone": ("./gone", "no model folder at gone"),
    "hub": ("nobody/nothing", "cannot open the model 'nobody/nothing'"),
    "untrained": (
        "./untrained",
        "the teacher './untrained' has no head trained for this task and these labels",
    ),
    "other labels": ("./labels", "the teacher './labels' has no head trained for this task and these labels"),
    "other vocabulary": ("./words", "the teacher './words' has another vocabulary than the student"),
}


@pytest.mark.parametrize(("teacher", "words"), TEACHERS.values(), ids=list(TEACHERS))
def test_teachers_from_outside(run: Run, folder: Path, teacher: str, words: str) -> None:
    for name in ("untrained", "labels", "words"):
        shutil.copytree(folder, folder.with_name(name))
    config(architectures=["BertModel"])(folder.with_name("untrained"))
    config(id2label={0: "a", 1: "b", 2: "c"})(folder.with_name("labels"))
    inner = BertWordPieceTokenizer(
        vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "x": 5}
    )
    BertTokenizerFast(tokenizer_object=inner._tokenizer).save_pretrained(folder.with_name("words"))
    run("./model", words, sets=(f"stages.prune.distill.teacher={{model: {teacher}}}",))


def test_an_untrained_model_is_no_teacher(run: Run, folder: Path) -> None:
    config(architectures=["BertModel"])(folder)
    run("./model", "the teacher './model' has no head trained", sets=("stages.prune.distill.teacher=model",))


def test_a_teacher_for_a_vocabulary_that_is_still_to_be_made(run: Run) -> None:
    model = "{config: {model_type: bert, hidden_size: 48, num_attention_heads: 4}}"
    run(
        model,
        "the teacher './model' has another vocabulary",
        sets=("stages.prune.distill={teacher: {model: ./model}}",),
    )


def test_an_untrained_model_is_no_baseline(run: Run, folder: Path) -> None:
    config(architectures=["BertModel"])(folder)
    words = "head is not trained for this task: put a `finetune` before the first `prune`, or name a trained model"
    run("./model", words, sets=("baseline=model",))


@pytest.fixture
def sliced(folder: Path) -> Path:
    """The model at ./model without two heads and most neurons of a layer."""
    model = checkpoint.load(folder)
    kept = {("encoder", 0, "attention"): SubLayer((1, 3)), ("encoder", 0, "ffn"): SubLayer((1, 2, 5))}
    checkpoint.save(slice_model(model, structure_of(model).keeping(kept)), folder)
    return folder


def test_a_sliced_model_of_another_task(run: Run, sliced: Path) -> None:
    run("./model", "this pruned model is a BertForSequenceClassification with the labels ['bad', 'good']",
        sets=("task.labels=[bad, good, fair]",))  # fmt: skip


def test_a_sliced_model_with_a_damaged_structure(run: Run, sliced: Path) -> None:
    config(compressor={"structure": {"layers": 3}})(sliced)
    run("./model", "config.json does not describe a model")
    config(compressor=["structure"])(sliced)
    run("./model", "config.json does not describe a model")


def test_a_sliced_model_with_weights_of_another_structure(run: Run, sliced: Path) -> None:
    checkpoint.save(tiny_model("bert"), sliced.with_name("dense"))
    shutil.copy(sliced.with_name("dense") / "model.safetensors", sliced)
    run("./model", "model.safetensors does not fit its config.json")


def test_plan_refuses_local_models_too(call: Call, run: Run, folder: Path) -> None:
    pickled(folder)
    run("./model", "holds pickled weights")  # writes the recipe
    refused(call, folder.parent, ["plan", "recipe.yaml"], "holds pickled weights (pytorch_model.bin)")
    refused(call, folder.parent, ["plan", "recipe.yaml", "--set", "model=./gone"], "no model folder at gone")
    sets = ["--set", "model={config: {model_type: mpnet}}"]
    refused(call, folder.parent, ["plan", "recipe.yaml", *sets], "model family 'mpnet' is not supported")


def test_a_head_that_nothing_trains(call: Call, folder: Path) -> None:
    sizes = "hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32"
    model = f"{{config: {{model_type: bert, {sizes}}}}}"
    text = RECIPE.format(model=model)
    start, end = text.index("  - prune:"), text.index("  - slice:")
    text = text[:start] + "  - prune: {method: layer-drop, from: model, drop: 1}\n" + text[end:]
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    words = "the head of pruned_fp32 would never be trained"
    refused(call, folder.parent, ["run", "recipe.yaml"], words, "put a `finetune` after the `slice`")

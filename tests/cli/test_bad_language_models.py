"""What a recipe for language modeling is refused for before its first stage."""

from pathlib import Path

import pytest

from tests.cli.refusals import Call, refused

RECIPE = """\
name: tiny
model:
  config: {model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 32}
  tokenizer: {train: word}
task:
  type: language-modeling
  dataset: {train: text.txt, validation: text.txt}
  max_length: 16
stages:
  - finetune: {id: dense, epochs: 1, batch_size: 2}
  - prune: {method: layer-drop, drop: 1}
  - slice: {}
  - export: {}
benchmark: {threads: [1], sequence_lengths: [16]}
"""
AA = "{model_type: all-attention, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, memory_length: 8}"
GPT2 = "{model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 32}"
BERT = "{model_type: bert, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (GPT2, BERT, ("language-modeling needs a decoder", "is a bert model", "gpt2")),
        ("train: word}", "train: wordpiece}", ("'wordpiece' does not serve", "word or bpe or character")),
        ("batch_size: 2", "distill: {teacher: model}", ("stages.dense.distill", "leave it out")),
        ("max_length: 16", "max_length: 64", ("asks for 64 tokens", "at most 32")),
        ("[16]", "[16], parts: [forward]", ("benchmark.parts", "no part 'forward'", "segment, prompt, step")),
        ("export: {}", "export: {memory: hidden}", ("gpt2 has no memory of hidden states", "take cache")),
        (
            "export: {}",
            "export: {}\n  - quantize: {mode: static}",
            ("mode static is for models of one graph",),
        ),
        ("export: {}", "export: {}\n  - quantize: {mode: auto}", ("mode auto is for models of one graph",)),
        ("export: {}", "export: {memory: kept}", ("stages.export.memory", "'none', 'hidden' or 'cache'")),
        (
            "  max_length",
            "  metric: accuracy\n  max_length",
            ("no metric of language-modeling", "perplexity"),
        ),
        ("  max_length", "  labels: [a, b]\n  max_length", ("language-modeling has no labels",)),
        ("{method: layer-drop, drop: 1}", "{method: speed, score: fisher}", ("needs a",)),
    ],
)
def test_a_recipe_that_cannot_work(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, words: tuple[str, ...]
) -> None:
    assert old in RECIPE
    refuse(call, tmp_path, monkeypatch, RECIPE.replace(old, new), *words)


def test_a_model_with_memory_is_not_exported_without(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.replace(GPT2, AA).replace("export: {}", "export: {memory: none}")
    refuse(call, tmp_path, monkeypatch, recipe, "all-attention was trained with a memory")


def test_a_step_after_as_many_tokens_as_there_are_positions_is_not_timed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.replace("[16]", "[32]").replace("export: {}", "export: {memory: cache}")
    refuse(call, tmp_path, monkeypatch, recipe, "benchmark.sequence_lengths asks for 33 tokens", "at most 32")


def test_a_decoder_does_no_other_task(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.csv").write_text("text,label\na cat,x\na dog,y\nthe dog,x\n", encoding="utf-8")
    recipe = RECIPE.replace("language-modeling", "text-classification").replace("text.txt", "data.csv")
    refuse(
        call,
        tmp_path,
        monkeypatch,
        recipe.replace("train: word", "train: wordpiece"),
        "text-classification needs an encoder;",
    )


def refuse(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, *words: str) -> None:
    monkeypatch.chdir(folder)
    Path("text.txt").write_text("the cat sees the dog\n" * 200, encoding="utf-8")
    Path("recipe.yaml").write_text(recipe, encoding="utf-8")
    refused(call, folder, ["run", "recipe.yaml"], *words)

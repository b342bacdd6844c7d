"""The model card: right numbers, valid front matter, code that runs, nothing private."""

import pytest
import yaml

from compressor.report.card import model_card
from compressor.report.markdown import fenced, plain, public

MANIFEST = {
    "files": {"model.onnx": {"sha256": "ab", "role": "model"}, "config.json": {"sha256": "cd"}},
    "max_length": 128,
    "labels": ["negative", "positive"],
    "sources": {"model": {"name": "microsoft/MiniLM-L6", "licence": "MIT"}, "data": {"licence": None}},
}


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter(results: dict) -> None:
    assert front(model_card(results, "pruned_int8", MANIFEST)) == {
        "library_name": "onnx",
        "pipeline_tag": "text-classification",
        "base_model": "microsoft/MiniLM-L6",
        "datasets": ["sst2"],
        "metrics": ["accuracy", "f1"],
        "tags": ["onnx", "onnxruntime", "compressed", "int8"],
    }


def test_numbers_with_their_intervals_and_conditions(results: dict) -> None:
    card = model_card(results, "pruned_int8", MANIFEST)
    expected = [
        "2.31x faster [2.25, 2.38] than dense at 0.5 points less accuracy [−0.2, 1.1].",
        "| accuracy | 90.71 % | 91.17 % | 0.46 [−0.17, 1.07] points |",
        "| F1 | 91.02 % | 91.48 % |",
        "| cpu, 2 threads, batch 1, 128 tokens | 7.97 ms [7.85, 8.13] | 8.69 ms | 2.31x [2.25, 2.38] |",
        "onnxruntime 1.31.1 on Intel(R) Xeon(R) Gold 6338",
        "15.8 MB (dense 91.0 MB), 15.4 M parameters, 31.3 % of the dense layers' weights left",
        "On 872 validation examples",
        "| base model | microsoft/MiniLM-L6 | MIT, as stated by the source |",
        "| data | sst2 | unknown: settle before publishing |",
        "Inputs are at most 128 tokens; longer ones are cut.",
        "without VNNI",
    ]
    assert [words for words in expected if words not in card] == []


def test_each_variant_says_what_was_done_to_it(results: dict) -> None:
    done = {name: model_card(results, name, MANIFEST).split("\n# ")[1] for name in results["variants"]}
    assert "MiniLM-L6, fine-tuned, exported to ONNX, for sst2." in done["dense_fp32"]
    assert "MiniLM-L6, fine-tuned, exported to ONNX, quantized (dynamic), for sst2." in done["dense_int8"]
    assert "fine-tuned, pruned (cofi), fine-tuned, sliced, exported to ONNX, for" in done["pruned_fp32"]
    assert "VNNI instructions" not in done["pruned_fp32"]
    assert "Compression does not cost" not in done["dense_fp32"]


def test_a_variant_that_missed_its_gates_says_so_first(results: dict) -> None:
    results["gates"][1] |= {"passed": False, "value": 1.8, "ci95": [1.7, 1.9]}
    card = model_card(results, "pruned_int8", MANIFEST)
    assert "> `min_speedup` failed: 1.80x [1.70, 1.90], limit ≥ 2.00x." in card
    assert card.index("did not pass all its gates") < card.index("## What was measured")
    assert "did not pass" not in model_card(results, "pruned_fp32", MANIFEST)


@pytest.mark.parametrize(
    ("task", "tag", "line"),
    [
        ("question-answering", "question-answering", 'tokenizer("Who wrote it?", "Ada wrote it."'),
        ("language-modeling", "text-generation", 'ORTModelForCausalLM.from_pretrained(".", use_cache=False)'),
        ("summarization", "summarization", 'ORTModelForSeq2SeqLM.from_pretrained(".")'),
        ("token-classification", "token-classification", "ORTModelForTokenClassification"),
        ("feature-extraction", "feature-extraction", "ORTModelForCustomTasks"),
    ],
)
def test_loading_by_task(results: dict, task: str, tag: str, line: str) -> None:
    results["task"]["type"] = task
    card = model_card(results, "pruned_int8", MANIFEST)
    assert front(card)["pipeline_tag"] == tag
    assert line in card


def test_the_examples_are_those_that_work(results: dict) -> None:
    card = model_card(results, "pruned_int8", MANIFEST | {"optimum_class": None})
    assert "optimum" not in card.split("## How to load it")[1].split("## Intended use")[0]
    assert "serve/client.py" in card
    results["task"]["type"] = "translation"
    assert "serve/client.py" not in model_card(results, "pruned_int8", MANIFEST)


def test_local_folders_stay_private(results: dict) -> None:
    results["recipe"]["model"] = "/home/ada/secret/models/minilm"
    results["recipe"]["task"]["dataset"] = {"train": "~/secret/train.csv", "validation": "/secret/dev.csv"}
    card = model_card(results, "pruned_int8", {})
    assert "secret/" not in card
    assert "base_model" not in front(card)
    assert "datasets" not in front(card)
    assert ".../minilm, fine-tuned" in card
    assert "local files | unknown: settle before publishing |" in card


def test_names_stay_text(results: dict) -> None:
    results["name"] = "a | b\n# <script>*x*</script> ```"
    results["recipe"]["name"] = "```` breaks a fence"
    card = model_card(results, "pruned_int8", MANIFEST)
    assert "\n# a \\| b # \\<script\\>\\*x\\*\\</script\\> \\`\\`\\`: pruned_int8\n" in card
    assert "\n`````yaml\n" in card
    assert front(card)["library_name"] == "onnx"


def test_the_least_a_run_can_leave(minimal: dict) -> None:
    card = model_card(minimal, "dense_fp32", {})
    assert "| perplexity | 23.41 | 23.41 |  |" in card
    assert "\nunnamed model, for unnamed data.\n" in card
    assert front(card)["metrics"] == ["perplexity"]


def test_markdown_helpers() -> None:
    assert plain("pruned_int8 _x_") == "pruned_int8 \\_x\\_"
    assert fenced("a", "") == "```\na\n```"
    assert public({"a": ["/b/c", "d/e", 3, "../f/g"]}) == {"a": [".../c", "d/e", 3, ".../g"]}

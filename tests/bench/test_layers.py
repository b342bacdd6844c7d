"""The comparison of strategies: what it runs, where it goes on, its table, plot and verdicts."""

import argparse
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import transformers
from transformers import BertTokenizerFast

from bench import layers as bench
from bench import layers_table
from compressor.files import read_json
from compressor.recipe import load_recipe
from compressor.yamlfile import Document
from tests.pipeline.tiny import write_recipe
from tests.zoo import tiny_config

REFERENCE = "0110" * 25


def answers(wrong: int) -> str:
    """Predictions of which the first `wrong` are not right."""
    return "".join(str(1 - int(digit)) if at < wrong else digit for at, digit in enumerate(REFERENCE))


def chosen(one: str, two: str, three: str, epochs: float = 0.0) -> dict[str, Any]:
    sets = {"1": one, "2": two, "3": three}
    return {
        "sets": sets,
        "epochs": epochs,
        "examples": 100 * epochs,
        "minutes": epochs,
        "command": "python it",
    }


def timing(ci95: list[float]) -> dict[str, Any]:
    cell = {"provider": "cpu", "threads": 2, "batch_size": 1, "sequence_length": 128}
    speedup = {"value": sum(ci95) / 2, "ci95": ci95, "noisy": False}
    return {
        "latency": {f"drop{count}": [cell | {"p50_ms": 20.0 - 3 * count}] for count in range(4)},
        "speedup": {f"drop{count}": [cell | speedup] for count in (1, 2, 3)},
        "conditions": [cell],
        "environment": {"cpu": "a CPU", "versions": {"onnxruntime": "1.0"}},
    }


@pytest.fixture
def state() -> dict[str, Any]:
    """Accuracy by how many of 100 are wrong."""
    wrong = {
        "none": 10,
        "5": 12,
        "0": 40,
        "4-5": 20,
        "0-1": 50,
        "0-5": 14,
        "3-4-5": 30,
        "0-1-2": 60,
        "0-3-5": 28,
    }
    return {
        "tasks": {
            "mrpc": {
                "metric": "accuracy",
                "reference": REFERENCE,
                "rows": {"train": 85, "selection": 15, "validation": 100},
            }
        },
        "chosen": {
            "mrpc 42 top": chosen("5", "4-5", "3-4-5"),
            "mrpc 42 bottom": chosen("0", "0-1", "0-1-2"),
            "mrpc 42 greedy screened": chosen("5", "0-5", "0-3-5", epochs=10.0),
            "mrpc 42 greedy full": chosen("5", "4-5", "3-4-5", epochs=45.0),
        },
        "trained": {
            f"mrpc 42 {gone}": {"prediction": answers(count), "metrics": {"accuracy": 1 - count / 100}}
            for gone, count in wrong.items()
        },
        "timed": {"a-machine": timing([1.85, 1.95])},
    }


def test_the_table_has_a_row_a_strategy_and_size(state: dict[str, Any]) -> None:
    lines = layers_table.table(state)
    assert lines[2].startswith("| mrpc | 0 | all layers | – | accuracy 90.00 % | – | – | 20.0")
    top = next(line for line in lines if "| 3 | top |" in line)
    assert "| 3-4-5 | accuracy 70.00 % | 20.00 [13.00, 28.00] | 0.00 [0.00, 0.00] |" in top
    (screened,) = [line for line in lines if "| 2 | greedy screened |" in line]
    assert screened.endswith("| 1,000 | 10.0 |")
    assert "| −6.00 [−11.00, −2.00] |" in screened
    assert len([line for line in lines if line.startswith("| mrpc")]) == 1 + 3 * 4


def test_verdicts_say_what_holds_and_what_does_not(state: dict[str, Any]) -> None:
    found = layers_table.verdicts(state)
    assert [line for line in found if "DOES NOT" in line or "not measured" in line] == []
    assert len(found) == 3 + 3 + 2 + 1
    state["chosen"]["mrpc 42 greedy full"] = chosen("0", "4-5", "0-1-2", epochs=30.0)
    state["timed"]["a-machine"] = timing([1.75, 1.85])
    wrong = [line for line in layers_table.verdicts(state) if "DOES NOT" in line]
    assert [line.split(": ", 2)[1] for line in wrong] == [
        "mrpc, 1 dropped",
        "mrpc, 3 dropped",
        "mrpc, seed 42",
        "mrpc, seed 42",
        "three of six layers dropped run at least 1.8x faster",
    ]
    assert "(better: top by" in wrong[0]
    assert "0-3-5 screened, 0-1-2 full, 1 of 3 layers equal" in wrong[2]
    assert "on 33% of" in wrong[3]


def test_what_is_missing_is_not_judged(state: dict[str, Any]) -> None:
    del state["chosen"]["mrpc 42 greedy full"]
    state["timed"].clear()
    assert "| – | – |" in layers_table.table(state)[2]
    found = layers_table.verdicts(state)
    assert {line.split(":")[0] for line in found} == {"- not measured"}


def test_seeds_are_averaged_and_paired(state: dict[str, Any]) -> None:
    for name in list(state["trained"]):
        gone = name.rpartition(" ")[2]
        state["trained"][f"mrpc 43 {gone}"] = {"prediction": answers(10), "metrics": {}}
    state["chosen"]["mrpc 43 bottom"] = chosen("0", "0-1", "0-1-2")
    lost = layers_table.loss(state, "mrpc", ("none", 0), ("bottom", 1))
    assert lost is not None
    assert lost[0] == pytest.approx((0.30 + 0.0) / 2)
    only = layers_table.loss(state, "mrpc", ("top", 1), ("bottom", 1))
    assert only is not None
    assert only[0] == pytest.approx(0.28)


def test_the_plot_is_drawn_and_labelled(state: dict[str, Any], tmp_path: Path) -> None:
    layers_table.save_plot(state, tmp_path / "plot.svg")
    texts = [e.text for e in ElementTree.parse(tmp_path / "plot.svg").iter() if e.tag.endswith("text")]
    assert "greedy full (4k examples)" in texts
    assert "top" in texts
    assert "1.90x" in texts


def options(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    given = {
        "task": "mrpc",
        "model": "./m",
        "train": "t.tsv",
        "validation": "v.tsv",
        "rows": None,
        "precision": "fp32",
        "seeds": [42],
    }
    return argparse.Namespace(**given | {"runs": tmp_path, "output": tmp_path / "out.json"} | changes)


@pytest.mark.parametrize("strategy", [*bench.ONE_SHOT, *bench.SEARCHES])
def test_every_recipe_is_valid(strategy: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    given = bench.recipe(options(tmp_path), 42, bench.pruning("sst2", strategy))
    path.write_text(bench.yaml.safe_dump(given), encoding="utf-8")
    assert isinstance(Document(path, given).value, dict)
    load_recipe(path)


def test_equal_sets_are_trained_once_and_what_is_there_is_not_made_again(
    state: dict[str, Any], tmp_path: Path
) -> None:
    del state["trained"]["mrpc 42 4-5"]
    todo = [(kind, name) for kind, name, _ in bench.steps(options(tmp_path), state)]
    assert ("trained", "mrpc 42 4-5") in todo
    assert [name for kind, name in todo if kind == "trained"] == ["mrpc 42 4-5"]
    assert ("chosen", "mrpc 42 top") not in todo
    assert ("chosen", "mrpc 42 angular") in todo
    assert [kind for kind, _ in todo if kind == "timed"] == []  # no graphs yet


@pytest.mark.slow
def test_from_data_to_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Some strategies on a tiny model, in two calls; the second makes what the first had no time for."""
    write_recipe(tmp_path, rows=80)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "red",
        "green",
        "blue",
        "one",
        "two",
        "three",
        "and",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config = tiny_config("bert", num_hidden_layers=6, vocab_size=len(words), max_position_embeddings=128)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "m")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "m")
    monkeypatch.setattr(bench, "ONE_SHOT", ("top", "contribution"))
    monkeypatch.setattr(bench, "SEARCHES", ("greedy screened",))
    monkeypatch.setattr(bench, "TASKS", {"mrpc": {"metric": "f1", "rows": None, "epochs": 1}})
    monkeypatch.setattr(bench, "SLOWEST", dict.fromkeys(bench.SLOWEST, 0.0))
    monkeypatch.setattr(bench, "THREADS", 1)
    monkeypatch.setattr(bench, "LENGTHS", (128,))
    monkeypatch.setattr(bench, "measure", lambda *a, **k: bench_measure(*a, **k, seconds=0.05, processes=2))
    bench_measure = bench_measure_of()
    output = tmp_path / "out.json"
    command = [
        "--model",
        str(tmp_path / "m"),
        "--train",
        str(tmp_path / "train.csv"),
        "--output",
        str(output),
    ]
    command += ["--validation", str(tmp_path / "validation.csv"), "--runs", str(tmp_path / "runs")]
    for minutes in (0.0, 20.0):
        monkeypatch.setattr(sys, "argv", ["bench/layers.py", *command, "--budget", str(minutes)])
        bench.main()
        printed = capsys.readouterr().out
        assert ("missing: nothing" in printed) == (minutes > 0)
    found = read_json(output)
    assert found["chosen"]["mrpc 42 top"]["sets"] == {"1": "5", "2": "4-5", "3": "3-4-5"}
    assert found["chosen"]["mrpc 42 greedy screened"]["examples"] == round(2.125 * 68)
    assert "not measured" not in layers_table.table(found)[3]
    assert len(found["timed"]) == 1


def bench_measure_of() -> Any:
    from compressor.benchmark.harness import measure

    return measure

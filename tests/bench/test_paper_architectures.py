"""The published networks: rebuilt exactly, and a tiny one taken through measuring, table and plot."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from bench import paper_architectures as bench
from bench import paper_table
from compressor.errors import RunError
from compressor.files import read_json

DATA = read_json(bench.DATA)
NAMES = [network["name"] for network in DATA["networks"]]
TINY = {
    "bases": {
        "bert-large": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "vocab_size": 60,
        }
    },
    "tasks": {"mnli": {"head": "text-classification", "labels": 3}},
    "papers": {
        "tiny": {
            "title": "A Tiny Paper",
            "source": "its README",
            "headline": "none",
            "threads": 1,
            "speed": {
                "gpu": "RTX 3090",
                "framework": "PyTorch",
                "precision": "fp32",
                "batch_size": 128,
                "padded_to": {"mnli": 128},
                "what": "dense time by its own",
                "over": "bert-base",
                "dense_speedups": {"bert-large": 0.25},
            },
        }
    },
    "networks": [
        {
            "name": "tiny-1",
            "paper": "tiny",
            "source": "row 1",
            "note": "the README prints 9x",
            "base": "bert-large",
            "task": "mnli",
            "speedup": 0.75,
            "metrics": {"accuracy": 83.709},
            "nonzero_percent": 30.5,
            "parameters": 25_065,
            "heads": [1, 2],
            "ffn": [10, 20],
        }
    ],
}


def by_name(name: str) -> dict[str, Any]:
    return next(network for network in DATA["networks"] if network["name"] == name)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a really measured cell of the tiny network leaves."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    bench.run(TINY, options(lengths=(8,)), 10, path)
    return path


def options(**changes: Any) -> bench.Options:
    keys = {"networks": ["tiny-1"], "lengths": (8, 16), "seconds": 0.05, "processes": 2}
    return bench.Options(**{**keys, **changes})


def test_there_are_27_and_one_of_cofi_and_the_headlines_are_first() -> None:
    assert len(set(NAMES)) == len(NAMES) == 28
    assert [n["paper"] for n in DATA["networks"]].count("block-movement-pruning") == 27
    ordered = [n["name"] for n in bench.networks_of(DATA)]
    assert ordered[:2] == ["squadv1-base-filled-87.71", "cofi-mnli-s95"]
    assert ordered[2:4] == NAMES[:2]


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuilt_network_has_exactly_the_published_parameters(name: str) -> None:
    with torch.device("meta"):
        bench.rebuild(DATA, by_name(name))  # raises where they differ


@pytest.mark.parametrize("name", NAMES)
def test_its_density_is_the_published_one(name: str) -> None:
    network = by_name(name)
    assert 100 * bench.structure(DATA, network).density() == pytest.approx(
        network["sliced_percent"], abs=0.01
    )


def test_dense_bases_are_the_real_berts() -> None:
    expected = {"squadv1-base-filled-87.71": 108_893_186, "mnli-base-filled-83.71": 109_484_547}
    with torch.device("meta"):
        for name, parameters in expected.items():
            assert sum(p.numel() for p in bench.dense_model(DATA, by_name(name)).parameters()) == parameters


def test_a_wrong_shape_is_refused() -> None:
    network = by_name("squadv1-base-filled-87.71")
    wrong = {**network, "ffn": [network["ffn"][0] + 1, *network["ffn"][1:]]}
    with torch.device("meta"), pytest.raises(RunError, match=r"46,163,096 parameters .* 46,161,559"):
        bench.rebuild(DATA, wrong)


def test_published_figures_are_the_honest_ones() -> None:
    struct = by_name("squadv1-base-struct-84.68")
    assert next(iter(struct["metrics"].items())) == ("f1", 84.678)
    assert struct["metrics"]["f1_before_slicing"] == 85.516
    assert by_name("squadv1-base-filled-87.71")["speedup"] == 2.4356
    speed = DATA["papers"]["block-movement-pruning"]["speed"]
    assert (speed["gpu"], speed["framework"], speed["batch_size"]) == ("RTX 3090", "PyTorch", 128)
    over_large = by_name("squadv1-large-filled-91.03")["speedup"] / speed["dense_speedups"]["bert-large"]
    assert over_large == pytest.approx(2.863, abs=0.001)


def test_a_network_may_lack_sub_layers_and_hidden_width() -> None:
    tiny = {**TINY["networks"][0], "heads": [None, 2], "ffn": [0, 20], "hidden": 24}
    attention, ffn = 4 * 24 * 16 + 3 * 16 + 24, 2 * 24 * 20 + 20 + 24
    embeddings, head = 24 * (60 + 512 + 2 + 2), 24 * 32 + 32 + 32 * 3 + 3
    norms, constant = 3 * 2 * 24, 24
    expected = embeddings + attention + ffn + norms + constant + head
    with torch.device("meta"):
        bench.rebuild(TINY, {**tiny, "parameters": expected})


def test_a_measured_cell_is_kept(output: Path) -> None:
    state = read_json(output)
    entry = state["networks"]["tiny-1"]
    (cell,) = entry["cells"]
    assert entry["parameters"] == 25_065
    assert entry["sliced_density"] == pytest.approx((4 * 8 * 3 + 2 * 30) * 32 / (2 * 32 * (4 * 32 + 2 * 48)))
    assert set(cell["latency"]) == {"dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8"}
    assert set(cell["speedup"]) == {"dense_int8", "pruned_fp32", "pruned_int8", "int8_over_int8"}
    ratio = cell["latency"]["dense_fp32"]["p50_ms"] / cell["latency"]["pruned_fp32"]["p50_ms"]
    assert cell["speedup"]["pruned_fp32"]["value"] == pytest.approx(ratio, rel=0.5)
    assert entry["file_bytes"]["pruned_fp32"] < entry["file_bytes"]["dense_fp32"]
    assert entry["published"]["speedup_over_own_base"] == 3.0
    assert "heads" not in entry["published"]


def test_it_goes_on_where_it_stopped(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "files", lambda *_: pytest.fail("measured again"))
    before = read_json(output)["networks"]
    state = bench.run(TINY, options(lengths=(8,)), 10, output)
    assert state["missing"] == []
    state = bench.run(TINY, options(), 0, output)
    assert state["missing"] == ["tiny-1 at 16 tokens"]
    assert read_json(output)["networks"] == before


def test_less_care_than_asked_for_is_not_enough(output: Path) -> None:
    state = read_json(output)
    assert [length for _, length, _ in bench.lacking(TINY, state, options())] == [16]
    assert [length for _, length, _ in bench.lacking(TINY, state, options(processes=3))] == [8, 16]
    assert options().effort(headline=True)["processes"] == 8


def test_another_shape_is_measured_anew(output: Path) -> None:
    changed = {**TINY, "networks": [{**TINY["networks"][0], "parameters": 1}]}
    assert len(list(bench.lacking(changed, read_json(output), options(lengths=(8,))))) == 1


def test_the_table_shows_both(output: Path) -> None:
    state = read_json(output)
    head, _, row, *rest = paper_table.table(state).splitlines()
    assert head.count("|") == row.count("|")
    value = state["networks"]["tiny-1"]["cells"][0]["speedup"]["pruned_int8"]["value"]
    assert f"| {value:.2f}x [" in row
    assert "| mnli accuracy 83.71 | 34.82 % (30.50 %) | 25,065 | 3.00x (0.75x over bert-base) |" in row
    assert any("RTX 3090, batch 128" in line for line in rest)
    assert "- tiny-1: the README prints 9x." in rest


def test_the_plot_is_drawn_and_labelled(output: Path, tmp_path: Path) -> None:
    paper_table.save_plot(read_json(output), tmp_path / "plot.svg")
    texts = [e.text for e in ElementTree.parse(tmp_path / "plot.svg").iter() if e.tag.endswith("text")]
    assert "8 tokens" in texts
    assert "linear weights kept (% of the dense base)" in texts
    assert "onnxruntime int8, batch 1, BERT-large" in texts
    assert "1 / sliced density" in texts

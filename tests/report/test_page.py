"""The report page: complete, escaped, self-contained, and whole where a run leaves little."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from compressor.report import plots
from compressor.report.anatomy import kept_summary, structures_of
from compressor.report.fields import entry_at, main_cell
from compressor.report.page import latency_rows, write_report
from compressor.report.verdict import drift, gentler

HOSTILE = """<script>alert("1")</script> $x_1$ -->]]>&'"""
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Collects what a browser would show and load, and checks that tags nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.loads += [values[k] for k in ("src", "href", "xlink:href", "data", "action") if k in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(results: dict, folder: Path) -> str:
    path = write_report(results, folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_every_number_is_on_the_page(results: dict, tmp_path: Path) -> None:
    text = Reader(report(results, tmp_path)).text
    expected = [
        "2.31x faster [2.25, 2.38] than dense at 0.5 points less accuracy",
        "accuracy 90.71 % dense 91.17 % p50 latency 7.97 ms dense 18.4 ms file 15.8 MB dense 91.0 MB",
        "dense_fp32 baseline",
        "pruned_int8 final 90.71 % 0.46 [−0.17, 1.07] 2.31x [2.25, 2.38] 7.97 ms 15.8 MB 15.4 M 31.3 %",
        "max_metric_drop ≤ 1.00 points 0.46 points [−0.17, 1.07] ✓ passed pruned_int8",
        "accuracy on the same examples: largest class 50.92 %, bag of words 80.16 %.",
        "pruning 1.71x 1.43x 53 % 0.34 [−0.29, 0.95]",
        "cpu, 2 threads, batch 8, 384 tokens",
        "encoder: 5 of 6 layers, 18 of 72 attention heads, 1,844 of 9,216 FFN neurons; hidden width 352",
        "teacher finetune 23 min 32 s (cached)",
        "avx2, avx512f, avx512_vnni",
        "onnxruntime 1.31.1",
        "compressor run recipes/minilm_sst2_cofi.yaml --set seed=42",
        "method: cofi",
        "validation examples 872",
        "3.1e-06 99.66 % 64",
    ]
    assert [words for words in expected if words not in text] == []


def test_a_row_for_every_variant_in_every_cell(results: dict) -> None:
    found = latency_rows(results)
    assert [len(rows) for _, rows in found] == [4, 4, 4, 4]
    assert found[0][1][3] == [
        "pruned_int8",
        "7.97 ms",
        "[7.85, 8.13]",
        "8.69 ms",
        "4.1 %",
        "1,240",
        "212 ms",
        "2.31x [2.25, 2.38]",
    ]


def test_nothing_is_loaded_and_nothing_is_run(results: dict, tmp_path: Path) -> None:
    page = report(results, tmp_path)
    reader = Reader(page)
    assert all(target.startswith("#") for target in reader.loads)
    assert {target[1:] for target in reader.loads} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert not re.search(r"@import|url\((?!#)|<script|\son\w+=", page)


def test_names_are_text_and_never_markup(results: dict, tmp_path: Path) -> None:
    results["name"] = HOSTILE
    results["variants"] = {f"{HOSTILE}{n}": v for n, v in results["variants"].items()}
    results["baseline"], results["final"] = HOSTILE + "dense_fp32", HOSTILE + "pruned_int8"
    results["gates"][0] |= {"variant": results["final"], "detail": HOSTILE}
    results["training"][0]["stage"] = HOSTILE
    results["environment"]["versions"][HOSTILE] = HOSTILE
    page = report(results, tmp_path)
    assert "<script" not in page
    assert Reader(page).text.count("<script>") > 10


def test_figures_are_drawn_and_follow_the_colour_scheme(results: dict) -> None:
    for draw in (
        plots.accuracy_against_latency,
        plots.latency_curves,
        plots.share_bars,
        plots.training_curves,
    ):
        svg = draw(results)
        assert svg.startswith('<svg class="plot" role="img"')
        assert "var(--accent)" in svg
        assert not re.search(r"#0[1-5]0[1-5]0[1-5]\b", svg)
    assert all(name in plots.accuracy_against_latency(results) for name in results["variants"])


def test_the_same_results_give_the_same_bytes(results: dict, tmp_path: Path) -> None:
    assert report(results, tmp_path) == report(results, tmp_path)


def test_other_processes_give_the_same_bytes(results: dict, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results))
    code = (
        "import json, pathlib, sys\n"
        "from compressor.report.page import write_report\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "write_report(json.loads((folder / 'results.json').read_text()), folder)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, cwd=root)
    first = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report(results, tmp_path) == first


def test_the_dense_model_alone(minimal: dict, tmp_path: Path) -> None:
    reader = Reader(report(minimal, tmp_path))
    assert "Dense model only, perplexity 23.41" in reader.text
    assert "dense_fp32 baseline 23.41 – – –" in reader.text
    assert "p50 latency" not in reader.text
    assert "svg" not in reader.tags
    for absent in ("Gates", "Share of pruning", "Latency by", "What is left", "Training", "Stages", "Other"):
        assert absent not in reader.text


def test_a_run_without_int8(results: dict, tmp_path: Path) -> None:
    del results["variants"]["dense_int8"], results["variants"]["pruned_int8"]
    results["final"] = "pruned_fp32"
    results["training"] = []
    text = Reader(report(results, tmp_path)).text
    assert "1.71x faster [1.67, 1.76] than dense at 0.3 points less accuracy" in text
    assert "Share of pruning" not in text
    assert "Training" not in text


def test_a_perplexity_is_no_percentage(perplexity: dict, tmp_path: Path) -> None:
    text = Reader(report(perplexity, tmp_path)).text
    assert "added perplexity" in text
    assert "pruned_int8 final 23.55 0.14 [0.10, 0.19]" in text
    assert "Towards the bottom left is better" in text


def test_non_zero_density_is_shown_where_it_says_more(results: dict, tmp_path: Path) -> None:
    assert "non-zero" not in Reader(report(results, tmp_path)).text
    results["variants"]["pruned_fp32"]["nonzero_density"] = 0.1234
    assert "31.3 % 12.3 %" in Reader(report(results, tmp_path)).text


def test_the_sizes_of_a_family_are_joined_and_no_accuracy_is_above_one(family: dict) -> None:
    for made in family["variants"].values():
        made["metric"]["value"] = 1.0
        made.pop("metric_drop", None)
    svg = plots.accuracy_against_latency(family)
    assert svg.count("stroke-dasharray") >= 1
    assert ">100<" in svg.replace("\n", "").replace(" ", "")
    assert ">102<" not in svg.replace("\n", "").replace(" ", "")


def test_a_noisy_speedup_says_so(results: dict, tmp_path: Path) -> None:
    results["variants"]["pruned_int8"]["speedup"][0]["noisy"] = True
    assert "2.31x [2.25, 2.38] noisy" in Reader(report(results, tmp_path)).text


def test_one_length_gives_curves_by_batch_size_and_one_cell_none(results: dict) -> None:
    for variant in results["variants"].values():
        variant["latency"] = [e for e in variant["latency"] if e["sequence_length"] == 128]
    assert "batch size" in plots.latency_curves(results)
    for variant in results["variants"].values():
        variant["latency"] = variant["latency"][:1]
    assert plots.latency_curves(results) == ""


def test_structures_are_told_apart_and_summed_up(results: dict) -> None:
    ((names, structure),) = structures_of(results)
    assert names == ["pruned_fp32", "pruned_int8"]
    assert kept_summary(structure).startswith("encoder: 5 of 6 layers, 18 of 72 attention heads, ")


def test_what_is_left_is_marked_in_the_picture(results: dict, tmp_path: Path) -> None:
    text = Reader(report(results, tmp_path)).text
    for words in ("absent", "constant", "layer removed", "704 / 1,536", "encoder 5"):
        assert words in text


def test_what_quantization_tried(results: dict, tmp_path: Path) -> None:
    rows = [
        {"scheme": "fp32", "speedup": 1.0, "ci95": [1.0, 1.0], "metric": 0.9, "admitted": False},
        {
            "scheme": "dynamic-per-tensor",
            "speedup": 0.9,
            "ci95": [0.8, 1.1],
            "admitted": False,
            "why": "not faster",
        },
        {
            "scheme": "static",
            "speedup": 2.0,
            "ci95": [1.9, 2.1],
            "metric": 0.89,
            "drop": 0.01,
            "admitted": True,
        },
    ]
    results["variants"]["pruned_int8"]["quantization"] = {"scheme": {}, "tried": rows}
    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "Quantization: what was tried" in page
    assert "dynamic per tensor" in page
    assert "not faster" in page
    assert "2.00x [1.90, 2.10]" in page


def aimed(kind: str, value: float, **more: object) -> dict:
    measured = {"ms": 9.1, "speedup": 2.03, "ci95": [2.0, 2.05], "noisy": False}
    curve = [{"speedup": 1.5, "cost": 0.01}, {"speedup": 2, "cost": 0.04}]
    return {"asked": {kind: value}, "measured": measured, "divergence": 0.034, "curve": curve, **more}


def test_what_was_asked_and_what_the_search_found_on_its_way(results: dict, tmp_path: Path) -> None:
    speed = aimed(
        "speedup", 2.0, recovered=0.021, precision="int8", attempts=[[9, 9.3, 0.98], [8.9, 9.1, 1.01]]
    )
    loss = aimed(
        "max_metric_drop", 0.01, tried=[{"speedup": 3, "drop": 0.04}, {"speedup": 1.7, "drop": 0.01}]
    )
    results["pruning"] = [{"stage": "prune", "members": {"2x": speed, "d1": loss}}]
    text = Reader(report(results, tmp_path)).text
    assert "What was aimed at" in text
    assert "2x 2x 2.03x, 9.1 ms int8 0.021 2" in text
    assert "d1 at most 1 points lost 2.03x, 9.1 ms fp32 0.034 2" in text
    assert "points lost, selection split" in text
    results["pruning"] = []
    assert "What was aimed at" not in Reader(report(results, tmp_path)).text


def test_a_machine_that_was_another_one_while_speeds_were_aimed_at(results: dict, tmp_path: Path) -> None:
    now = entry_at(results["variants"][results["baseline"]]["latency"], main_cell(results))["p50_ms"]
    for then, said in ((now, False), (1.05 * now, False), (1.3 * now, True), (now / 1.3, True)):
        found = aimed("speedup", 2.0)
        found["measured"]["ms"] = then / found["measured"]["speedup"]
        results["pruning"] = [{"stage": "prune", "members": {"2x": found}}]
        text = Reader(report(results, tmp_path)).text
        assert (
            f"The dense model took {then:.3g} ms while speeds were aimed at, {now:.3g} ms" in text
        ) is said
        assert (drift(results) is not None) is said
    results["recipe"] = {"target": {"speedup": 2, "at": {"batch_size": 8}}}
    assert drift(results) is None  # of another cell than the page's


def test_processes_that_were_set_aside_are_told(results: dict, tmp_path: Path) -> None:
    said = "2 of 18 measuring processes were set aside"
    for aside, told in (([2, 0], True), ([0, 0], False)):
        results["conditions"] = [{"processes": 8, "set_aside": number} for number in aside]
        assert (said in Reader(report(results, tmp_path)).text) is told


def test_what_lost_too_much_at_once_is_told_the_gradual_way(results: dict, tmp_path: Path) -> None:
    member = results["final"].rpartition("_")[0]
    results["pruning"] = [{"stage": "fast", "members": {member: aimed("speedup", 2.0)}}]
    made = {"limit": 0.01, "value": 0.02, "ci95": None, "inconclusive": False, "variant": results["final"]}
    results["gates"] = [made | {"name": "max_metric_drop", "passed": False}]
    for steps, passed, said in (
        ({}, False, True),
        ({"steps": 1}, False, True),
        ({"steps": 3}, False, False),
        ({}, True, False),
    ):
        results["recipe"] = {"stages": [{"prune": {"id": "fast", "method": "speed", **steps}}, {"slice": {}}]}
        results["gates"][0]["passed"] = passed
        assert (gentler(results) is not None) is said
        assert ("--set stages.fast.steps=3" in Reader(report(results, tmp_path)).text) is said


def test_the_order_in_which_layers_went(results: dict, tmp_path: Path) -> None:
    """Of a family the longest search, which the others are beginnings of."""
    one = {"order": [4], "scores": [0.9]}
    two = {"order": [4, 2], "scores": [0.9, 0.885]}
    results["pruning"] = [
        {"stage": "prune", "members": {"drop1": one, "drop2": two, "other": {"dropped": [1]}}}
    ]
    text = Reader(report(results, tmp_path)).text
    assert "round layer score without it 1 4 0.900 2 2 0.885" in text

"""Many runs on one page."""

import copy
from pathlib import Path

from compressor.report.compare import write_comparison
from compressor.report.side_by_side import caveats, common_cell, comparison_rows


def other(results: dict, **changes: object) -> dict:
    return copy.deepcopy(results) | {"name": "other-run", **changes}


def test_rows_of_all_runs_in_order(results: dict) -> None:
    rows = comparison_rows([results, other(results, gates=[])])
    assert [row.run for row in rows] == ["minilm-sst2-cofi", "", "", "", "other-run", "", "", ""]
    assert [row.state for row in rows if row.run] == ["passed", "none"]
    assert rows[3].variant.speedup == "2.31x [2.25, 2.38]"


def test_times_come_from_a_cell_all_runs_share(results: dict) -> None:
    second = other(results)
    for variant in second["variants"].values():
        variant["latency"], variant["speedup"] = variant["latency"][2:], variant.get("speedup", [])[2:]
    cell = common_cell([results, second])
    assert cell is not None
    assert (cell.batch_size, cell.sequence_length) == (8, 128)
    rows = comparison_rows([results, second])
    assert {rows[3].variant.p50, rows[7].variant.p50} == {"55.2 ms"}
    for variant in second["variants"].values():
        variant["latency"] = []
    assert common_cell([results, second]) is None


def test_caveats(results: dict) -> None:
    assert caveats([results, other(results)]) == []
    second = other(results, environment={"cpu": "another"}, task={"dataset": "mrpc"})
    second["variants"]["dense_fp32"]["sha256"] = "other"
    for variant in second["variants"].values():
        variant["latency"] = []
    notes = caveats([results, second])
    assert len(notes) == 4
    assert notes[0] == (
        "Note: these runs were measured on different machines, so compare speedups and not milliseconds."
    )


def test_the_page(results: dict, tmp_path: Path) -> None:
    second = other(results, name="<script>other</script>", environment={"cpu": "another"})
    target = tmp_path / "deep" / "compare.html"
    assert write_comparison([results, second], target) == target
    page = target.read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;other") >= 3  # headings, table, plot
    assert page.count("2.31x [2.25, 2.38]") == 2
    assert "compare speedups and not milliseconds" in page
    assert 'class="plot"' in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_one_run_without_timings(minimal: dict, tmp_path: Path) -> None:
    page = write_comparison([minimal], tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "gpt2-dense" in page
    assert "23.41" in page
    assert "<svg" not in page


def test_no_plot_of_two_metrics(results: dict, minimal: dict, tmp_path: Path) -> None:
    minimal["variants"]["dense_fp32"]["latency"] = results["variants"]["dense_fp32"]["latency"]
    page = write_comparison([results, minimal], tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "by different metrics" in page

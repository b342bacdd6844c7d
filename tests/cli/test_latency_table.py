"""`bench --table`: what it shows, stores and refuses. A stopwatch that reads the graphs stands in for the clock."""

import json

import pytest

from compressor.views import latency_table
from tests.benchmark.stopwatch import Stopwatch
from tests.zoo import HEADS, HIDDEN


@pytest.fixture
def stopwatch(monkeypatch, tmp_path):
    made = Stopwatch(head_size=HIDDEN // HEADS)
    monkeypatch.setattr(latency_table, "harness_timer", lambda *_: made)
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return made


def test_it_shows_draws_and_stores(call, tiny, stopwatch, tmp_path):
    said = call(
        "bench",
        "--table",
        tiny,
        "--budget",
        600,
        "--seq",
        "16,32",
        "--threads",
        1,
        "--json",
        "new/table.json",
    )
    assert said.code == 0, said.err
    for length in (16, 32):
        assert f"bert, 3 layers of 48: fp32, cpu, 1 thread, batch 1, {length} tokens" in said.rows
    assert "4 0.700 ms 100 %" in said.rows
    assert "absent 0 ms 0 %" in said.rows
    assert any(row.startswith("dense ") and row.endswith(" 0.0 %") for row in said.rows)
    assert (
        len(list((tmp_path / "cache" / "latency-tables").glob("bert-3x48x4x40-fp32-cpu-t1-b1-s*.json"))) == 2
    )

    page = (tmp_path / "latency-table.html").read_text(encoding="utf-8")
    assert page.count('class="plot"') == 2
    assert "<script" not in page
    figures = json.loads((tmp_path / "new" / "table.json").read_text(encoding="utf-8"))
    assert [made["setting"]["cell"]["sequence_length"] for made in figures["tables"]] == [16, 32]
    assert figures["environment"]["cpu"]

    timed = len(stopwatch.asked)
    again = call("bench", "--table", tiny / "config.json", "--budget", 600, "--seq", 16, "--threads", 1)
    assert again.code == 0, again.err
    assert len(stopwatch.asked) == timed
    assert call("bench", "--table", tiny, "--budget", 600, "--seq", 16, "--threads", 1, "--fresh").code == 0
    assert len(stopwatch.asked) > timed


def test_int8_tables_time_what_quantize_makes(call, tiny, stopwatch):
    said = call("bench", "--table", tiny, "--budget", 600, "--seq", 16, "--threads", 1, "--int8")
    assert said.code == 0, said.err
    assert "bert, 3 layers of 48: int8, cpu, 1 thread, batch 1, 16 tokens" in said.rows
    assert "MatMulInteger" in stopwatch.operators
    assert "Gemm" not in stopwatch.operators


def test_a_table_that_does_not_fit_is_a_failed_verification(call, tiny, stopwatch, tmp_path):
    stopwatch.strange = 1.4
    said = call("bench", "--table", tiny, "--budget", 600, "--seq", 16, "--threads", 1)
    assert said.code == 3
    assert "the latency table of a bert in fp32 on cpu, 1 thread, batch 1, 16 tokens is refused" in said.err
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "latency-table.html").exists()


def test_what_cannot_be_is_said_before_anything_is_timed(call, tiny, exported, stopwatch, tmp_path):
    for arguments, says in (
        (["--table", tmp_path], "is not a model folder or its config.json"),
        (["--table", exported / "model.onnx"], "is a file; give a model folder or its config.json"),
        (["--table", tiny, "--seq", 65], "reads at most 64"),
        (["--table", tiny, "--threads", 4096], "4096 threads are to be timed"),
        (["--table", tiny, "--baseline", exported], "takes no --baseline"),
        (["--table", tiny, "--page", tmp_path], "is a folder; name the file"),
        ([exported, "--int8"], "go with --table"),
    ):
        said = call("bench", "--threads", 1, *arguments)
        assert said.code == 2, said
        assert says in said.err
    assert stopwatch.asked == []

"""The console tables, as an 80 or 100 column terminal shows them."""

import subprocess
import sys
from pathlib import Path

from rich.console import Console, RenderableType

from compressor.report.console import compare_table, inspect_table, summary_table


def shown(table: RenderableType, width: int = 80) -> str:
    console = Console(width=width, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def rows_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_summary(results: dict) -> None:
    rows = rows_of(shown(summary_table(results), 100))
    assert rows[0].startswith("2.31x faster [2.25, 2.38] than dense at 0.5 points less accuracy")
    assert "dense_fp32 91.17 % – – 18.4 ms 91.0 MB" in rows
    assert "pruned_int8 90.71 % 0.46 [−0.17, 1.07] 2.31x [2.25, 2.38] 7.97 ms 15.8 MB" in rows
    assert "min_speedup ≥ 2.00x 2.31x [2.25, 2.38] pruned_int8 passed" in rows
    assert "latency and speedup: cpu, 2 threads, batch 1, 128 tokens; intervals are 95 %" in rows


def test_the_summary_fits_a_narrow_terminal(results: dict) -> None:
    rows = rows_of(shown(summary_table(results)))
    assert "pruned_int8 90.71 % 0.46 [−0.17, 1.07] 2.31x [2.25, 2.38] 7.97 ms 15.8 MB" in rows
    assert "max_metric_drop ≤ 1.00 points 0.46 points [−0.17, 1.07] pruned_int8 passed" in rows


def test_summary_of_the_dense_model_alone(minimal: dict) -> None:
    rows = rows_of(shown(summary_table(minimal)))
    assert "dense_fp32 23.41 – – – –" in rows
    assert not any("gate " in row for row in rows)


def test_names_are_no_console_markup(results: dict) -> None:
    results["variants"]["[red]x[/red]_fp32"] = results["variants"]["pruned_fp32"]
    assert "[red]x[/red]_fp32" in shown(summary_table(results), 120)


def test_inspect(results: dict) -> None:
    structure = results["variants"]["pruned_int8"]["structure"]
    operators = {"Add": 3, "MatMul": 9}
    info = {"name": "artifact", "parameters": 15_402_114, "file_bytes": 15_794_871, "operators": operators}
    rows = rows_of(shown(inspect_table(structure, info)))
    assert rows[0] == "artifact"
    assert "0 ███░░░░░░░░░ 3 of 12 ██████░░░░░░ 704 of 1,536" in rows
    assert "2 absent constant" in rows
    assert "4 layer removed layer removed" in rows
    assert "5 ████░░░░░░░░ 4 of 12 █░░░░░░░░░░░ 40 of 1,536" in rows
    assert "hidden width 352 of 384" in rows
    assert "parameters 15.4 M" in rows
    assert "size 15.8 MB" in rows
    assert "operators MatMul 9, Add 3" in rows


def test_inspect_knows_the_structure_alone(results: dict) -> None:
    rows = rows_of(shown(inspect_table(results["variants"]["dense_fp32"]["structure"], {})))
    assert "0 ████████████ 12 of 12 ████████████ 1,536 of 1,536" in rows
    assert "density of the layers 100.0 %" in rows


def test_compare(results: dict) -> None:
    rows = rows_of(shown(compare_table([results]), 100))
    assert "minilm-sst2-cofi passed" in rows
    assert "pruned_int8 90.71 % 0.46 [−0.17, 1.07] 2.31x [2.25, 2.38] 7.97 ms 15.8 MB" in rows
    assert not any(row.startswith("Note") for row in rows)


def test_the_console_needs_no_plotting_library() -> None:
    code = "import sys, compressor.report.console; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

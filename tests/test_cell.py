"""The point of the latency grid that all parts of the program share."""

import pytest

from compressor.cell import DATA, Cell


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (Cell("cpu", 2, 1, 128), "cpu, 2 threads, batch 1, 128 tokens"),
        (Cell("cpu", 1, 8, DATA), "cpu, 1 thread, batch 8, real lengths"),
        (Cell("cpu", 1, 1, 128, "next_token"), "cpu, 1 thread, batch 1, 128 tokens, next_token"),
        (Cell("cuda", 4, 1, 128), "cuda, batch 1, 128 tokens"),
    ],
)
def test_a_cell_in_words(cell, words):
    assert str(cell) == words


def test_a_cell_names_its_columns_and_is_found_again_in_its_rows():
    cell = Cell("cpu", 2, 1, DATA)
    assert cell.slug == "cpu-t2-b1-sdata-forward"
    row = {
        "provider": "cpu",
        "threads": 2,
        "batch_size": 1,
        "sequence_length": "data",
        "part": "forward",
    }
    assert cell.keys() == row
    assert Cell.of(row | {"p50_ms": 3.0}) == cell

"""The `benchmark` block of a recipe."""

import pytest
from pydantic import ValidationError

from compressor.benchmark.schema import BenchmarkKeys
from compressor.cell import Cell


def test_the_grid_is_in_the_order_written():
    keys = BenchmarkKeys(batch_sizes=[1, 8], sequence_lengths=[128, 384])
    assert keys.cells() == [
        Cell("cpu", 2, 1, 128),
        Cell("cpu", 2, 1, 384),
        Cell("cpu", 2, 8, 128),
        Cell("cpu", 2, 8, 384),
    ]


def test_a_gpu_is_not_timed_once_for_every_number_of_cpu_threads():
    cells = BenchmarkKeys(providers=["cpu", "cuda"], threads=[4, 1]).cells()
    assert [(cell.provider, cell.threads) for cell in cells] == [("cpu", 4), ("cpu", 1), ("cuda", 4)]


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"threads": [0]}, "greater than or equal to 1"),
        ({"threads": [2, 2]}, "lists 2 twice"),
        ({"batch_sizes": []}, "at least 1 item"),
        ({"sequence_lengths": ["128"]}, "valid integer"),
        ({"providers": ["gpu"]}, "'cpu' or 'cuda'"),
        ({"processes": 2}, "greater than or equal to 3"),
        ({"seconds": 0}, "greater than 0"),
        ({"thread": [2]}, "did you mean 'threads'"),
    ],
)
def test_bad_values_are_refused(keys, complaint):
    with pytest.raises(ValidationError, match=complaint):
        BenchmarkKeys(**keys)

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import UserError
from compressor.tasks.schema import TaskKeys
from compressor.tasks.splits import split


def keys(fraction=0.1, **limit):
    return TaskKeys(type="text-classification", dataset="glue", selection={"fraction": fraction}, limit=limit)


def frame(rows, groups=1):
    return pd.DataFrame({"id": range(rows), "context": [str(n * groups // rows) for n in range(rows)]})


@given(st.integers(20, 300), st.floats(0.1, 0.5), st.integers(0, 9), st.integers(5, 20))
def test_selection_is_a_fixed_part_of_train_by_whole_groups(rows, fraction, seed, groups):
    made = split(frame(rows, groups), frame(9), keys(fraction), seed, "context")
    again = split(frame(rows, groups), frame(9), keys(fraction), seed, "context")
    assert sorted([*made.train["id"], *made.selection["id"]]) == list(range(rows))
    assert not set(made.train["context"]) & set(made.selection["context"])
    assert 1 <= len(made.selection) < rows
    assert abs(len(made.selection) - fraction * rows) <= rows / groups + 1
    assert made.selection["id"].tolist() == again.selection["id"].tolist()


def test_without_groups_the_fraction_is_exact_and_the_seed_matters():
    made = [split(frame(200), frame(9), keys(0.1), seed) for seed in (0, 1)]
    assert [len(one.selection) for one in made] == [20, 20]
    assert made[0].selection["id"].tolist() != made[1].selection["id"].tolist()
    assert made[0].train["id"].is_monotonic_increasing


def test_limits_take_random_rows_of_validation_independent_of_the_seed():
    made = [split(frame(500), frame(500), keys(0.1, train=50, validation=30), seed) for seed in (0, 1)]
    assert [len(made[0].train), len(made[0].selection), len(made[0].validation)] == [45, 5, 30]
    assert made[0].validation["id"].tolist() == made[1].validation["id"].tolist()
    assert made[0].train["id"].tolist() != made[1].train["id"].tolist()
    assert made[0].validation["id"].max() > 30  # not the first ones


def test_a_selection_of_nothing_or_of_everything_is_refused():
    with pytest.raises(UserError, match="train has only one row"):
        split(frame(1), frame(4), keys(0.1), 0)
    with pytest.raises(UserError, match="train has only one context"):
        split(frame(40), frame(4), keys(0.5), 0, "context")

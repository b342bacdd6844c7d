import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from compressor.tasks import metrics


@given(st.integers(2, 6), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_classification_metrics_are_sklearns_on_any_resample(classes, seed):
    rng = np.random.default_rng(seed)
    reference, predicted = rng.integers(0, classes, (2, 60))
    rows = rng.integers(0, 60, 25)
    x, y = reference[rows], predicted[rows]
    f1 = f1_score(x, y, pos_label=1, zero_division=0) if classes == 2 else f1_score(x, y, average="macro")
    expected = {"accuracy": accuracy_score(x, y), "f1": f1, "matthews": matthews_corrcoef(x, y)}
    for name, value in expected.items():
        score = metrics.classification(name, reference, predicted, classes)
        assert score(rows) == pytest.approx(value, abs=1e-12), name


def test_constant_predictions_score_nothing_instead_of_failing():
    rows = np.arange(10)
    zeros, ones = np.zeros(10, dtype=int), np.ones(10, dtype=int)
    assert metrics.classification("f1", zeros, zeros, 2)(rows) == 0.0
    assert metrics.classification("matthews", zeros, ones, 2)(rows) == 0.0
    assert metrics.correlation("pearson", np.arange(10), zeros)(rows) == 0.0


@given(st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_correlations_are_scipys_on_any_resample(seed):
    rng = np.random.default_rng(seed)
    reference, predicted = rng.integers(0, 20, (2, 80)) / 4
    rows = rng.integers(0, 80, 50)
    pearson = metrics.correlation("pearson", reference, predicted)(rows)
    assert pearson == pytest.approx(stats.pearsonr(reference[rows], predicted[rows]).statistic)
    spearman = metrics.correlation("spearman", reference, predicted)(rows)
    assert spearman == pytest.approx(stats.spearmanr(reference[rows], predicted[rows]).statistic)


def test_means_and_ratios_are_over_the_rows_asked_for():
    values, where = np.array([1.0, 0.0, 0.5, 0.5]), np.array([True, True, False, False])
    assert metrics.mean(values)(np.array([0, 0, 1])) == pytest.approx(2 / 3)
    assert metrics.mean(values, where)(np.arange(4)) == 0.5
    assert metrics.mean(values, where)(np.array([2, 3])) == 0.0
    assert metrics.ratio([1, 2], [2, 4])(np.array([0, 1])) == 0.5

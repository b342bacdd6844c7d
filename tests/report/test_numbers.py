"""How numbers are written, and the sentence and the shares made of them."""

import dataclasses

import pytest

from compressor.report import fields
from compressor.report.rows import gate_rows, variant_rows
from compressor.report.shares import shares
from compressor.report.verdict import overall_state, verdict


@pytest.mark.parametrize(
    ("value", "text"), [(401.3, "401"), (18.42, "18.4"), (7.974, "7.97"), (0.4231, "0.423"), (0, "0")]
)
def test_significant(value: float, text: str) -> None:
    assert fields.significant(value) == text


def test_fixed_has_a_true_minus_and_no_negative_zero() -> None:
    assert fields.fixed(-0.4) == "−0.40"
    assert fields.fixed(-0.001) == "0.00"


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (200, "3 min 20 s"), (8040, "2 h 14 min")])
def test_duration(seconds: float, text: str) -> None:
    assert fields.duration(seconds) == text


def test_drop_in_points_or_in_the_metrics_unit() -> None:
    drop = {"value": 0.0046, "ci95": [-0.0017, 0.0107]}
    assert fields.drop_text("accuracy", drop) == "0.46 [−0.17, 1.07]"
    assert fields.drop_text("perplexity", {"value": 0.1426, "ci95": None}) == "0.14"


def test_metric_text() -> None:
    assert fields.metric_text("f1", 0.8812) == "88.12 %"
    assert fields.metric_text("bits_per_character", 1.168) == "1.17"


def test_big_ratios_carry_one_decimal() -> None:
    assert fields.speedup_text({"value": 12.804, "ci95": [12.47, 13.18]}) == "12.8x [12.5, 13.2]"


def test_cell_in_words(results: dict) -> None:
    cell = fields.main_cell(results)
    assert str(cell) == "cpu, 2 threads, batch 1, 128 tokens"
    other = dataclasses.replace(cell, threads=1, part="next_token")
    assert str(other) == "cpu, 1 thread, batch 1, 128 tokens, next_token"


def test_variant_row_takes_its_times_from_the_main_cell(results: dict) -> None:
    row = variant_rows(results)[-1]
    assert (row.name, row.role, row.metric, row.drop) == (
        "pruned_int8",
        "final",
        "90.71 %",
        "0.46 [−0.17, 1.07]",
    )
    assert (row.speedup, row.p50, row.size) == ("2.31x [2.25, 2.38]", "7.97 ms", "15.8 MB")
    assert (row.parameters, row.sliced, row.nonzero) == ("15.4 M", "31.3 %", "31.3 %")


def test_gate_rows(results: dict) -> None:
    rows = {row.name: (row.limit, row.value) for row in gate_rows(results)}
    assert rows == {
        "max_metric_drop": ("≤ 1.00 points", "0.46 points [−0.17, 1.07]"),
        "min_speedup": ("≥ 2.00x", "2.31x [2.25, 2.38]"),
        "max_latency_ms": ("≤ 10.0 ms", "7.97 ms [7.85, 8.13]"),
        "max_file_mb": ("≤ 40.0 MB", "15.8 MB"),
        "max_parity_error": ("≤ 1.0e-04", "3.1e-06"),
        "min_agreement": ("≥ 98.00 %", "99.66 %"),
    }


def test_gates_of_a_perplexity_are_no_percentages(perplexity: dict) -> None:
    assert [(row.limit, row.value) for row in gate_rows(perplexity)] == [
        ("≤ 0.50", "0.14 [0.09, 0.18]"),
        ("≥ 30.00", "23.55"),
    ]


def test_a_gate_without_a_measurement(results: dict) -> None:
    results["gates"][1] |= {"value": None, "ci95": None, "passed": False}
    row = gate_rows(results)[1]
    assert (row.value, row.state) == ("not measured", "failed")


def test_verdict_of_a_run_that_passed(results: dict) -> None:
    assert verdict(results) == (
        "2.31x faster [2.25, 2.38] than dense at 0.5 points less accuracy [−0.2, 1.1]; all gates passed"
    )
    assert overall_state(results) == "passed"


def test_verdict_names_the_gates_that_failed(results: dict) -> None:
    results["gates"][0]["passed"] = False
    results["gates"][1] |= {"passed": False, "inconclusive": True}
    assert verdict(results).endswith("; failed: max_metric_drop; inconclusive: min_speedup")
    assert overall_state(results) == "failed"


def test_a_gate_that_several_variants_missed_is_named_once(results: dict) -> None:
    for variant in ("pruned_fp32", "dense_int8"):
        results["gates"].append(results["gates"][1] | {"passed": False, "variant": variant})
    assert verdict(results).endswith("; failed: min_speedup")


def test_a_warned_inconclusive_gate_is_not_passed(results: dict) -> None:
    results["gates"][1] |= {"passed": True, "inconclusive": True}
    assert overall_state(results) == "inconclusive"
    assert "all gates passed" not in verdict(results)


@pytest.mark.parametrize(
    ("ci95", "start"),
    [
        ([0.8, 0.9], "Slower than dense, 0.85x [0.80, 0.90] its speed, at"),
        ([0.8, 1.1], "No faster than dense beyond noise, 0.85x [0.80, 1.10], at"),
    ],
)
def test_verdict_claims_no_speedup_that_was_not_measured(results: dict, ci95: list, start: str) -> None:
    results["variants"]["pruned_int8"]["speedup"][0] |= {"value": 0.85, "ci95": ci95}
    assert verdict(results).startswith(start)


def test_verdict_of_a_gain_turns_the_interval_round(results: dict) -> None:
    results["variants"]["pruned_int8"]["metric_drop"] = {"value": -0.004, "ci95": [-0.011, 0.002]}
    assert "at 0.4 points more accuracy [−0.2, 1.1];" in verdict(results)


def test_verdict_of_a_perplexity(perplexity: dict) -> None:
    assert "than dense at 0.14 more perplexity [0.10, 0.19]; " in verdict(perplexity)


def test_verdict_of_the_dense_model_alone(minimal: dict) -> None:
    assert verdict(minimal) == (
        "Dense model only, perplexity 23.41: nothing to compare with; no gates were set"
    )


def test_verdict_without_timings(results: dict) -> None:
    results["variants"]["pruned_int8"]["speedup"] = []
    assert verdict(results).startswith("0.5 points less accuracy [−0.2, 1.1] than dense, speed not measured;")


def test_shares_multiply_to_the_whole(results: dict) -> None:
    (share,) = shares(results)
    assert share.variant == "pruned_int8"
    assert share.pruning * share.quantization_after == pytest.approx(share.both)
    assert share.quantization * share.pruning_after == pytest.approx(share.both)
    assert share.pruning_share == pytest.approx(0.532, abs=1e-3)
    assert share.pruning_share + share.quantization_share == pytest.approx(1)


def test_no_shares_of_no_speedup_and_none_without_all_four(results: dict) -> None:
    results["variants"]["pruned_int8"]["speedup"][0]["value"] = 1.02
    assert shares(results)[0].pruning_share is None
    del results["variants"]["dense_int8"]
    assert shares(results) == []

"""Latency tables: what they say, when they are refused, what is measured anew. No test looks at a real clock."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from compressor.benchmark import latency_fit, latency_measuring
from compressor.benchmark.latency_fit import missed, refuse_misfit
from compressor.benchmark.latency_measuring import load_or_measure, measure_table
from compressor.benchmark.latency_plan import PROBE, ffn_levels, groups, head_levels, plan
from compressor.benchmark.latency_setting import Setting
from compressor.benchmark.latency_table import LatencyTable
from compressor.cell import DATA, Cell
from compressor.errors import GateError, UserError
from compressor.models.structure import Sizes, Structure, SubLayer
from tests.benchmark.stopwatch import BASE, CONSTANT, SHAPE, Stopwatch, attention_ms, ffn_ms, true_ms

CELL = Cell("cpu", 1, 1, 32)
SETTING = Setting(SHAPE, CELL)
DENSE = Structure.dense(
    Sizes(
        {"encoder": {"layers": SHAPE.layers, "attention": SHAPE.heads, "ffn": SHAPE.ffn}},
        SHAPE.hidden,
        SHAPE.head_size,
        {"attention": 4, "ffn": 2},
    )
)


AT_LEISURE = {"budget": float("inf")}


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return measure_table(SETTING, Stopwatch(), **AT_LEISURE)


def pruned(seed):
    """A structure of widths that a search would choose, and these widths."""
    rng = np.random.default_rng(seed)
    widths = [
        (rng.choice([None, 0, 1, 2, 3, 4]), rng.choice([None, 0, *range(16, 2033, 16), 2048]))
        for _ in range(SHAPE.layers)
    ]
    kept = {
        ("encoder", layer, name): SubLayer(absent=True) if units is None else SubLayer(tuple(range(units)))
        for layer, both in enumerate(widths)
        for name, units in zip(("attention", "ffn"), both, strict=True)
    }
    return DENSE.keeping(kept), widths


def test_sums_of_sublayers_are_whole_models(table):
    assert table.base_ms == pytest.approx(BASE)
    assert table.dense_ms == table.time(DENSE) == pytest.approx(true_ms([SHAPE.dense] * SHAPE.layers))
    for seed in range(20):
        structure, layers = pruned(seed)
        assert table.time(structure) == pytest.approx(true_ms(layers))
        assert table.speedup(structure) == table.dense_ms / table.time(structure)


def test_an_absent_sublayer_is_free_and_a_constant_one_nearly(table):
    for curve in (table.attention, table.ffn):
        assert curve.at(None) == 0
        assert curve.at(0) == pytest.approx(CONSTANT)
        assert curve.array[0] == 0
        assert curve.levels()[0] == (0, 0.0)
        assert curve.array[1] == curve.ms[0]


def test_arrays_hold_every_width(table):
    assert table.attention.array == pytest.approx([0, *(attention_ms(heads) for heads in range(1, 5))])
    assert len(table.ffn.array) == SHAPE.ffn + 1
    assert table.ffn.array[777] == pytest.approx(ffn_ms(777))


def test_slow_widths_are_found_and_avoided(table):
    assert table.ffn.slow == {1024: pytest.approx(ffn_ms(1024))}
    assert table.ffn.at(1024) == pytest.approx(ffn_ms(1024))
    assert table.ffn.at(1023) == pytest.approx(ffn_ms(1023), rel=0.01)
    assert 1024 not in dict(table.ffn.levels())
    narrower = dict(table.ffn.levels())[2032]  # one block fewer than a slow dense width pays at once
    assert table.ffn.at(2048) - narrower == pytest.approx(0.3 + 0.016)


@pytest.mark.parametrize("seed", range(5))
def test_time_never_falls_as_width_grows_whatever_the_noise(seed, monkeypatch):
    monkeypatch.setattr(latency_fit, "TOLERANCE", 1.0)
    table = measure_table(SETTING, Stopwatch(noise=0.03, seed=seed, width=0.05), **AT_LEISURE)
    for curve in (table.attention, table.ffn):
        assert all(0 <= a <= b for a, b in pairwise([curve.constant, *curve.ms]))
    assert table.dense_ms == pytest.approx(true_ms([SHAPE.dense] * SHAPE.layers), rel=0.12)


def test_what_whole_models_belie_is_refused_and_not_stored(tmp_path):
    with pytest.raises(
        GateError, match=r"takes .* ms took .* ms \(\d+% off, 5% allowed\)\. Sub-layers' times do not"
    ) as caught:
        load_or_measure(SETTING, [tmp_path], Stopwatch(strange=1.3), **AT_LEISURE)
    assert "cpu, 1 thread, batch 1, 32 tokens" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_noisy_machine_is_named_as_the_reason():
    busy = Stopwatch(strange=1.3, width=0.2, disturbance="other processes ran: make (90% of a core)")
    with pytest.raises(
        GateError, match=r"not quiet: that time is uncertain by 20%; other processes ran: make"
    ):
        measure_table(SETTING, busy, **AT_LEISURE)


@pytest.mark.parametrize(
    ("error", "uncertain", "refused"),
    [(0.04, 0.01, False), (0.08, 0.04, False), (0.08, 0.01, True), (0.12, 0.3, True), (-0.07, 0.01, True)],
)
def test_a_whole_model_may_miss_by_as_much_as_it_is_uncertain_but_not_by_anything(error, uncertain, refused):
    table = measure_table(SETTING, Stopwatch(), **AT_LEISURE)
    row = table.check["probes"][0] | {"error": error, "uncertain": uncertain}
    table = replace(table, check=table.check | {"probes": [row]})
    assert missed(table) == ([] if abs(error) <= 0.05 else ["probe-dense"])
    if refused:
        with pytest.raises(GateError, match="is refused"):
            refuse_misfit(SETTING, table)
    else:
        refuse_misfit(SETTING, table)


def test_one_factor_between_stacks_and_whole_models_is_no_misfit():
    table = measure_table(
        replace(SETTING, shape=replace(SHAPE, layers=8)), Stopwatch(whole=0.85), **AT_LEISURE
    )
    assert table.check["factor"] == pytest.approx(0.85, rel=0.02)
    assert table.dense_ms == pytest.approx(0.85 * true_ms([SHAPE.dense] * 8), rel=0.02)


class Clock:
    """Stands still but when a graph is timed, which takes a second."""

    def __init__(self, stopwatch):
        self.stopwatch = stopwatch

    def __call__(self):
        return float(sum(map(len, self.stopwatch.asked)))


def test_the_time_limit_leaves_widths_out_and_the_line_goes_on():
    everything, hurried = Stopwatch(), Stopwatch()
    full = measure_table(SETTING, everything, budget=1000, clock=Clock(everything))
    few = measure_table(SETTING, hurried, budget=1, clock=Clock(hurried))
    needed, further = plan(SHAPE)
    assert sum(map(len, hurried.asked)) == len(needed) - 1
    assert sum(map(len, everything.asked)) == len(needed) + len(further) - 1
    assert set(few.ffn.widths) < set(full.ffn.widths) | {1024}
    assert few.ffn.at(500) == pytest.approx(full.ffn.at(500), rel=0.05)


def test_uncertain_widths_are_measured_again_while_there_is_time():
    class Settling(Stopwatch):
        def __call__(self, models, reference):
            self.width = (
                0.2 if "ffn-16" in models and not any("ffn-16" in names for names in self.asked) else 0.01
            )
            return super().__call__(models, reference)

    stopwatch = Settling()
    table = measure_table(SETTING, stopwatch, **AT_LEISURE)
    assert sum("ffn-16" in names for names in stopwatch.asked) == 2
    assert table.ffn.noisy == table.attention.noisy == ()

    never = Stopwatch(width=0.2)
    table = measure_table(SETTING, never, **AT_LEISURE)
    assert sum("ffn-16" in names for names in never.asked) == 1 + latency_measuring.REPEATS
    assert 16 in table.ffn.noisy
    hurried = Stopwatch(width=0.2)
    measure_table(SETTING, hurried, budget=1, clock=Clock(hurried))
    assert sum("ffn-16" in names for names in hurried.asked) == 1


def test_a_table_is_stored_and_belongs_to_its_setting(tmp_path, monkeypatch, table):
    stopwatch, run, cache = Stopwatch(), tmp_path / "run", tmp_path / "cache"
    first = load_or_measure(SETTING, [cache], stopwatch, **AT_LEISURE)
    assert first == table
    measured = len(stopwatch.asked)
    assert load_or_measure(SETTING, [run, cache], stopwatch) == first
    assert len(stopwatch.asked) == measured
    assert [file.name for file in run.iterdir()] == [file.name for file in cache.iterdir()]

    others = [
        replace(SETTING, cell=replace(CELL, batch_size=8)),
        replace(SETTING, precision="int8", conversion={"mode": "dynamic"}),
        replace(SETTING, shape=replace(SHAPE, hidden=24)),
    ]
    with monkeypatch.context() as patch:
        patch.setattr("compressor.benchmark.latency_setting.machine_key", lambda _: "another machine")
        others.append(replace(SETTING))
        assert others[-1].machine["key"] == "another machine"
    for other in others:
        assert latency_measuring.stored_table(other, cache) is None
        assert other.file_name != SETTING.file_name

    (file,) = cache.iterdir()
    file.write_text(file.read_text(encoding="utf-8")[:-100], encoding="utf-8")
    load_or_measure(SETTING, [cache], stopwatch, **AT_LEISURE)
    assert len(stopwatch.asked) > measured


def test_json_and_back(table):
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_expected_time_of_open_gates_is_the_dense_time(table):
    ones = np.ones(SHAPE.layers)
    dense = table.expected(ones, SHAPE.heads * ones, ones, SHAPE.ffn * ones)
    assert dense == pytest.approx(table.dense_ms)
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(values) for values in (ones, SHAPE.heads * ones, ones, SHAPE.ffn * ones)]
    assert table.expected(*tensors).item() == pytest.approx(table.dense_ms)


def test_expected_time_of_decided_gates_is_the_structures_time(table):
    heads, neurons = np.array([4, 1, 2, 3]), np.array([16, 2048, 300, 0])
    there, ffn = np.array([1, 1, 0, 1]), np.array([1, 1, 1, 0])
    kept = [(4, 16), (1, 2048), (None, 300), (3, None)]
    assert table.expected(there, heads, ffn, neurons) == pytest.approx(table.of_widths(kept))


def test_the_gradient_of_expected_time_is_that_of_finite_differences(table):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    shares = [torch.rand(SHAPE.layers, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def expected(attention, heads, ffn, neurons):
        return table.expected(attention, SHAPE.heads * heads, ffn, SHAPE.ffn * neurons)

    assert torch.autograd.gradcheck(expected, shares, eps=1e-6, atol=1e-4)


def test_a_structure_of_other_widths_is_refused(table):
    narrow = Structure(DENSE.sizes, DENSE.layers, tuple(range(20)))
    with pytest.raises(ValueError, match="of hidden width 32 with heads of 8, the structure has 20 and 8"):
        table.time(narrow)


def test_levels():
    assert head_levels(12) == list(range(1, 13))
    assert len(head_levels(40)) <= 13
    assert {1, 40} <= set(head_levels(40))
    assert len(ffn_levels(3072)) < 24
    assert {16, 1024, 2048, 3056, 3072} <= set(ffn_levels(3072))
    assert all(units % 16 == 0 for units in ffn_levels(3072))
    assert ffn_levels(10) == [10]
    assert ffn_levels(40) == [16, 32, 40]


def test_probes_are_uneven_and_groups_bounded(monkeypatch):
    needed, further = plan(SHAPE)
    probes = [one for one in needed if one.name.startswith(PROBE)]
    assert len(probes) == 6
    assert any(None in widths for one in probes for widths in one.layers)
    assert len({one.layers for one in probes}) == 6
    monkeypatch.setattr("compressor.benchmark.latency_plan.GROUP_BYTES", 4_000_000)
    found = list(groups(needed[1:] + further, SHAPE))
    assert [one for group in found for one in group] == needed[1:] + further
    assert len(found) > 3
    assert all(len(group) < 16 for group in found)


@pytest.mark.parametrize(
    ("cell", "says"),
    [(Cell("cpu", 1, 1, DATA), "one sequence length"), (Cell("cpu", 1, 1, 65), "at most 64")],
)
def test_cells_that_no_table_is_of(cell, says):
    with pytest.raises(UserError, match=says):
        measure_table(replace(SETTING, cell=cell), Stopwatch())


def test_the_real_clock_times_a_real_stack():
    shape = replace(SHAPE, ffn=64)
    timer = latency_measuring.harness_timer(CELL, seconds=0.02, processes=2)
    session = latency_measuring._Session(Setting(shape, CELL), timer, None, None, lambda: 0.0, 4)
    session.time(plan(shape)[0][1:4])
    seen = session.timing()
    assert seen.reference_ms > 0
    assert len(seen.multiples) == 3
    assert all(0 < one.low <= one.value <= one.high for one in seen.multiples.values())

"""What `bench.layers` measured: a table, a plot, and whether the searches are worth their cost.

python -m bench.layers_table
python -m bench.layers_table --plot bench/results/layers.svg
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bench.plot import SETTINGS
from compressor.benchmark.statistics import paired_interval
from compressor.files import read_json
from compressor.report.fields import MISSING, fixed, speedup_text
from compressor.tasks.metrics import Scorer, classification

Json = dict[str, Any]
RESULTS = Path("bench/results/layers.json")
DENSE, FULL, SCREENED = "none", "greedy full", "greedy screened"
LENGTH = 128
"""Tokens of the cell that the table shows."""
QUARTER, EQUAL_OF_THREE, TIMES = 0.25, 2, 1.8
"""What is asked of the cheap search, and of half the layers."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw it instead")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    state = read_json(options.results)
    if options.plot:
        save_plot(state, options.plot)
    else:
        sys.stdout.write("\n".join([*table(state), "", *verdicts(state)]) + "\n")


# What was measured


def strategies(state: Json, task: str) -> dict[str, list[int]]:
    """Every strategy with the seeds that it has chosen with."""
    found: dict[str, list[int]] = {}
    for name in state["chosen"]:
        its_task, seed, strategy = name.split(" ", 2)
        if its_task == task:
            found.setdefault(strategy, []).append(int(seed))
    return found


def sets_of(state: Json, task: str, strategy: str, count: int) -> dict[int, str]:
    """By seed the layers it drops, where a model without them was measured; a dense one drops none."""
    if strategy == DENSE:
        seeds = {int(name.split(" ")[1]) for name in state["trained"] if name.startswith(f"{task} ")}
        chosen = dict.fromkeys(sorted(seeds), DENSE)
    else:
        rows = {
            seed: state["chosen"][f"{task} {seed} {strategy}"]
            for seed in strategies(state, task).get(strategy, [])
        }
        chosen = {seed: row["sets"][str(count)] for seed, row in rows.items() if str(count) in row["sets"]}
    return {seed: gone for seed, gone in chosen.items() if f"{task} {seed} {gone}" in state["trained"]}


def cells(state: Json, task: str) -> Iterator[tuple[str, int]]:
    """(strategy, number of layers) that something was measured of, by number."""
    counts = sorted({int(count) for row in state["chosen"].values() for count in row["sets"]})
    for count in counts:
        for strategy in strategies(state, task):
            if sets_of(state, task, strategy, count):
                yield strategy, count


def scorer(state: Json, task: str, sets: dict[int, str]) -> Scorer:
    """The metric as a function of validation rows, its mean over seeds."""
    facts = state["tasks"][task]
    reference = digits(facts["reference"])
    parts = [
        classification(
            facts["metric"], reference, digits(state["trained"][f"{task} {seed} {gone}"]["prediction"]), 2
        )
        for seed, gone in sets.items()
    ]
    return lambda rows: float(np.mean([part(rows) for part in parts]))


def digits(text: str) -> np.ndarray:
    return np.array([int(digit) for digit in text])


def loss(
    state: Json, task: str, one: tuple[str, int], other: tuple[str, int]
) -> tuple[float, float, float] | None:
    """How much worse `other` is than `one` (strategy, number of layers), with its paired 95 % interval.

    Over the seeds that both were measured with; `None` where there is none.
    """
    ours, theirs = sets_of(state, task, *one), sets_of(state, task, *other)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    score = [scorer(state, task, {seed: sets[seed] for seed in shared}) for sets in (ours, theirs)]
    rows = np.arange(len(state["tasks"][task]["reference"]))
    low, high = paired_interval(score[0], score[1], len(rows))
    return score[0](rows) - score[1](rows), low, high


def timed(state: Json, count: int) -> tuple[Json | None, Json | None]:
    """Latency and speedup rows of a size at the table's length."""
    made = next(reversed(state["timed"].values()), None)
    if made is None:
        return None, None
    tables = (made[kind].get(f"drop{count}", []) for kind in ("latency", "speedup"))
    latency, speedup = (next((r for r in rows if r["sequence_length"] == LENGTH), None) for rows in tables)
    return latency, speedup


# The table

COLUMNS = [
    "task",
    "layers dropped",
    "strategy",
    "which (by seed)",
    "metric",
    "drop (points)",
    "worse than greedy full",
]
COLUMNS += ["p50", "speedup", "search: examples", "minutes"]


def table(state: Json) -> list[str]:
    """A row a strategy and number of layers; below, where and how it was measured."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for task in state["tasks"]:
        for strategy, count in ((DENSE, 0), *cells(state, task)):
            lines.append(f"| {' | '.join(row(state, task, strategy, count))} |")
    return [*lines, "", *notes(state)]


def row(state: Json, task: str, strategy: str, count: int) -> list[str]:
    sets = sets_of(state, task, strategy, count)
    rows = np.arange(len(state["tasks"][task]["reference"]))
    latency, speedup = timed(state, count)
    searched = [state["chosen"].get(f"{task} {seed} {strategy}", {}) for seed in sets]
    costs = [[cost[key] for cost in searched if cost.get(key) is not None] for key in ("examples", "minutes")]
    metric = state["tasks"][task]["metric"]
    return [
        task,
        str(count),
        "all layers" if strategy == DENSE else strategy,
        MISSING if strategy == DENSE else ", ".join(sets.values()),
        f"{metric} {fixed(100 * scorer(state, task, sets)(rows))} %" if sets else MISSING,
        points(None if strategy == DENSE else loss(state, task, (DENSE, 0), (strategy, count))),
        points(None if strategy in (DENSE, FULL) else loss(state, task, (FULL, count), (strategy, count))),
        f"{fixed(latency['p50_ms'])} ms" if latency else MISSING,
        speedup_text(speedup) if speedup else MISSING,
        f"{np.mean(costs[0]):,.0f}" if costs[0] else MISSING,
        fixed(float(np.mean(costs[1])), 1) if costs[1] else MISSING,
    ]


def points(difference: tuple[float, float, float] | None) -> str:
    if difference is None:
        return MISSING
    value, low, high = (fixed(100 * part) for part in difference)
    return f"{value} [{low}, {high}]"


def notes(state: Json) -> list[str]:
    """The data, the seeds, the machine."""
    lines = []
    for task, facts in state["tasks"].items():
        seeds = sorted(sets_of(state, task, DENSE, 0))
        rows = facts["rows"]
        lines.append(
            f"- {task}: {rows['train']:,} training rows, {rows['selection']:,} to choose by, "
            f"{len(facts['reference'])} to measure on; seeds {', '.join(map(str, seeds))}; metrics are means over "
            "seeds, intervals 95 % of 1,000 resamples of the same examples."
        )
    for made in list(state["timed"].values())[-1:]:
        cell, machine = made["conditions"][0], made["environment"]
        lines.append(
            f"- Speed: fp32, batch {cell['batch_size']}, {LENGTH} tokens, {cell['threads']} threads of "
            f"{machine['cpu']}, onnxruntime {machine['versions']['onnxruntime']}."
        )
    commands = dict.fromkeys(cell["command"] for cell in state["chosen"].values())
    return [*lines, *(f"- `{command}`" for command in commands)]


# What it shows


def verdicts(state: Json) -> list[str]:
    """Claims about the searches and the speed, each with what was found."""
    claims: list[Callable[[Json], list[str]]] = [greedy_is_no_worse, screened_is_like_full, half_is_fast]
    return [line for claim in claims for line in claim(state)]


def claim(holds: bool | None, text: str) -> str:
    return f"- {'not measured' if holds is None else 'holds' if holds else 'DOES NOT HOLD'}: {text}"


def greedy_is_no_worse(state: Json) -> list[str]:
    """Than any strategy that chooses once: no interval lies wholly on the other side."""
    lines = []
    for task in state["tasks"]:
        for count in sorted({count for _, count in cells(state, task)}):
            rivals = [s for s, c in cells(state, task) if c == count and s not in (FULL, SCREENED)]
            found = {s: loss(state, task, (s, count), (FULL, count)) for s in rivals}
            better = [f"{s} by {points(d)} points" for s, d in found.items() if d and d[1] > 0]
            known = [d for d in found.values() if d]
            what = (
                f"{task}, {count} dropped: within the interval greedy is at least as good as every strategy"
            )
            detail = f" (better: {', '.join(better)})" if better else f" ({len(known)} compared)"
            lines.append(claim(not better if known else None, what + detail))
    return lines


def screened_is_like_full(state: Json) -> list[str]:
    """Within the interval, with two layers of three, at a quarter of the training."""
    lines = []
    for task in state["tasks"]:
        counts = sorted({count for strategy, count in cells(state, task) if strategy == SCREENED})
        for count in counts:
            lost = loss(state, task, (FULL, count), (SCREENED, count))
            what = f"{task}, {count} dropped: the screened search ends within the interval of the full one"
            lines.append(
                claim(None if lost is None else lost[1] <= 0, f"{what}: {points(lost)} points worse")
            )
        ours, theirs = (sets_of(state, task, search, 3) for search in (SCREENED, FULL))
        for seed in sorted(ours.keys() & theirs.keys()):
            equal = len(set(ours[seed].split("-")) & set(theirs[seed].split("-")))
            what = (
                f"{task}, seed {seed}: {ours[seed]} screened, {theirs[seed]} full, {equal} of 3 layers equal"
            )
            lines.append(claim(equal >= EQUAL_OF_THREE, what))
            cost = [state["chosen"][f"{task} {seed} {search}"]["examples"] for search in (SCREENED, FULL)]
            share = cost[0] / cost[1]
            what = (
                f"{task}, seed {seed}: the screened search trained on {share:.0%} of the full one's examples"
            )
            lines.append(claim(share <= QUARTER, what))
    return lines


def half_is_fast(state: Json) -> list[str]:
    """Three of six layers."""
    _, speedup = timed(state, 3)
    text = f"three of six layers dropped run at least {TIMES}x faster"
    if speedup is None:
        return [claim(None, text)]
    return [claim(speedup["ci95"][0] >= TIMES, f"{text}: {speedup_text(speedup)} at {LENGTH} tokens")]


# The plot

COLOURS = {FULL: "#d55e00", SCREENED: "#0072b2"}
MARKS = "o^vsD<>Pp*Xh"
"""The searches are coloured (told apart by the colour-blind), the rest is grey and told apart by its marks."""


def save_plot(state: Json, path: Path) -> None:
    """Draw the drop of every strategy against the time a model of its size takes, a panel a task."""
    with matplotlib.rc_context(SETTINGS):
        tasks = list(state["tasks"])
        figure = Figure(figsize=(max(7.0, 5.2 * len(tasks)), 5.2), layout="constrained")
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            draw_panel(axes, state, task)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 + len(tasks), frameon=False)
        figure.savefig(path, metadata={"Date": None})


def draw_panel(axes: Any, state: Json, task: str) -> None:
    """One task; strategies stand side by side at every number of layers."""
    names = list(strategies(state, task))
    for place, strategy in enumerate(names):
        found = [(c, loss(state, task, (DENSE, 0), (s, c))) for s, c in cells(state, task) if s == strategy]
        known = [(count, lost) for count, lost in found if lost]
        values = np.array([lost for _, lost in known]).reshape(-1, 3) * 100
        axes.errorbar(
            [count + (place - len(names) / 2) * 0.06 for count, _ in known],
            values[:, 0],
            yerr=np.abs(values[:, 1:] - values[:, :1]).T,
            fmt=MARKS[place % len(MARKS)],
            color=COLOURS.get(strategy, "#767676"),
            markersize=6 if strategy in COLOURS else 4,
            elinewidth=1.5 if strategy in COLOURS else 0.6,
            label=f"{strategy}{cost_text(state, task, strategy)}",
        )
    axes.axhline(0, color="#767676", linewidth=1)
    counts = sorted({count for _, count in cells(state, task)})
    axes.set_xticks(counts, [size_text(state, count) for count in counts])
    axes.set_title(f"{task}, {state['tasks'][task]['metric']}")
    axes.set_xlabel("layers dropped, onnxruntime p50 and speedup")
    axes.set_ylabel("worse than with all layers (points)")


def cost_text(state: Json, task: str, strategy: str) -> str:
    """Examples that a search was trained on, thousands."""
    costs = [
        state["chosen"][f"{task} {seed} {strategy}"]["examples"] for seed in strategies(state, task)[strategy]
    ]
    return f" ({np.mean(costs) / 1000:.0f}k examples)" if any(costs) else ""


def size_text(state: Json, count: int) -> str:
    latency, speedup = timed(state, count)
    return (
        f"{count}\n{latency['p50_ms']:.3g} ms\n{speedup['value']:.2f}x" if latency and speedup else str(count)
    )


if __name__ == "__main__":
    main()

"""What `bench/paper_architectures.py` measured, beside what was published: a table and a plot.

python bench/paper_table.py
python bench/paper_table.py --plot bench/results/paper_architectures.svg
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compressor.files import read_json
from compressor.report.fields import (
    MISSING,
    count_text,
    fixed,
    megabytes,
    metric_label,
    ratio_text,
    speedup_text,
)

Json = dict[str, Any]
RESULTS = Path("bench/results/paper_architectures.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw it instead")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.plot:
        save_plot(read_json(options.results), options.plot)
    else:
        sys.stdout.write(table(read_json(options.results)) + "\n")


# The table

COLUMNS = {"pruned_fp32": "fp32", "pruned_int8": "int8", "int8_over_int8": "int8 over int8"}


def table(state: Json) -> str:
    """Every network measured, its published figures beside ours, and below what both mean."""
    lengths = measured_lengths(state)
    columns = ["network", "published as", "metric", "sliced (non-zero)", "parameters", "published speed"]
    columns += [f"{what}, {length} tokens" for length in lengths for what in COLUMNS.values()]
    columns += ["files, fp32 and int8"]
    rows = [[*facts(entry), *speedups(entry, lengths), sizes(entry)] for entry in state["networks"].values()]
    lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([*lines, "", *notes(state)])


def measured_lengths(state: Json) -> list[int]:
    return sorted(
        {cell["sequence_length"] for entry in state["networks"].values() for cell in entry["cells"]}
    )


def facts(entry: Json) -> list[str]:
    """What was published of a network."""
    published = entry["published"]
    name, value = next(iter(published["metrics"].items()))
    own, given = published["speedup_over_own_base"], published["speedup"]
    return [
        f"**{published['name']}**" if entry["headline"] else published["name"],
        published["source"],
        f"{published['task']} {metric_label(name)} {fixed(value)}",
        f"{fixed(100 * entry['sliced_density'])} % ({fixed(published['nonzero_percent'])} %)",
        count_text(entry["parameters"]),
        ratio_text(own)
        + ("" if own == given else f" ({ratio_text(given)} over {published['speedup_over']})"),
    ]


def speedups(entry: Json, lengths: Sequence[int]) -> list[str]:
    """What was measured of a network: three speedups a length."""
    had = {cell["sequence_length"]: cell["speedup"] for cell in entry["cells"]}
    rows = [had[n][key] if n in had else None for n in lengths for key in COLUMNS]
    return [MISSING if row is None else speedup_text(row) + r"\*" * row["noisy"] for row in rows]


def sizes(entry: Json) -> str:
    """The pruned files, and what share they are of the dense ones."""
    have = entry["file_bytes"]
    shares = [fixed(100 * have[f"pruned_{kind}"] / have[f"dense_{kind}"], 0) for kind in ("fp32", "int8")]
    files = [megabytes(have[f"pruned_{kind}"]) for kind in ("fp32", "int8")]
    return "; ".join(f"{file} ({share} %)" for file, share in zip(files, shares, strict=True))


def notes(state: Json) -> list[str]:
    """How the numbers came about: ours, the papers', and what is special about single networks."""
    machine = state["machine"]
    lines = [
        f"- Ours: random weights, batch 1, no padding, {machine['cpu']}, onnxruntime "
        f"{machine['versions']['onnxruntime']}; 95 % intervals; all over the network's own base dense in fp32, "
        f"unless over int8. \\* is noisy. `{state['command']}`"
    ]
    for paper in state["papers"].values():
        speed = paper["speed"]
        padded = ", ".join(f"{task} {length}" for task, length in speed["padded_to"].items())
        lines.append(
            f"- Published: {paper['title']}, {paper['source']}. Speed: {speed['what']}; {speed['framework']} "
            f"{speed['precision']} on one {speed['gpu']}, batch {speed['batch_size']}, padded to ({padded}). "
            f"Ours: {paper['threads']} thread{'s' * (paper['threads'] > 1)}."
        )
    published = [entry["published"] for entry in state["networks"].values()]
    lines += [f"- {one['name']}: {one['note']}." for one in published if "note" in one]
    return lines + [f"- Not measured yet: {'; '.join(state['missing'])}."] * bool(state["missing"])


# The plot

SETTINGS = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "paper_architectures",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
}
OURS = {
    "pruned_fp32": ("onnxruntime fp32, batch 1", "o", "#0072b2"),
    "pruned_int8": ("onnxruntime int8, batch 1", "s", "#d55e00"),
}
THEIRS = "^v<>"
"""Marks and colours (Okabe and Ito's, told apart by the colour-blind) of the series."""


def save_plot(state: Json, path: Path) -> None:
    """Draw speedup against sliced density, a panel a length."""
    with matplotlib.rc_context(SETTINGS):
        lengths = measured_lengths(state)
        figure = Figure(figsize=(4.6 * len(lengths), 4.6), layout="constrained")
        panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
        for axes, length in zip(panels, lengths, strict=True):
            draw_panel(axes, state, length)
        panels[0].set_ylabel("times faster than its own dense base in fp32")
        drawn = [axes.get_legend_handles_labels() for axes in panels]
        legend = {label: handle for both in drawn for handle, label in zip(*both, strict=True)}
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def draw_panel(axes: Axes, state: Json, length: int) -> None:
    """Every network at one length: ours with intervals, what was published, and one over the density."""
    networks = [(entry, cell) for entry in state["networks"].values() for cell in entry["cells"]]
    measured = [(entry, cell["speedup"]) for entry, cell in networks if cell["sequence_length"] == length]
    for key, (name, mark, colour) in OURS.items():
        points = [(entry, rows[key]["value"], rows[key]["ci95"]) for entry, rows in measured]
        draw_series(axes, points, name, mark, colour)
    for (key, paper), mark in zip(state["papers"].items(), THEIRS, strict=False):
        mine = [entry for entry, _ in measured if entry["published"]["paper"] == key]
        values = [entry["published"]["speedup_over_own_base"] for entry in mine]
        points = [(entry, value, (value, value)) for entry, value in zip(mine, values, strict=True)]
        speed = paper["speed"]
        name = f"published: {speed['gpu']}, {speed['precision']}, batch {speed['batch_size']}"
        draw_series(axes, points, name, mark, "#000000")
    densities = [entry["sliced_density"] for entry, _ in measured]
    line = np.linspace(0.92 * min(densities), 1.05 * max(densities), 100)
    axes.plot(100 * line, 1 / line, "--", color="#767676", linewidth=1, label="1 / sliced density")
    axes.set_title(f"{length} tokens")
    axes.set_xlabel("linear weights kept (% of the dense base)")
    axes.set_ylim(bottom=0)


def draw_series(
    axes: Axes, points: Sequence[tuple[Json, float, Sequence[float]]], name: str, mark: str, colour: str
) -> None:
    """Points (network, value, interval); those of BERT-large are hollow."""
    for large in (False, True):
        chosen = [point for point in points if (point[0]["published"]["base"] == "bert-large") == large]
        if chosen:
            axes.errorbar(
                [100 * entry["sliced_density"] for entry, _, _ in chosen],
                [value for _, value, _ in chosen],
                yerr=np.transpose([(value - low, high - value) for _, value, (low, high) in chosen]),
                fmt=mark,
                color=colour,
                markerfacecolor="none" if large else colour,
                markersize=5,
                elinewidth=1,
                label=name + ", BERT-large" * large,
            )


if __name__ == "__main__":
    main()

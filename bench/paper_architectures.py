"""Published pruned networks, rebuilt with random weights and timed on onnxruntime against their dense base.

    python bench/paper_architectures.py --budget 70     # measures, or goes on where the last call stopped
    python bench/paper_architectures.py --table         # what was measured beside what was published
    python bench/paper_architectures.py --plot bench/results/paper_architectures.svg

`paper_architectures.json` says what each network keeps and what its paper claims: the 27 of block movement
pruning (Lagunas et al. 2021). A network is cut out of a dense BERT of its size, must have exactly the published
number of parameters, and is exported and quantized as a recipe does it. A cell is one network at one length,
batch 1: the dense and the pruned model, each in fp32 and int8, in turns in the same processes. Every cell is
saved as it is measured. Published speeds are PyTorch's on a GPU at batch 128: another machine, another question.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.log import quiet_libraries

quiet_libraries()

import matplotlib
import numpy as np
import torch
import transformers
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import BertConfig, PreTrainedModel

from compressor.benchmark.harness import DEFAULTS, measure
from compressor.benchmark.machine import fingerprint, machine_key
from compressor.benchmark.schema import Cell
from compressor.errors import RunError
from compressor.files import read_json, write_json
from compressor.models.architecture import architecture_of
from compressor.models.parity import TOLERANCE
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.onnx.export import check_parity, export_onnx
from compressor.onnx.quantize import Scheme, quantize
from compressor.report.fields import (
    MISSING,
    count_text,
    fixed,
    megabytes,
    metric_label,
    ratio_text,
    speedup_text,
)
from compressor.stages.export import Export
from compressor.stages.quantize import Quantize

Json = dict[str, Any]

DATA = Path(__file__).with_suffix(".json")
OUTPUT = Path("bench/results/paper_architectures.json")
HEADS = {
    "question-answering": "AutoModelForQuestionAnswering",
    "text-classification": "AutoModelForSequenceClassification",
}
SHAPE = ("heads", "ffn", "hidden")
"""What of a network's entry is its shape; the rest was published about it."""
THREADS, SEED = 2, 0
SLOWEST = 60.0
"""Seconds that the first cell is expected to take, its export too."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how carefully; a paper's headline network gets the harness's own care at least."""

    networks: Sequence[str]
    lengths: Sequence[int] = (128, 384)
    seconds: float = DEFAULTS.seconds
    processes: int = 3

    def effort(self, headline: bool) -> Json:
        """Seconds in each process, and processes, of one cell."""
        if not headline:
            return {"seconds": self.seconds, "processes": self.processes}
        return {
            "seconds": max(self.seconds, DEFAULTS.seconds),
            "processes": max(self.processes, DEFAULTS.processes),
        }


def main() -> None:
    data = read_json(DATA)
    arguments = parser([network["name"] for network in data["networks"]]).parse_args()
    if arguments.table:
        sys.stdout.write(table(read_json(arguments.output)) + "\n")
    if arguments.plot:
        save_plot(read_json(arguments.output), arguments.plot)
    if arguments.budget is not None:
        options = Options(arguments.networks, arguments.lengths, arguments.seconds, arguments.processes)
        state = run(data, options, arguments.budget, arguments.output)
        print("missing:", "; ".join(state["missing"]) or "nothing")


def parser(names: Sequence[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = made.add_mutually_exclusive_group(required=True)
    task.add_argument("--budget", type=float, metavar="MINUTES", help="measure for so long")
    task.add_argument("--table", action="store_true", help="print what was measured as Markdown")
    task.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw what was measured")
    made.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME")
    made.add_argument("--lengths", nargs="+", type=int, default=Options.lengths, metavar="TOKENS")
    made.add_argument("--seconds", type=float, default=Options.seconds, help="of a cell in each process")
    made.add_argument(
        "--processes", type=int, default=Options.processes, help="of a cell; headline networks 8"
    )
    made.add_argument("--output", type=Path, default=OUTPUT)
    return made


# The networks


def networks_of(data: Json) -> list[Json]:
    """All networks in the order of their papers, the headline ones first."""
    return sorted(data["networks"], key=lambda network: not is_headline(data, network))


def is_headline(data: Json, network: Json) -> bool:
    return bool(data["papers"][network["paper"]].get("headline") == network["name"])


def config_of(data: Json, network: Json) -> BertConfig:
    """The config of the dense base, with the labels of the network's task."""
    labels = data["tasks"][network["task"]]["labels"]
    return BertConfig(**data["bases"][network["base"]], num_labels=labels)


def structure(data: Json, network: Json) -> Structure:
    """What a network keeps. Counts are enough: for speed, the first units of a layer are as good as any."""
    config, hidden = config_of(data, network), network.get("hidden")
    kept = {}
    for index, (heads, neurons) in enumerate(zip(network["heads"], network["ffn"], strict=True)):
        kept["encoder", index, "attention"] = sub_layer(heads)
        kept["encoder", index, "ffn"] = sub_layer(neurons)
    dense = Structure.dense(architecture_of(config).sizes(config))
    return replace(dense.keeping(kept), hidden=hidden and tuple(range(hidden)))


def sub_layer(units: int | None) -> SubLayer:
    return SubLayer(absent=True) if units is None else SubLayer(tuple(range(units)))


def dense_model(data: Json, network: Json) -> PreTrainedModel:
    """The dense base with the head of the network's task; biases are random too: zeros could be folded away."""
    config = config_of(data, network)
    torch.manual_seed(SEED)
    auto_class = getattr(transformers, HEADS[data["tasks"][network["task"]]["head"]])
    model: PreTrainedModel = auto_class.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=config.initializer_range)
    return model.eval()


def rebuild(data: Json, network: Json) -> PreTrainedModel:
    """The network with random weights.

    Raises:
        RunError: it has not the published number of parameters.
    """
    model = slice_model(dense_model(data, network), structure(data, network))
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != network["parameters"]:
        raise RunError(
            f"{network['name']} has {found:,} parameters when rebuilt, published are {network['parameters']:,}"
        )
    return model


# Measuring


def run(data: Json, options: Options, minutes: float, output: Path) -> Json:
    """Measure the cells that are missing, as far as the budget goes; returns what `output` holds then."""
    end, slowest = time.monotonic() + 60 * minutes, SLOWEST
    state = load(data, options, output)
    with tempfile.TemporaryDirectory() as folder:
        for network, length, effort in list(lacking(data, state, options)):
            start = time.monotonic()
            if start + slowest > end:
                break
            models = files(data, network, Path(folder))
            cell = time_cell(models, length, effort)
            record(data, state, network, models, cell)
            save(data, state, options, output)
            slowest = max(slowest, time.monotonic() - start)
            print(
                network["name"],
                length,
                *(f"{n} {speedup_text(r)}" for n, r in cell["speedup"].items()),
                flush=True,
            )
    save(data, state, options, output)
    return state


def lacking(data: Json, state: Json, options: Options) -> Iterator[tuple[Json, int, Json]]:
    """Cells (network, length, effort) asked for and not yet measured with this effort or more."""
    for network in networks_of(data):
        if network["name"] in options.networks:
            effort = options.effort(is_headline(data, network))
            for length in options.lengths:
                had = cells(state, network).get(length, {}).get("conditions", {})
                if not all(had.get(key, 0) >= least for key, least in effort.items()):
                    yield network, length, effort


def files(data: Json, network: Json, folder: Path) -> dict[str, Path]:
    """The ONNX files of the four variants in `folder`, which holds those of one pruned network at a time."""
    head = data["tasks"][network["task"]]["head"]
    dense, pruned = folder / f"dense-{network['base']}-{head}", folder / f"pruned-{network['name']}"
    if not dense.is_dir():
        export(dense_model(data, network), head, dense)
    if not pruned.is_dir():
        for other in folder.glob("pruned-*"):
            shutil.rmtree(other)
        export(rebuild(data, network), head, pruned)
    return {
        f"{name}_{precision}": parent / f"{precision}.onnx"
        for precision in ("fp32", "int8")
        for name, parent in (("dense", dense), ("pruned", pruned))
    }


def export(model: PreTrainedModel, head: str, folder: Path) -> None:
    """Write `fp32.onnx`, which must compute what `model` does, and `int8.onnx`, with a recipe's defaults."""
    folder.mkdir()
    source, keys = folder / "fp32.onnx", Quantize()
    export_onnx(model, head, Export().opset, source)
    check_parity(model, source, TOLERANCE)
    quantize(source, folder / "int8.onnx", Scheme(reduce_range=keys.reduces_range()))


def time_cell(models: Mapping[str, Path], length: int, effort: Mapping[str, Any]) -> Json:
    """One cell; its rows are those of a run's `results.json`, one a variant, speedups over `dense_fp32`."""
    measured = measure(models, [Cell("cpu", THREADS, 1, length)], reference="dense_fp32", **effort)
    over_fp32 = {name: rows[0] for name, rows in measured.speedup.items()}
    return {
        "sequence_length": length,
        "latency": {name: rows[0] for name, rows in measured.latency.items()},
        "speedup": {**over_fp32, "int8_over_int8": measured.speedup_over("dense_int8")["pruned_int8"][0]},
        "conditions": measured.conditions[0],
    }


# What is kept


def load(data: Json, options: Options, path: Path) -> Json:
    """What an earlier call measured on this machine, or a fresh start."""
    machine = fingerprint()
    fresh = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine,
        "machine_key": machine_key(machine),
        "weights": f"random, seed {SEED}",
        "papers": data["papers"],
        "networks": {},
    }
    earlier = read_json(path) if path.is_file() else {}
    same = earlier.get("machine_key") == fresh["machine_key"]
    return {**fresh, "networks": earlier["networks"]} if same else fresh


def cells(state: Json, network: Json) -> dict[int, Json]:
    """The network's measured cells by length; none where its shape was another then."""
    entry = state["networks"].get(network["name"])
    if entry is None or entry["published"]["parameters"] != network["parameters"]:
        return {}
    return {cell["sequence_length"]: cell for cell in entry["cells"]}


def record(data: Json, state: Json, network: Json, models: Mapping[str, Path], cell: Json) -> None:
    """Put a cell into the state, with what is known of its network."""
    made = {**cells(state, network), cell["sequence_length"]: cell}
    published = {key: value for key, value in network.items() if key not in SHAPE}
    speed = data["papers"][network["paper"]]["speed"]
    own = round(network["speedup"] / speed["dense_speedups"][network["base"]], 4)
    state["networks"][network["name"]] = {
        "published": {**published, "speedup_over": speed["over"], "speedup_over_own_base": own},
        "headline": is_headline(data, network),
        "parameters": network["parameters"],
        "sliced_density": structure(data, network).density(),
        "file_bytes": {name: path.stat().st_size for name, path in models.items()},
        "cells": [made[length] for length in sorted(made)],
    }


def save(data: Json, state: Json, options: Options, path: Path) -> None:
    ordered = networks_of(data)
    had = state["networks"]
    state["networks"] = {n["name"]: had[n["name"]] for n in ordered if n["name"] in had}
    state["missing"] = [
        f"{network['name']} at {length} tokens"
        for network in ordered
        for length in options.lengths
        if length not in cells(state, network)
    ]
    write_json(path, state)


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
        f"- Ours: random weights, batch 1, no padding, {THREADS} threads of {machine['cpu']}, onnxruntime "
        f"{machine['versions']['onnxruntime']}; 95 % intervals; all over the network's own base dense in fp32, "
        f"unless over int8. \\* is noisy. `{state['command']}`"
    ]
    for paper in state["papers"].values():
        speed = paper["speed"]
        padded = ", ".join(f"{task} {length}" for task, length in speed["padded_to"].items())
        lines.append(
            f"- Published: {paper['title']}, {paper['source']}. Speed: {speed['what']}; {speed['framework']} "
            f"{speed['precision']} on one {speed['gpu']}, batch {speed['batch_size']}, padded to ({padded})."
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

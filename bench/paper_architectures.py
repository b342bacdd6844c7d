"""Published pruned networks, rebuilt with random weights and timed on onnxruntime against their dense base.

    python bench/paper_architectures.py --budget 70     # measures, or goes on where the last call stopped
    python bench/paper_table.py                         # what was measured beside what was published

`paper_architectures.json` says what each network keeps and what its paper claims: the 27 of block movement
pruning (Lagunas et al. 2021) and CoFi's on MNLI (Xia et al. 2022). A network is cut out of a dense BERT of its size,
must have exactly the published number of parameters, and is exported and quantized as a recipe does it. A cell is one
network at one length, batch 1: the dense and the pruned model, each in fp32 and int8, in turns in the same processes.
Every cell is saved as it is measured. Published speeds are PyTorch's on a GPU at batch 128: another machine, another
question.
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

import torch
import transformers
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
from compressor.report.fields import speedup_text
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
SEED = 0
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
    options = Options(arguments.networks, arguments.lengths, arguments.seconds, arguments.processes)
    state = run(data, options, arguments.budget, arguments.output)
    print("missing:", "; ".join(state["missing"]) or "nothing")


def parser(names: Sequence[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--budget", type=float, required=True, metavar="MINUTES", help="measure for so long")
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
    return bool(paper_of(data, network)["headline"] == network["name"])


def paper_of(data: Json, network: Json) -> Json:
    """What its paper is, and what its claims are about."""
    found: Json = data["papers"][network["paper"]]
    return found


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
            cell = time_cell(models, Cell("cpu", paper_of(data, network)["threads"], 1, length), effort)
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


def time_cell(models: Mapping[str, Path], cell: Cell, effort: Mapping[str, Any]) -> Json:
    """One cell; its rows are those of a run's `results.json`, one a variant, speedups over `dense_fp32`."""
    measured = measure(models, [cell], reference="dense_fp32", **effort)
    over_fp32 = {name: rows[0] for name, rows in measured.speedup.items()}
    return {
        "sequence_length": cell.sequence_length,
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
    speed = paper_of(data, network)["speed"]
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


if __name__ == "__main__":
    main()

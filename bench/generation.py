"""The published pruned BART-base, rebuilt with random weights: reading, a step of the decoder, and a whole summary.

    python bench/generation.py --budget 40     # measures, or goes on where the last call stopped

Block movement pruning's network of 23 % (Lagunas et al. 2021; CNN/DailyMail, ROUGE-2 18.7 against 19.4 at 35 %) is
described by its FFN widths, by the 61 of its 216 heads that are empty, and by how much of each layer's attention is
not zero. Which heads are empty was not published: here they are spread over layers by that density, and evenly over
the three attentions. The authors' tool cut no heads of BART, only FFN neurons: `d23-ffn` is what theirs left. A cell
is one network at one length of text, batch 1: dense and pruned in fp32 and int8, in turns in the same processes, for
each part. Every cell is saved as it is measured.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.log import quiet_libraries

quiet_libraries()

import torch
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel

from compressor.benchmark.harness import DEFAULTS, measure
from compressor.benchmark.machine import fingerprint, machine_key
from compressor.benchmark.schema import Cell
from compressor.files import read_json, write_json
from compressor.models.architecture import structure_of
from compressor.models.measures import measures
from compressor.models.parity import TOLERANCE
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.onnx.export import check_parity
from compressor.onnx.graph import file_bytes
from compressor.onnx.quantize import Scheme, quantize
from compressor.onnx.writer import export_writer
from compressor.parts import PARTS_FILE, graphs_of, parts_of
from compressor.report.fields import speedup_text
from compressor.stages.export import Export
from compressor.stages.quantize import Quantize

Json = dict[str, Any]

OUTPUT = Path("bench/results/generation.json")
FFN = {"encoder": (68, 57, 75, 84, 88, 107), "decoder": (30, 216, 244, 249, 115, 170)}
EMPTY = (8, 11, 11, 12, 11, 8)
"""Empty heads by layer, of encoder and decoder together: 61, shared out by what of the attention weights is zero."""
ATTENTIONS = (("encoder", "attention"), ("decoder", "attention"), ("decoder", "cross_attention"))
PUBLISHED = {
    "source": "Lagunas et al. 2021, hub cards of bart-base-cnn-r2-18.7-d23-hybrid",
    "linear_density": 0.2329,
    "attention_density": 0.489,
    "ffn_density": 0.041,
    "heads_empty": "61/216",
    "rouge2": 18.72,
    "speed": "no speed was published for BART",
}
NETWORKS = ("d23", "d23-ffn")
THREADS, SEED = 2, 0
SLOWEST = 240.0
"""Seconds that the first cell is expected to take, its export too."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how carefully; `config` has other sizes in tests."""

    networks: Sequence[str] = NETWORKS
    lengths: Sequence[int] = (512, 1024)
    tokens: int = 60
    seconds: float = 3 * DEFAULTS.seconds
    processes: int = 3
    threads: int = THREADS
    config: BartConfig | None = None


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--budget", type=float, required=True, metavar="MINUTES", help="measure for so long")
    made.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    made.add_argument("--lengths", nargs="+", type=int, default=Options.lengths, metavar="TOKENS")
    made.add_argument("--seconds", type=float, default=Options.seconds, help="of a cell in each process")
    made.add_argument("--processes", type=int, default=Options.processes, help="of a cell")
    made.add_argument("--output", type=Path, default=OUTPUT)
    given = made.parse_args()
    options = Options(given.networks, given.lengths, seconds=given.seconds, processes=given.processes)
    state = run(options, given.budget, given.output)
    print("missing:", "; ".join(state["missing"]) or "nothing")


def structure(dense: Structure, network: str) -> Structure:
    """What a network keeps. Counts are enough: for speed, the first units of a layer are as good as any."""
    kept = {}
    for layer, name, sub in dense.each():
        if name == "ffn":
            units = FFN[layer.stack][layer.index]
        elif network == "d23":
            units = len(sub.kept) - gone(layer.index)[layer.stack, name]
        else:
            continue
        kept[layer.stack, layer.index, name] = SubLayer(sub.kept[:units])
    return dense.keeping(kept)


def gone(layer: int) -> dict[tuple[str, str], int]:
    """Empty heads of each attention at this place of the stacks: as even as the number allows."""
    every, more = divmod(EMPTY[layer], len(ATTENTIONS))
    return {attention: every + (number < more) for number, attention in enumerate(ATTENTIONS)}


def dense_model(options: Options) -> PreTrainedModel:
    """BART-base with random weights; biases are random too: zeros could be folded away."""
    torch.manual_seed(SEED)
    model: PreTrainedModel = BartForConditionalGeneration(options.config or base_config())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def base_config() -> BartConfig:
    """The sizes of facebook/bart-base."""
    stacks = {f"{stack}_{key}": value for stack in ("encoder", "decoder")
              for key, value in {"layers": 6, "attention_heads": 12, "ffn_dim": 3072}.items()}  # fmt: skip
    return BartConfig(vocab_size=50265, d_model=768, max_position_embeddings=1024, **stacks)


# Measuring


def run(options: Options, minutes: float, output: Path) -> Json:
    """Measure the cells that are missing, as far as the budget goes; returns what `output` holds then."""
    end, slowest = time.monotonic() + 60 * minutes, SLOWEST if options.config is None else 0.0
    state = load(output)
    with tempfile.TemporaryDirectory() as folder:
        for network, length in list(lacking(state, options)):
            start = time.monotonic()
            if start + slowest > end:
                break
            models = exported(options, network, Path(folder), state)
            cell = time_cell(models, options, length)
            state["networks"][network]["cells"] += [cell]
            save(state, options, output)
            slowest = max(slowest, time.monotonic() - start)
            rows = cell["speedup"]["pruned_fp32"]
            print(network, length, *(f"{row['part']} {speedup_text(row)}" for row in rows), flush=True)
    save(state, options, output)
    return state


def lacking(state: Json, options: Options) -> Iterator[tuple[str, int]]:
    """Cells (network, length) asked for and not yet measured with this effort or more."""
    for network in options.networks:
        for length in options.lengths:
            had = [
                c
                for c in state["networks"].get(network, {}).get("cells", [])
                if c["sequence_length"] == length
            ]
            least = {"seconds": options.seconds, "processes": options.processes}
            if not any(all(c["conditions"][0][key] >= value for key, value in least.items()) for c in had):
                yield network, length


def exported(options: Options, network: str, folder: Path, state: Json) -> dict[str, Path]:
    """The folders of the four variants; those of the dense model are made once."""
    model = dense_model(options)
    small = slice_model(model, structure(structure_of(model), network))
    for name, one in (("dense", model), (network, small)):
        if not (folder / f"{name}_fp32").is_dir():
            export(one, options, folder, name)
    entry = state["networks"].setdefault(network, {"published": PUBLISHED, "cells": []})
    models = {
        f"{variant}_{precision}": folder / f"{name}_{precision}"
        for precision in ("fp32", "int8")
        for variant, name in (("dense", "dense"), ("pruned", network))
    }
    entry |= measures(small) | {"heads": structure_of(small).heads()}
    entry["file_bytes"] = {
        name: sum(file_bytes(path / graph) for graph in graphs_of(path)) for name, path in models.items()
    }
    return models


def export(model: PreTrainedModel, options: Options, folder: Path, name: str) -> None:
    """Write both precisions; the graphs in fp32 must compute what `model` does."""
    source, target = folder / f"{name}_fp32", folder / f"{name}_int8"
    source.mkdir()
    target.mkdir()
    export_writer(model, Export().opset, source, options.tokens)
    check_parity(model, source, TOLERANCE)
    scheme = Scheme(reduce_range=Quantize().reduces_range())
    for graph in graphs_of(source):
        quantize(source / graph, target / graph, scheme)
    (target / PARTS_FILE).write_bytes((source / PARTS_FILE).read_bytes())


def time_cell(models: Mapping[str, Path], options: Options, length: int) -> Json:
    """One length of text; rows are those of a run's `results.json`, one a part, speedups over `dense_fp32`."""
    parts = [part.name for part in parts_of(models["dense_fp32"])]
    measured = measure(
        models,
        [Cell("cpu", options.threads, 1, length, part) for part in parts],
        reference="dense_fp32",
        seconds=options.seconds,
        processes=options.processes,
    )
    over_int8 = measured.speedup_over("dense_int8")["pruned_int8"]
    return {
        "sequence_length": length,
        "tokens": options.tokens,
        "latency": measured.latency,
        "speedup": {**measured.speedup, "int8_over_int8": over_int8},
        "conditions": measured.conditions,
    }


# What is kept


def load(path: Path) -> Json:
    """What an earlier call measured on this machine, or a fresh start."""
    machine = fingerprint()
    fresh: Json = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine,
        "machine_key": machine_key(machine),
        "weights": f"random, seed {SEED}",
        "networks": {},
    }
    earlier = read_json(path) if path.is_file() else {}
    same = earlier.get("machine_key") == fresh["machine_key"]
    return {**fresh, "networks": earlier["networks"]} if same else fresh


def save(state: Json, options: Options, path: Path) -> None:
    state["missing"] = [f"{network} at {length} tokens" for network, length in lacking(state, options)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, state)


if __name__ == "__main__":
    main()

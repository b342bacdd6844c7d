"""What masks and gates cost a training step: movement and CoFi against plain distillation, and where the rest goes.

    python bench/training_step.py --budget 10

Both steps are timed in turns, in one process, on random batches of real shapes: forward, backward, clipping and AdamW
with distillation from stored logits. The ratio's interval is over pairs of adjacent steps. The profile sums torch's
own operators by what they are for.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from compressor.benchmark.machine import fingerprint
from compressor.files import write_json
from compressor.models.architecture import structure_of
from compressor.pruning.cofi import Cofi
from compressor.pruning.cofi.masking import Masking
from compressor.pruning.cofi.training import CofiPart
from compressor.pruning.cofi.values import ParameterShare
from compressor.pruning.context import TrainingPart
from compressor.pruning.movement import Movement
from compressor.pruning.movement.masks import Masks
from compressor.pruning.movement.patches import Patches
from compressor.pruning.movement.training import MovementPart
from compressor.training.distillation import divergence

SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
}
CELLS = (("minilm", 32, 32), ("minilm", 16, 128), ("bert-base", 16, 128))
"""Model, batch size, tokens: MiniLM on SST-2's short texts, and the usual 128."""
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "hybrid": {},
    "struct": {"variant": "struct"},
    "hybrid, NoNorm and ReLU": {"nonorm": 0.45, "relu": 0.45},
    "cofi": {"method": "cofi"},
}
PURPOSES = {
    "matrix products": ("mm", "bmm", "matmul", "linear", "attention"),
    "optimiser": ("adam", "foreach", "clip"),
    "masks and their gradients": ("Masked", "einsum", "repeat_interleave", "sum", "mul"),
    "norms, softmax, activations, dropout": (
        "norm",
        "softmax",
        "gelu",
        "dropout",
        "bernoulli",
        "tanh",
        "relu",
    ),
}
"""Operators by a part of their name; the first purpose that fits has them."""

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=10.0, metavar="MINUTES")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("bench/results/training_step.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "threads": options.threads}
    made["machine"] = fingerprint()
    cells = []
    wanted = [cell for cell in CELLS if cell[0] in options.shapes]
    for shape, batch, length in wanted:
        steps = {name: step_of(shape, batch, length, keys) for name, keys in VARIANTS.items()}
        compared = compare(steps, 60 * options.budget / len(wanted))
        profiles = {name: purposes(step) for name, step in steps.items()}
        where = {"shape": shape, "batch_size": batch, "length": length}
        cells.append({**where, **compared, "profile_ms": profiles})
        for name, (value, (low, high)) in compared["ratio"].items():
            print(f"{shape} {batch} x {length}: {name} {value:.2f}x [{low:.2f}, {high:.2f}] of plain")
        write_json(options.output, made | {"cells": cells})


def step_of(
    shape: str, batch: int, length: int, keys: dict[str, Any] | None, device: str = "cpu", bf16: bool = False
) -> Step:
    """A training step on a fresh model; on a GPU it ends when the device is done."""
    torch.manual_seed(0)
    config = BertConfig(num_attention_heads=12, num_labels=2, **SHAPES[shape])
    model: PreTrainedModel = BertForSequenceClassification(config).train().to(device)
    part = None if keys is None else part_of(model, keys)
    groups = part.parameter_groups() if part else []
    scores = {id(p) for group in groups for p in group["params"]}
    weights = [p for p in model.parameters() if id(p) not in scores]
    optimiser = torch.optim.AdamW([{"params": weights, "lr": 1e-9}, *groups], fused=True)
    ids = torch.randint(1000, 20000, (batch, length), device=device)
    labels = torch.randint(0, 2, (batch,), device=device)
    teacher = torch.randn(batch, 2, device=device)

    def step() -> None:
        if part:
            part.before_step(50, 100)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            outputs = model(input_ids=ids, labels=labels)
            loss = 0.9 * divergence(outputs.logits, teacher, 2.0) + 0.1 * outputs.loss
        extra = part.loss() if part else None
        loss = loss if extra is None else loss + extra
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def part_of(model: PreTrainedModel, keys: dict[str, Any]) -> TrainingPart:
    """What a method adds to a step, attached to the model."""
    if keys.get("method") != "cofi":
        movement = Movement(method="movement", **keys)
        return MovementPart(Masks(model, movement), Patches(model, movement), movement)
    structure = structure_of(model)
    gates = Cofi(**keys).gates(structure)
    Masking(model, gates)
    part = CofiPart(gates, ParameterShare(structure.sizes), 1e-2, lambda steps: steps // 2, 0.005, 0)
    part.aim(0.0, 0.6)
    return part


def compare(steps: dict[str, Step], seconds: float) -> dict[str, Any]:
    """Median milliseconds of each step, and ratios to the plain one with 95 % intervals."""
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end, dice = time.monotonic() + seconds, random.Random(0)
    while time.monotonic() < end or len(times["plain"]) < 10:
        for name in dice.sample(list(steps), len(steps)):
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    plain = np.array(times.pop("plain"))
    return {
        "rounds": len(plain),
        "plain_ms": float(1e3 * np.median(plain)),
        "ms": {name: float(1e3 * np.median(values)) for name, values in times.items()},
        "ratio": {name: interval(np.array(values) / plain) for name, values in times.items()},
    }


def interval(ratios: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Median and its 95 % interval from resampled rounds."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(ratios)), (float(low), float(high))


def purposes(step: Step, times: int = 3) -> dict[str, float]:
    """Milliseconds of a step's operators by what they are for."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(times):
            step()
    sums = dict.fromkeys([*PURPOSES, "other"], 0.0)
    for event in found.key_averages():
        fits = (what for what, names in PURPOSES.items() if any(name in event.key for name in names))
        sums[next(fits, "other")] += event.self_cpu_time_total / 1e3 / times
    return {what: round(value, 2) for what, value in sums.items()}


if __name__ == "__main__":
    main()

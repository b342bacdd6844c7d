"""A timer that knows what every graph costs: it reads the widths out of the file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from compressor.benchmark.encoder_graph import EncoderShape
from compressor.benchmark.latency_fit import Timing
from compressor.benchmark.statistics import Interval

SHAPE = EncoderShape("bert", 4, 32, 4, 8, 2048, embedding=32, positions=64, classifier=32)
BASE, CONSTANT = 0.4, 0.02


def attention_ms(heads: int) -> float:
    return 0.3 + 0.1 * heads


def ffn_ms(neurons: int) -> float:
    return 0.2 + 0.001 * neurons + (0.3 if neurons % 1024 == 0 else 0.0)


def widths_in(graph: onnx.GraphProto, head_size: int) -> list[tuple[int | None, int | None]]:
    """The widths of each layer of a graph, by its weights."""
    sizes = {tensor.name.removesuffix("_quantized"): tensor.dims for tensor in graph.initializer}
    layers = {int(found[1]) for name in sizes if (found := re.match(r"layer\.(\d+)\.", name))}

    def units(prefix: str, size: int) -> int | None:
        if f"{prefix}.norm.weight" not in sizes:
            return None
        return sizes[f"{prefix}.input.0.weight"][1] // size if f"{prefix}.input.0.weight" in sizes else 0

    return [
        (units(f"layer.{layer}.attention", head_size), units(f"layer.{layer}.ffn", 1))
        for layer in sorted(layers)
    ]


def true_ms(layers: list[tuple[int | None, int | None]]) -> float:
    """What such layers take, with all around them."""
    total = BASE
    for heads, ffn in layers:
        total += 0.0 if heads is None else attention_ms(heads) if heads else CONSTANT
        total += 0.0 if ffn is None else ffn_ms(ffn) if ffn else CONSTANT
    return total


@dataclass
class Stopwatch:
    """Times graphs by `true_ms`. `noise` scatters its results, `width` is how uncertain it calls them.

    `whole` is how many times longer whole models take than their parts say, `strange` the pruned ones of them.
    """

    noise: float = 0.0
    width: float = 0.01
    whole: float = 1.0
    strange: float = 1.0
    head_size: int = SHAPE.head_size
    disturbance: str | None = None
    seed: int = 0
    asked: list[list[str]] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def __call__(self, models: Mapping[str, Path], reference: str) -> Timing:
        self.asked.append([name for name in models if name != reference])
        times = {name: self._ms(name, path) for name, path in models.items()}
        base = times.pop(reference)
        shares = {name: ms / base for name, ms in times.items()}
        half = self.width
        multiples = {name: Interval(one, one * (1 - half), one * (1 + half)) for name, one in shares.items()}
        return Timing(base, multiples, self.disturbance)

    def _ms(self, name: str, path: Path) -> float:
        graph = onnx.load(path).graph
        self.operators |= {node.op_type for node in graph.node}
        ms = true_ms(widths_in(graph, self.head_size))
        if name.startswith("probe"):
            ms *= self.whole * (1.0 if name == "probe-dense" else self.strange)
        return ms * float(np.exp(self.noise * self.rng.standard_normal()))

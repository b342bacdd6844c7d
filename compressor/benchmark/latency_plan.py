"""Which graphs a latency table is measured with: stacks of equal layers, and whole models to check it against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from compressor.benchmark.encoder_graph import EncoderShape, Widths

COPIES = 3
"""Equal layers in a stack, above a dense one; a layer alone is timed wrongly by up to a third."""
RATIO = 0.75
"""From one measured FFN width to the next smaller one."""
STEP = 16
"""FFN widths are multiples of this, as matrix kernels work in such blocks."""
ALIASED = 1024
"""Multiples of this are measured for themselves: rows 4 KiB apart collide in the caches of some processors."""
MOST_HEADS = 12
"""Numbers of heads that are measured, at most."""
PROBES = (0.8, 0.6, 0.45, 0.3, 0.15)
"""Shares kept by the whole models that a table is checked against, beside the dense one."""
GROUP_BYTES, GROUP_MODELS = 768 * 2**20, 16
"""What is open at once in a measuring process."""


@dataclass(frozen=True)
class Candidate:
    """A graph to time: its name, and the widths of its layers."""

    name: str
    layers: tuple[Widths, ...]


def level_name(kind: str, units: int | None) -> str:
    """The name of the stack in which a sub-layer keeps so many units (`None`: is absent)."""
    return f"{kind}-{'absent' if units is None else units}"


REFERENCE, ALONE, PROBE = "dense-stack", "one-head", "probe-"


def head_levels(heads: int) -> list[int]:
    """Numbers of heads to measure: all, or steps of equal size where there are many."""
    step = ceil(heads / MOST_HEADS)
    return sorted({1, *range(heads, 0, -step)})


def ffn_levels(neurons: int) -> list[int]:
    """FFN widths to measure: all, a block fewer, then ever narrower ones; and those that may alias."""
    levels, width = {neurons, min(STEP, neurons)}, float(neurons)
    while (width := width * RATIO) > STEP:
        levels.add(max(STEP, round(width / STEP) * STEP))
    levels -= set(range(ALIASED, neurons, ALIASED))
    if neurons > STEP:
        levels.add((neurons - 1) // STEP * STEP)
    return sorted(levels | set(range(ALIASED, neurons, ALIASED)))


def levels_of(shape: EncoderShape) -> dict[str, list[int]]:
    """The units to measure of each kind of sub-layer, ascending, all units last."""
    return {"attention": head_levels(shape.heads), "ffn": ffn_levels(shape.ffn)}


def reference_of(shape: EncoderShape) -> Candidate:
    """The dense stack that everything is timed beside."""
    return Candidate(REFERENCE, (shape.dense,) * (COPIES + 1))


def stack(shape: EncoderShape, kind: str, units: int | None) -> Candidate:
    """Equal layers, dense but for `units` in their sub-layers of this kind, above a dense layer.

    The dense layer keeps what all layers share (the attention mask) in every stack, so that it cancels.
    """
    widths = (units, shape.ffn) if kind == "attention" else (shape.heads, units)
    return Candidate(level_name(kind, units), (shape.dense, *[widths] * COPIES))


def plan(shape: EncoderShape, seed: int = 0) -> tuple[list[Candidate], list[Candidate]]:
    """What must be measured (the reference first), and what may be added, what tells most first."""
    needed = [reference_of(shape), Candidate(ALONE, ((1, None),))]
    further: list[Candidate] = []
    for kind, levels in levels_of(shape).items():
        must, may = _coarse_first(levels[:-1])
        needed += [stack(shape, kind, units) for units in (None, 0, *must)]
        further += [stack(shape, kind, units) for units in may]
    return needed + list(probes(shape, seed)), further


def _coarse_first(levels: list[int]) -> tuple[list[int], list[int]]:
    """Every fourth level with both ends, and the others: first those that halve the gaps."""
    must = sorted({*levels[::4], *levels[-1:]})
    return must, [units for units in [*levels[2::4], *levels[1::2]] if units not in must]


def probes(shape: EncoderShape, seed: int) -> Iterator[Candidate]:
    """Whole models: the dense one, and uneven random ones in which some sub-layers are absent."""
    yield Candidate(f"{PROBE}dense", (shape.dense,) * shape.layers)
    rng = np.random.default_rng(seed)
    for number, share in enumerate(PROBES):
        layers = [
            (_uneven(rng, shape.heads, 1, share), _uneven(rng, shape.ffn, STEP, share))
            for _ in range(shape.layers)
        ]
        if not any(heads for heads, _ in layers):
            layers[0] = (1, layers[0][1])
        yield Candidate(f"{PROBE}{number}", tuple(layers))


def _uneven(rng: np.random.Generator, units: int, step: int, share: float) -> int | None:
    """Around `share` of the units, in steps; or, the more often the smaller the share, absent."""
    if rng.random() < (1 - share) / 2:
        return None
    wanted = units * float(np.clip(share * rng.uniform(0.5, 1.5), 0, 1))
    return min(units, max(1, round(wanted / step)) * step)


def groups(candidates: Iterable[Candidate], shape: EncoderShape) -> Iterator[list[Candidate]]:
    """The candidates in order, as many at a time as may be open at once beside the reference."""
    group: list[Candidate] = []
    reference = shape.file_bytes(reference_of(shape).layers)
    size = reference
    for candidate in candidates:
        more = shape.file_bytes(candidate.layers)
        if group and (size + more > GROUP_BYTES or len(group) + 1 >= GROUP_MODELS):
            yield group
            group, size = [], reference
        group.append(candidate)
        size += more
    if group:
        yield group

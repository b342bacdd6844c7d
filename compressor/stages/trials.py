"""The graphs that `quantize: {mode: auto}` tries: how fast each is, what it loses, where its time and error lie."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.files import appearing, digest
from compressor.parts import MODEL_FILE
from compressor.stages.base import DENSE, Work
from compressor.stages.selection import Loss, Selection

if TYPE_CHECKING:
    from compressor.benchmark.race import Race
    from compressor.benchmark.statistics import Interval
    from compressor.onnx.products import Group
    from compressor.onnx.quantize import Scheme
    from compressor.stages.quantize import Quantize

ROUGH = 2
"""Examples that calibrate a graph of which only the speed is asked: calibration does not change it."""
LEAST_GAIN = 0.01
PRODUCTS = ("MatMul",)
FP32 = "fp32"
MAX_DROP = 0.01
"""Loss that is accepted, against the same model in fp32, where the recipe's gates name none."""


@dataclass
class Trials:
    """Every graph is made once, timed against fp32 in the first benchmark cell, scored on the selection split."""

    work: Work
    keys: Quantize
    losses: dict[Scheme, Loss] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        """The fp32 graph."""
        return self.work.source / MODEL_FILE

    @cached_property
    def judge(self) -> tuple[Path, float]:
        """The graph that losses are against, and how much may be lost: where gates say so, of the dense model."""
        gates, dense = self.work.gates, self.work.source.with_name(DENSE) / MODEL_FILE
        if not dense.is_file():
            dense = self.source
        limits = [] if gates.max_metric_drop is None else [gates.max_metric_drop]
        if gates.max_metric_drop_relative is not None:
            limits.append(gates.max_metric_drop_relative * abs(self._selection.metric(dense)))
        return (dense, min(limits)) if limits else (self.source, MAX_DROP)

    @property
    def allowed(self) -> float:
        """How much may be lost of the primary metric."""
        return self.judge[1]

    # Speed

    @cached_property
    def race(self) -> Race:
        """All timings so far."""
        from compressor.benchmark.race import Race

        cell = self.work.benchmark.cells()[0]
        return Race(cell, FP32, {FP32: self.source}, self.work.progress)

    def time(self, schemes: Iterable[Scheme]) -> None:
        """Time schemes against each other and fp32."""
        names = {self._speed_name(scheme): scheme for scheme in schemes}
        for name, scheme in names.items():
            if name not in self.race.files:
                self.race.files[name] = self.file(scheme, rough=True)
        self.race.run(list(names))

    def speedup(self, scheme: Scheme, over: Scheme | None = None) -> Interval:
        """How many times faster a scheme that was timed is than fp32, or than another that was timed with it."""
        return self.race.speedup(self._speed_name(scheme), self._speed_name(over) if over else None)

    def not_faster(self, scheme: Scheme) -> list[Group]:
        """The groups of matrix products that take as long in this scheme's graph as in fp32, by their profiles.

        None where all that they would gain in fp32 is under a hundredth of the products' time.
        """
        from compressor.benchmark.sessions import open_session, random_inputs
        from compressor.onnx.products import group_times

        cell = self.race.cell
        session = open_session(self.source, "cpu", cell.threads)
        inputs = random_inputs(session, cell.batch_size, int(cell.sequence_length), self.work.seed)
        every = self.groups(scheme, PRODUCTS)
        files = (self.source, self.race.files[self._speed_name(scheme)])
        fp32, int8 = (group_times(file, inputs, cell.threads, every) for file in files)
        gain = {group: after - before for group, before, after in zip(every, fp32, int8, strict=True)}
        slow = [group for group in every if gain[group] >= 0]
        return slow if sum(gain[group] for group in slow) > LEAST_GAIN * sum(int8) else []

    # Accuracy

    def loss(self, scheme: Scheme) -> Loss:
        """What a scheme loses on the selection split."""
        if scheme not in self.losses:
            against, allowed = self.judge
            self.losses[scheme] = self._selection.loss(against, self.file(scheme), allowed)
        return self.losses[scheme]

    def worst_first(self, scheme: Scheme) -> list[Group]:
        """All that a scheme quantizes, in groups, ordered by how far the logits move when it alone is quantized."""
        import onnx

        from compressor.onnx.products import leave_out

        every = self.groups(scheme, scheme.operators)
        graphs = onnx.load(self.source), onnx.load(self.file(scheme))
        errors = {}
        with tempfile.TemporaryDirectory(dir=self.work.scratch) as folder:
            for number, group in enumerate(every):
                self.work.progress("which operators cost accuracy", number / len(every))
                others = {node for other in every if other != group for node in other.nodes}
                alone = Path(folder) / f"{number}.onnx"
                onnx.save(leave_out(*graphs, others), alone)
                errors[group] = self._selection.error(self.source, alone)
                alone.unlink()
        return sorted(every, key=lambda group: -errors[group])

    @cached_property
    def _selection(self) -> Selection:
        return Selection(self.work)

    # Graphs

    def groups(self, scheme: Scheme, operators: Sequence[str]) -> list[Group]:
        """The groups of these operators that a scheme quantizes."""
        from compressor.onnx.products import groups

        return [g for g in groups(self.source, operators) if not set(g.nodes) <= set(scheme.exclude)]

    def file(self, scheme: Scheme, rough: bool = False) -> Path:
        """The graph of a scheme; a rough one serves for timing alone."""
        from compressor.onnx.quantize import quantize, quantize_with

        rough = rough and scheme.mode == "static"
        path = self.work.scratch / f"{self._name(scheme)}{'-rough' if rough else ''}.onnx"
        if not path.exists():
            with appearing(path) as temporary:
                if scheme.mode == "static":
                    quantize_with(self.source, temporary, scheme, self._ranges(scheme, rough))
                else:
                    quantize(self.source, temporary, scheme)
        return path

    def _ranges(self, scheme: Scheme, rough: bool) -> Path:
        """Ranges of activations, whatever is left out of the scheme afterwards."""
        from compressor.onnx.quantize import calibrate

        examples = ROUGH if rough else self.keys.calibration.examples
        path = self.work.scratch / f"{scheme.calibration}-{scheme.symmetric}-{examples}.json"
        if not path.exists():
            with appearing(path) as temporary:
                calibrate(self.source, temporary, scheme, self.keys.batches(self.work, scheme, examples))
        return path

    def _name(self, scheme: Scheme) -> str:
        return f"{label(scheme)}-{digest(scheme.exclude)[:8]}" if scheme.exclude else label(scheme)

    def _speed_name(self, scheme: Scheme) -> str:
        return self._name(replace(scheme, calibration="minmax"))


def label(scheme: Scheme) -> str:
    """A scheme's name in tables and files."""
    parts: list[str] = [scheme.mode]
    if scheme.mode != "fp16":
        parts.append("per-channel" if scheme.per_channel else "per-tensor")
    if scheme.mode == "static":
        parts += [scheme.calibration, "symmetric" if scheme.symmetric else "asymmetric"]
    if scheme.exclude:
        parts.append(f"without-{len(scheme.exclude)}-nodes")
    return "-".join(parts)

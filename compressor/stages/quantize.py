"""`quantize`: the exported model in smaller numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.parts import MODEL_FILE, graphs_of
from compressor.schema import Keys
from compressor.stages.base import Stage, Work
from compressor.stages.export import copy_companions

if TYPE_CHECKING:
    from compressor.benchmark.schema import BenchmarkKeys
    from compressor.onnx.quantize import Inputs, Scheme
    from compressor.stages.release import GateKeys

OF_INT8 = ("operators", "per_channel", "reduce_range")
OF_STATIC = ("symmetric", "calibration")
DECIDED = ("per_channel", "symmetric")
OF_AUTO = ("minutes",)
"""Keys of int8, of its static kind, those that `auto` decides itself, and its own."""


class CalibrationKeys(Keys):
    """How static int8 finds the ranges of activations: over so many training examples, and by which rule."""

    method: Literal["minmax", "entropy", "percentile"] = "percentile"
    examples: Annotated[int, Field(gt=0)] = 128


class Quantize(Stage):
    """Fewer bits: `dynamic` or `static` int8 for CPUs, fp16 for GPUs, or `auto`: the fastest that is accurate enough.

    `dynamic` takes the ranges of activations as they come, `static` calibrates them beforehand on training
    examples: faster, if those are like what will be served. `exclude` names nodes of the graph that stay in fp32
    (`*` stands for anything). `auto` tries nothing more after so many `minutes`; the best so far is taken.

    Example:
        - quantize: {mode: static, calibration: {method: percentile, examples: 128}}
    """

    verb: ClassVar[str] = "quantize"
    version: ClassVar[int] = 5

    mode: Literal["dynamic", "static", "fp16", "auto"] = "dynamic"
    operators: list[Literal["MatMul", "Gather"]] = ["MatMul", "Gather"]
    per_channel: bool = True
    reduce_range: bool | Literal["auto"] = "auto"
    symmetric: bool = False
    calibration: CalibrationKeys = CalibrationKeys()
    exclude: list[str] = []
    minutes: Annotated[float, Field(gt=0)] = 30.0

    @model_validator(mode="after")
    def _only_where_it_applies(self) -> Quantize:
        foreign = {
            "dynamic": (*OF_STATIC, *OF_AUTO),
            "static": OF_AUTO,
            "fp16": (*OF_INT8, *OF_STATIC, *OF_AUTO),
            "auto": DECIDED,
        }[self.mode]
        for key in foreign:
            if key in self.model_fields_set:
                raise ValueError(f"mode {self.mode} has no `{key}`; leave it out")
        if self.mode == "auto" and "method" in self.calibration.model_fields_set:
            raise ValueError("mode auto finds `calibration.method` itself; leave it out")
        return self

    @property
    def precision(self) -> str:
        """As its variants are named: what `auto` takes is only known afterwards."""
        return {"fp16": "fp16", "auto": "auto"}.get(self.mode, "int8")

    @property
    def uses_data(self) -> bool:
        """Whether it is calibrated."""
        return self.mode in ("static", "auto")

    @property
    def uses_metric(self) -> bool:
        """Whether it takes the fastest that is accurate enough."""
        return self.mode == "auto"

    def circumstances(self, benchmark: BenchmarkKeys, gates: GateKeys) -> Any:
        """`reduce_range: auto` follows the CPU; `auto` decides for what is timed first, within the metric gate."""
        if self.mode != "auto":
            return self.reduces_range()
        from compressor.benchmark.machine import fingerprint, machine_key

        limits = [gates.max_metric_drop, gates.max_metric_drop_relative]
        return [machine_key(fingerprint()), benchmark.cells()[0].keys(), *limits]

    def run(self, work: Work) -> dict[str, Any]:
        """Write the quantized graphs beside config and tokenizer."""
        from compressor.onnx.quantize import quantize
        from compressor.onnx.runtime import OnnxModel
        from compressor.stages import auto

        work.progress("quantize", 0.0)
        copy_companions(work.source, work.folder)
        graphs = graphs_of(work.source)
        tried: list[dict[str, Any]] = []
        if self.mode == "auto":
            choice = auto.choose(work, self)
            scheme, tried = auto.write(work, self, choice, work.folder / MODEL_FILE), choice["tried"]
        else:
            scheme = self.scheme(work)
            for name in graphs:
                quantize(work.source / name, work.folder / name, scheme, self.batches(work, scheme))
        for name in graphs:
            OnnxModel(work.folder / name)
        return {
            "precision": scheme.precision if scheme else "fp32",
            "scheme": asdict(scheme) if scheme else None,
            "tried": tried,
        }

    def scheme(self, work: Work) -> Scheme:
        """What its keys say of an exported model (of `auto`: where the search begins)."""
        from compressor.onnx.graph import matching_nodes
        from compressor.onnx.quantize import Scheme

        return Scheme(
            "dynamic" if self.mode == "auto" else self.mode,
            tuple(self.operators),
            self.per_channel,
            self.symmetric,
            self.calibration.method,
            self.reduces_range(),
            tuple(matching_nodes([work.source / name for name in graphs_of(work.source)], self.exclude)),
        )

    def batches(self, work: Work, scheme: Scheme, examples: int | None = None) -> Iterator[Inputs]:
        """Training examples to calibrate with, one by one, as they are served: unpadded."""
        if scheme.mode != "static":
            return
        task, tokenizer = work.data.task, work.tokenizer()
        train = task.examples.train
        chosen = train.sample(min(examples or self.calibration.examples, len(train)), random_state=work.seed)
        features, collate = task.features(chosen, tokenizer), task.collate(tokenizer)
        for number, row in enumerate(features):
            work.progress("calibrate", number / len(features))
            inputs = {name: value for name, value in row.items() if name in tokenizer.model_input_names}
            yield {name: values.numpy() for name, values in collate([inputs]).items()}

    def reduces_range(self) -> bool:
        """Whether weights get 7 bits: where 8 would overflow this CPU's sums, unless the recipe says."""
        if self.reduce_range != "auto":
            return self.reduce_range
        from compressor.benchmark.machine import fingerprint
        from compressor.onnx.presets import preset_for

        return preset_for(fingerprint()["isa"]).reduce_range

"""`quantize`: the exported model in smaller numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.schema import Keys
from compressor.stages.base import Stage, Work
from compressor.stages.export import MODEL_FILE, copy_companions

if TYPE_CHECKING:
    from compressor.onnx.quantize import Inputs, Scheme

OF_INT8 = ("operators", "per_channel", "reduce_range")
OF_STATIC = ("symmetric", "calibration")


class CalibrationKeys(Keys):
    """How static int8 finds the ranges of activations: over so many training examples, and by which rule."""

    method: Literal["minmax", "entropy", "percentile"] = "percentile"
    examples: Annotated[int, Field(gt=0)] = 128


class Quantize(Stage):
    """Fewer bits: `dynamic` or `static` int8 for CPUs, fp16 for GPUs.

    `dynamic` takes the ranges of activations as they come, `static` calibrates them beforehand on training
    examples: faster, if those are like what will be served. `exclude` names nodes of the graph that stay in fp32
    (`*` stands for anything).

    Example:
        - quantize: {mode: static, calibration: {method: percentile, examples: 128}}
    """

    verb: ClassVar[str] = "quantize"
    version: ClassVar[int] = 2

    mode: Literal["dynamic", "static", "fp16"] = "dynamic"
    operators: list[Literal["MatMul", "Gather"]] = ["MatMul", "Gather"]
    per_channel: bool = True
    reduce_range: bool | Literal["auto"] = "auto"
    symmetric: bool = False
    calibration: CalibrationKeys = CalibrationKeys()
    exclude: list[str] = []

    @model_validator(mode="after")
    def _only_where_it_applies(self) -> Quantize:
        foreign = {"dynamic": OF_STATIC, "static": (), "fp16": (*OF_INT8, *OF_STATIC)}[self.mode]
        for key in foreign:
            if key in self.model_fields_set:
                raise ValueError(f"mode {self.mode} has no `{key}`; leave it out")
        return self

    @property
    def precision(self) -> str:
        """As its variants are named."""
        return "fp16" if self.mode == "fp16" else "int8"

    @property
    def uses_data(self) -> bool:
        """Whether it is calibrated."""
        return self.mode == "static"

    def machine(self) -> Any:
        """`reduce_range: auto` follows the CPU."""
        return self._reduce_range()

    def run(self, work: Work) -> dict[str, Any]:
        """Write the quantized `model.onnx` beside config and tokenizer."""
        from compressor.onnx.graph import matching_nodes
        from compressor.onnx.quantize import Scheme, quantize
        from compressor.onnx.runtime import OnnxModel

        work.progress("quantize", 0.0)
        copy_companions(work.source, work.folder)
        scheme = Scheme(
            self.mode,
            tuple(self.operators),
            self.per_channel,
            self.symmetric,
            self.calibration.method,
            self._reduce_range(),
            tuple(matching_nodes(work.source / MODEL_FILE, self.exclude)),
        )
        quantize(work.source / MODEL_FILE, work.folder / MODEL_FILE, scheme, self._batches(work, scheme))
        OnnxModel(work.folder / MODEL_FILE)
        return {"precision": scheme.precision, "mode": self.mode, "reduce_range": scheme.reduce_range}

    def _batches(self, work: Work, scheme: Scheme) -> Iterator[Inputs]:
        """Training examples one by one, as they are served: unpadded."""
        if scheme.mode != "static":
            return
        task, tokenizer = work.data.task, work.tokenizer()
        train = task.examples.train
        chosen = train.sample(min(self.calibration.examples, len(train)), random_state=work.seed)
        features, collate = task.features(chosen, tokenizer), task.collate(tokenizer)
        unwanted = {*task.label_columns, *task.evaluation_columns}
        for number, row in enumerate(features):
            work.progress("calibrate", number / len(features))
            batch = collate([{name: value for name, value in row.items() if name not in unwanted}])
            yield {name: values.numpy() for name, values in batch.items()}

    def _reduce_range(self) -> bool:
        if self.reduce_range != "auto":
            return self.reduce_range
        from compressor.benchmark.machine import fingerprint

        return not {"avx512_vnni", "avx_vnni", "amx_int8", "dotprod"} & set(fingerprint()["isa"])

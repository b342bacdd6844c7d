"""`quantize`: the exported model in int8."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from compressor.stages.base import Stage, Work
from compressor.stages.export import MODEL_FILE, copy_companions


class Quantize(Stage):
    """Dynamic int8: weights are quantized now, activations at run time; needs no calibration data.

    Example:
        - quantize: {mode: dynamic}
    """

    verb: ClassVar[str] = "quantize"

    mode: Literal["dynamic"] = "dynamic"
    operators: list[Literal["MatMul", "Gather"]] = ["MatMul", "Gather"]
    per_channel: bool = True
    reduce_range: bool | Literal["auto"] = "auto"

    def machine(self) -> Any:
        """`reduce_range: auto` follows the CPU."""
        return self._reduce_range()

    def run(self, work: Work) -> dict[str, Any]:
        """Write the quantized `model.onnx` beside config and tokenizer."""
        from compressor.onnx.quantize import quantize_int8_dynamic
        from compressor.onnx.runtime import OnnxModel

        work.progress("quantize", 0.0)
        copy_companions(work.source, work.folder)
        target = work.folder / MODEL_FILE
        reduced = self._reduce_range()
        quantize_int8_dynamic(
            work.source / MODEL_FILE, target, list(self.operators), self.per_channel, reduced
        )
        OnnxModel(target)
        return {"precision": "int8", "mode": self.mode, "reduce_range": reduced}

    def _reduce_range(self) -> bool:
        if self.reduce_range != "auto":
            return self.reduce_range
        from compressor.benchmark.machine import fingerprint

        return not {"avx512_vnni", "avx_vnni", "amx_int8", "dotprod"} & set(fingerprint()["isa"])

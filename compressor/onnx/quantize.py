"""Integer quantization with onnxruntime's own tools."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic


def quantize_int8_dynamic(
    source: Path, target: Path, operators: list[str], per_channel: bool, reduce_range: bool
) -> None:
    """Weights to int8 now, activations to uint8 at run time.

    `reduce_range` (7-bit weights) keeps CPUs without VNNI from overflowing their 16-bit sums.
    """
    with _without_advice():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=operators,
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Drop onnxruntime's advice to run a symbolic-shape pass first, which changes nothing here."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)

"""Latency tables for whoever aims at a time: graphs in the precision that `quantize` makes, kept between runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compressor.cell import Cell
from compressor.files import cache_folder
from compressor.schema import Progress

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from compressor.benchmark.latency_measuring import Timer
    from compressor.benchmark.latency_setting import Setting
    from compressor.benchmark.latency_table import LatencyTable
    from compressor.onnx.quantize import Scheme

Precision = Literal["fp32", "int8", "fp16"]


def scheme_of(precision: Precision) -> Scheme | None:
    """How `quantize` makes a precision where a recipe says nothing more; `None` for fp32. int8 is dynamic."""
    from compressor.onnx.quantize import Scheme
    from compressor.stages.quantize import Quantize

    if precision == "fp32":
        return None
    return Scheme("fp16") if precision == "fp16" else Scheme(reduce_range=Quantize().reduces_range())


def setting_of(
    config: PretrainedConfig, cell: Cell, precision: Precision = "fp32", hidden: int | None = None
) -> Setting:
    """What a table for models with this config belongs to; `hidden` is another hidden width than the model's.

    Raises:
        UserError: no tables can be made of such models, or not in this cell.
    """
    from compressor.benchmark.latency_setting import Setting, shape_of

    scheme = scheme_of(precision)
    conversion = json.loads(json.dumps(asdict(scheme))) if scheme else None
    shape = shape_of(config)
    shape = shape if hidden is None else shape.at_hidden(hidden)
    setting = Setting(shape, cell, precision, conversion)
    setting.check()
    return setting


def tables_folder() -> Path:
    """Where this user's tables are kept."""
    return cache_folder() / "latency-tables"


def latency_table(
    config: PretrainedConfig,
    cell: Cell,
    precision: Precision = "fp32",
    *,
    hidden: int | None = None,
    kept: Sequence[Path] = (),
    timer: Timer | None = None,
    budget: float | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """The table of a model's encoder in `cell`, measured on this machine unless it was before.

    One table is of one hidden width, the model's unless `hidden` says another.
    `kept` are folders that are asked first and get a copy, such as a run's own: a resumed run then decides by
    the table that it began with. `budget`: seconds that measuring may take, about.

    Raises:
        UserError: what this machine or model cannot do.
        GateError: the table does not fit whole models, or the machine is too noisy to tell.
    """
    from compressor.benchmark.latency_measuring import BUDGET, harness_timer, load_or_measure
    from compressor.onnx.quantize import quantize

    setting, scheme = setting_of(config, cell, precision, hidden), scheme_of(precision)

    def convert(source: Path, target: Path) -> None:
        assert scheme is not None
        quantize(source, target, scheme)

    return load_or_measure(
        setting,
        [*kept, tables_folder()],
        timer or harness_timer(cell),
        convert if scheme else None,
        BUDGET if budget is None else budget,
        progress,
    )

"""The tables a verb prints. Every cell is plain text: names never act as console markup."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.models.structure import Layer, Structure, SubLayer
from compressor.report.anatomy import SHARED, every_layer, hidden_text, sublayer_names, sublayer_state
from compressor.report.fields import Results, count_text, listed, main_cell, megabytes, percent
from compressor.report.rows import GateRow, VariantRow, drop_header, gate_rows, metric_header, variant_rows
from compressor.report.side_by_side import caveats, comparison_rows
from compressor.report.verdict import notes, verdict

BAR = 12  # characters
STATE_STYLES = {"passed": "green", "failed": "bold red", "inconclusive": "yellow"}
ROLE_STYLES = {"final": "bold", "baseline": "dim"}


def summary_table(results: Results) -> Table:
    """What a run prints at its end: the verdict, the variants, below them the gates."""
    cell = main_cell(results)
    parts: list[RenderableType] = [Text(verdict(results), style="bold"), _variants(results)]
    if gate_rows(results):
        parts.append(_gates(gate_rows(results)))
    parts += [Text(note, style="yellow") for note in notes(results)]
    if cell is not None:
        parts.append(Text(f"latency and speedup: {cell}; intervals are 95 %", style="dim"))
    grid = Table.grid()
    for part in parts:
        grid.add_row(part)
        grid.add_row("")
    return grid


def _variants(results: Results) -> Table:
    table = _table("variant", metric_header(results), drop_header(results), "speedup", "p50", "size")
    for row in variant_rows(results):
        _add(table, [row.name, *_numbers(row)], ROLE_STYLES.get(row.role, ""))
    return table


def _numbers(row: VariantRow) -> list[str]:
    speedup = f"{row.speedup} noisy" if row.noisy else row.speedup
    return [row.metric, row.drop, speedup, row.p50, row.size]


def _gates(rows: list[GateRow]) -> Table:
    table = _table("gate", "limit", "value", "variant", "")
    for row in rows:
        cells = [Text(word) for word in (row.name, row.limit, row.value, row.variant)]
        table.add_row(*cells, Text(row.state, style=STATE_STYLES[row.state]))
    return table


def compare_table(runs: Sequence[Results]) -> Group:
    """The variants of several runs, times in the first cell they share; below, what limits the comparison."""
    table = _table("run", metric_header(runs[0]), drop_header(runs[0]), "speedup", "p50", "size")
    for row in comparison_rows(runs):
        if row.run:
            style = STATE_STYLES.get(row.state, "")
            table.add_row(Text.assemble((row.run, "bold"), " ", (row.state.replace("none", ""), style)))
        _add(table, [f"  {row.variant.name}", *_numbers(row.variant)], ROLE_STYLES.get(row.variant.role, ""))
    return Group(table, *(Text(note, style="yellow") for note in caveats(runs)))


def inspect_table(structure: dict[str, Any], info: dict[str, Any]) -> Group:
    """What is left of a model, layer by layer, and its sizes.

    Args:
        structure: a Structure as JSON.
        info: what is known beside it, each optional: `name`, `parameters`, `body_parameters`,
            `sliced_density`, `nonzero_density`, `file_bytes`, `operators` (ONNX operator to count).
    """
    left = Structure.from_json(structure)
    parts: list[RenderableType] = [_layers(left, stack) for stack in left.sizes.stacks]
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(left, info):
        facts.add_row(Text(name, style="dim"), Text(value))
    title = [Text(str(info["name"]), style="bold")] if info.get("name") else []
    return Group(*title, *parts, facts)


def _layers(structure: Structure, stack: str) -> Table:
    names = sublayer_names(structure, stack)
    table = _table(stack, *("FFN width" if n == "ffn" else f"{n.replace('_', ' ')} heads" for n in names))
    for column in table.columns:
        column.justify = "left"
    for index, layer in enumerate(every_layer(structure, stack)):
        totals = structure.sizes.stacks[stack]
        cells = (_sublayer(layer, name, totals[name]) for name in names)
        table.add_row(Text(str(index)), *cells)
    return table


def _sublayer(layer: Layer | None, name: str, total: int) -> Text:
    if layer is None:
        return Text("layer removed", style="dim italic")
    sub: SubLayer = layer.sublayers[name]
    if not sub.active:
        return Text(sublayer_state(sub), style="dim italic")
    filled = max(1, round(BAR * len(sub.kept) / total))
    numbers = f"{len(sub.kept):,} of {total:,}"
    return Text.assemble(("█" * filled, "cyan"), ("░" * (BAR - filled), "dim"), " ", numbers)


def _facts(structure: Structure, info: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if structure.sizes.shared:
        yield "shared layers", SHARED
    yield "hidden width", hidden_text(structure).removeprefix("hidden width ")
    yield "density of the layers", percent(structure.density())
    writers: dict[str, Callable[[float | None], str]] = {
        "parameters": count_text,
        "body_parameters": count_text,
        "sliced_density": percent,
        "nonzero_density": percent,
        "file_bytes": megabytes,
    }
    for key, write in writers.items():
        if info.get(key) is not None:
            yield {"file_bytes": "size"}.get(key, key.replace("_", " ")), write(info[key])
    if info.get("operators"):
        counts = sorted(info["operators"].items(), key=lambda item: -item[1])
        yield "operators", listed(f"{name} {count}" for name, count in counts)


def _table(first: str, *others: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0)
    )
    table.add_column(Text(first), overflow="fold")
    for title in others:
        table.add_column(Text(title), justify="right", overflow="fold")
    return table


def _add(table: Table, cells: Iterable[str], style: str) -> None:
    table.add_row(*(Text(cell) for cell in cells), style=style)

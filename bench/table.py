"""The README's table of results and the conditions below it, made from the json files under bench/results/.

python bench/table.py            # prints both
python bench/table.py --write    # puts them into README.md and bench/README.md, between their markers
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.files import read_json, write_text
from compressor.report.fields import main_cell
from compressor.report.rows import metric_header, variant_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
IN_TURNS = "\\*"
"""Marks runs that were timed before the harness ran a model alone for a moment before each timed run."""
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def runs(folder: Path = RESULTS) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """The kept runs of recipes: name, file and results."""
    for path in sorted(folder.glob("*.json")):
        results = read_json(path)
        if "variants" in results:
            yield path.stem.replace("_", "-"), path, results


def table(folder: Path = RESULTS) -> str:
    """A row a variant, the dense model's numbers in brackets."""
    lines = [
        "| run | variant | metric | points lost | speedup | p50 | file |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, _path, results in runs(folder):
        if any("lead" not in one for one in results["conditions"]):
            name += IN_TURNS
        dense, *variants = sorted(variant_rows(results), key=lambda row: row.role != "baseline")
        for row in variants:
            metric = f"{metric_header(results)} {row.metric} ({dense.metric})"
            timed = [row.speedup, f"{row.p50} ({dense.p50})", f"{row.size} ({dense.size})"]
            lines.append(f"| {' | '.join([name, row.name, metric, row.drop, *timed])} |")
            name = ""
    if any(IN_TURNS in line for line in lines):
        lines += [
            "",
            f"{IN_TURNS} Each run was timed right after another model's, whose weights fill the caches: where a "
            "small model is served alone, it is faster than that.",
        ]
    return "\n".join(lines)


def conditions(folder: Path = RESULTS) -> str:
    """A paragraph a run: what it was timed on, and its command."""
    return "\n".join(
        f"- `{name}`: {_conditions(results)} ([json](results/{path.name}))"
        for name, path, results in runs(folder)
    )


def _conditions(results: dict[str, Any]) -> str:
    cell, machine = main_cell(results), results["environment"]
    assert cell is not None
    isa = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in machine["isa"]]
    return (
        f"batch {cell.batch_size}, {cell.sequence_length} tokens, {cell.threads} threads of {machine['cpu']} "
        f"({', '.join(isa)}), onnxruntime {machine['versions']['onnxruntime']}; "
        f"{results['task']['examples']['train']:,} training rows; `{results['command']}`"
    )


PARTS = ((ROOT / "README.md", table), (ROOT / "bench" / "README.md", conditions))


def written(document: str, made: str) -> str:
    """A document with what was made between its markers."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{made}\n{END}", document, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for path, make in PARTS:
        if write:
            write_text(path, written(path.read_text(encoding="utf-8"), make()))
        else:
            sys.stdout.write(make() + "\n\n")


if __name__ == "__main__":
    main()

"""The README's table of results, made from the json files under bench/results/.

python bench/table.py            # prints it
python bench/table.py --write    # puts it into README.md, between its two markers
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from compressor.files import read_json, write_text
from compressor.report.fields import main_cell
from compressor.report.rows import metric_header, variant_rows

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def table(folder: Path = ROOT / "bench" / "results") -> str:
    """One block a run: its variants, and below the machine and the command."""
    lines = [
        "| run | variant | metric | drop (points) | speedup | p50 | file |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for path in sorted(folder.glob("*.json")):
        results = read_json(path)
        if "variants" in results:
            lines += [_row(results, row) for row in variant_rows(results)]
            notes.append(f"- `{results['name']}`: {_conditions(results)} ([json]({path.relative_to(ROOT)}))")
    if not notes:
        return "No results yet."
    return "\n".join([*lines, "", *notes])


def _row(results: dict[str, Any], row: Any) -> str:
    metric = f"{metric_header(results)} {row.metric}"
    cells = [results["name"], row.name, metric, row.drop, row.speedup, row.p50, row.size]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _conditions(results: dict[str, Any]) -> str:
    cell, machine = main_cell(results), results["environment"]
    assert cell is not None
    isa = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in machine["isa"]]
    return (
        f"batch {cell.batch_size}, {cell.sequence_length} tokens, {cell.threads} threads of {machine['cpu']} "
        f"({', '.join(isa)}), onnxruntime {machine['versions']['onnxruntime']}; "
        f"{results['task']['examples']['train']:,} training rows; `{results['command']}`"
    )


def written(readme: str, made: str) -> str:
    """The README with the table between its markers."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{made}\n{END}", readme, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        write_text(readme, written(readme.read_text(encoding="utf-8"), table()))
    else:
        sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    main()

"""Imports run one way: no two parts of the package need each other, and naming a recipe needs no torch."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "compressor"


def imported(file: Path) -> Iterator[str]:
    """Parts of the package (its folders and files) that a file imports anywhere, other than for its types."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    skipped = {inner for block in typing for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped:
            package, _, rest = (node.module or "").partition(".")
            if package == PACKAGE.name:
                yield rest.partition(".")[0] or PACKAGE.name


def test_no_two_parts_need_each_other() -> None:
    needs: dict[str, set[str]] = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).with_suffix("").parts[0]
        needs[part].update(name for name in imported(file) if name != part)
    order = list(TopologicalSorter(needs).static_order())  # raises CycleError, which names them
    assert order.index("models") < order.index("pruning") < order.index("stages") < order.index("cli")


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, compressor.cli, compressor.recipe; print({'torch', 'onnxruntime'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert told.stdout.strip() == "set()"

"""The builtin data set: which Python package is this docstring from?

Read with `ast` from the source files of packages that every installation of this project has; nothing is
imported or run. The rows are the same wherever the same versions are installed.
"""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from compressor.errors import UserError

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch")
ROWS = 1000  # a package; so no class is larger than the others
VALIDATION_ROWS = 200  # of those
SPARE = 1.05  # how many more are read, because texts that several packages share are dropped
WORDS = (12, 48)  # shorter ones tell too little; 48 words are about 64 word pieces

_SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "externals"}
_RULE_OR_EXAMPLE = re.compile(r"\s*([-=~*]{3,}\s*$|>>>|\.\.\.)")


@cache
def build() -> dict[str, pd.DataFrame]:
    """Frames `train` and `validation` with the columns text and label, indexed by row from 1.

    Takes about five seconds, once a process. Raises UserError where a package is missing.
    """
    per_package = {name: _texts(name) for name in PACKAGES}
    shared = Counter(key for texts in per_package.values() for key in texts)
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    for name, texts in per_package.items():
        own = sorted((text for key, text in texts.items() if shared[key] == 1), key=_digest)[:ROWS]
        splits["validation"] += [(text, name) for text in own[:VALIDATION_ROWS]]
        splits["train"] += [(text, name) for text in own[VALIDATION_ROWS:]]
    return {split: _frame(rows) for split, rows in splits.items()}


def _frame(rows: list[tuple[str, str]]) -> pd.DataFrame:
    rows = sorted(rows, key=lambda row: _digest(row[0]))
    index = pd.RangeIndex(1, len(rows) + 1, name="row")
    return pd.DataFrame(rows, columns=["text", "label"], index=index)


def _texts(package: str) -> dict[str, str]:
    """Cleaned docstrings of a package by their lower-case form, which keeps one of several equal ones."""
    texts: dict[str, str] = {}
    for path in _files(package):
        for docstring in _docstrings(path):
            text = _clean(docstring)
            if len(text.split()) >= WORDS[0]:
                texts.setdefault(text.lower(), text)
        if len(texts) >= ROWS * SPARE:
            break
    return texts


def _files(package: str) -> list[Path]:
    """Source files in an order that is random but fixed, so that the first ones cover the whole package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the builtin data set needs the package {package}, which is not installed")
    root = Path(spec.submodule_search_locations[0])
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    kept = [name for name in names if not _SKIPPED_FOLDERS & set(name.parts)]
    return [root / name for name in sorted(kept, key=lambda name: _digest(name.as_posix()))]


def _docstrings(path: Path) -> Iterator[str]:
    try:
        open_nodes: list[ast.AST] = [ast.parse(path.read_bytes())]
    except (SyntaxError, ValueError):  # templates and files for other versions of Python
        return
    while open_nodes:  # only into bodies of definitions: visiting every expression takes twice as long
        node = open_nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node, clean=False) or ""
            open_nodes += node.body


def _clean(docstring: str) -> str:
    lines = (line for line in docstring.splitlines() if not _RULE_OR_EXAMPLE.match(line))
    return " ".join(" ".join(lines).split()[: WORDS[1]])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""Runs an artifact's client where only its three packages can be imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ALONE = """
import importlib.abc, runpy, sys
ABSENT = "torch transformers optimum datasets onnx pandas scipy safetensors compressor".split()
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ImportError(name + " is not there")
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]  # as for any script
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def serve(artifact: Path, rows: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    """What the client answers."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(artifact / "serve" / "client.py"), *options],
        input="".join(json.dumps(row) + "\n" for row in rows),
        capture_output=True,
        text=True,
        cwd=artifact.parent,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]

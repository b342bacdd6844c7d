"""What benches share whose cells are runs of recipes: a run that a budget may end, and goes on with the next call."""

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from compressor.files import write_text

Json = dict[str, Any]


def finished(recipe: Json, output: Path, seconds: float, *options: str) -> bool:
    """Run a recipe in the folder `output`; whether it ended within `seconds`.

    Raises:
        SystemExit: it failed.
    """
    path = output.parent / f"{recipe['name']}.yaml"
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    command = [sys.executable, "-m", "compressor", "run", str(path), "--output", str(output), *options]
    process = subprocess.Popen(command)
    try:
        if process.wait(timeout=max(1.0, seconds)):
            raise SystemExit(f"{path} failed")
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return False
    return True


def data_keys(options: argparse.Namespace, dataset: Any) -> Any:
    """The local files of `--train` and `--validation`, else `dataset`."""
    if not options.train:
        return dataset
    files = {"train": options.train, "validation": options.validation}
    return {name: str(Path(file).resolve()) for name, file in files.items()}


def public_command(bench: str, arguments: str) -> str:
    """A command without anybody's folders."""
    return f"python -m bench.{bench} {arguments}"

"""Our exported graph against optimum-cli's export of the same model: the ratio should include or beat 1.

    python bench/export.py --budget 10 [--model FOLDER] [--output bench/results/export.json]

Without --model it is a BERT-base with random weights. Every length is saved as it is measured; the same command
goes on where the last one stopped.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compressor.log import quiet_libraries

quiet_libraries()

import transformers

from compressor.benchmark.harness import measure
from compressor.benchmark.machine import fingerprint, machine_key
from compressor.cell import Cell
from compressor.files import read_json, sha256, write_json
from compressor.models import checkpoint
from compressor.onnx.export import export_onnx
from compressor.report.fields import speedup_text

Json = dict[str, Any]
TASK = "text-classification"
LENGTHS = (128, 384)
SLOWEST = 180.0
"""Seconds that a cell is thought to take before one has been measured."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, required=True, metavar="MINUTES")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--output", type=Path, default=Path("bench/results/export.json"))
    options = parser.parse_args()
    state = load(options)
    run(state, options)
    for row in state["speedup_over_optimum_cli"]:
        sys.stdout.write(f"{row['sequence_length']} tokens: {speedup_text(row)}\n")
    sys.stdout.write(f"missing: {', '.join(map(str, state['missing'])) or 'nothing'}\n")


def run(state: Json, options: argparse.Namespace) -> None:
    """Measure the lengths that are missing, as far as the budget goes."""
    end, slowest = time.monotonic() + 60 * options.budget, SLOWEST
    with tempfile.TemporaryDirectory() as name:
        files: dict[str, Path] = {}
        for length in list(state["missing"]):
            start = time.monotonic()
            if start + slowest > end:
                break
            files = files or exports(options.model or random_bert(Path(name) / "model"), Path(name))
            record(state, length, files, options)
            write_json(options.output, state)
            slowest = max(slowest, time.monotonic() - start)


def load(options: argparse.Namespace) -> Json:
    """What an earlier call measured of this model, on this machine and in this way, or a fresh start."""
    machine = fingerprint()
    fresh: Json = {
        "command": " ".join(["python", *sys.argv]),
        "model": options.model.name if options.model else "BERT-base, random weights",
        "machine": machine,
        "machine_key": machine_key(machine),
        "settings": {
            "threads": options.threads,
            "seconds": options.seconds,
            "weights": sha256(options.model) if options.model else None,
        },
        "conditions": [],
        "latency": {"optimum-cli": [], "compressor": []},
        "speedup_over_optimum_cli": [],
        "missing": list(LENGTHS),
    }
    earlier: Json = read_json(options.output) if options.output.is_file() else {}
    same = all(earlier.get(key) == fresh[key] for key in ("model", "machine_key", "settings"))
    return earlier if same else fresh


def record(state: Json, length: int, files: dict[str, Path], options: argparse.Namespace) -> None:
    """Time one length and put it into the state."""
    cell = Cell("cpu", options.threads, 1, length)
    measured = measure(files, [cell], reference="optimum-cli", seconds=options.seconds)
    state["conditions"] += measured.conditions
    for name, rows in measured.latency.items():
        state["latency"][name] += rows
    state["speedup_over_optimum_cli"] += measured.speedup["compressor"]
    state["missing"].remove(length)


def random_bert(folder: Path) -> Path:
    transformers.set_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig())
    checkpoint.save(model, folder)
    return folder


def exports(model: Path, folder: Path) -> dict[str, Path]:
    """Both ONNX files of the model in a folder."""
    ours, theirs = folder / "ours", folder / "theirs"
    ours.mkdir()
    export_onnx(checkpoint.load(model), TASK, 18, ours / "model.onnx")
    command = ["optimum-cli", "export", "onnx", "--model", str(model), "--task", TASK, str(theirs)]
    program = Path(sys.executable).with_name(command[0])
    subprocess.run([str(program), *command[1:]], check=True, capture_output=True)
    return {"optimum-cli": theirs / "model.onnx", "compressor": ours / "model.onnx"}


if __name__ == "__main__":
    main()

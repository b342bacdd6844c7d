"""Our exported graph against optimum-cli's export of the same model: the ratio should include or beat 1.

    python bench/export.py [--model FOLDER] [--output bench/results/export.json]

Without --model it is a BERT-base with random weights.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compressor.log import quiet_libraries

quiet_libraries()

import transformers

from compressor.benchmark.harness import measure
from compressor.benchmark.machine import fingerprint
from compressor.benchmark.schema import Cell
from compressor.files import write_json
from compressor.models import checkpoint
from compressor.onnx.export import export_onnx

TASK = "text-classification"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--output", type=Path, default=Path("bench/results/export.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = exports(options.model or random_bert(folder / "model"), folder)
        cells = [Cell("cpu", options.threads, 1, length) for length in (128, 384)]
        measured = measure(files, cells, reference="optimum-cli", seconds=options.seconds)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "model": options.model.name if options.model else "BERT-base, random weights",
        "machine": fingerprint(),
        "conditions": measured.conditions,
        "latency": measured.latency,
        "speedup_over_optimum_cli": measured.speedup["compressor"],
    }
    write_json(options.output, result)
    for row in result["speedup_over_optimum_cli"]:
        low, high = row["ci95"]
        sys.stdout.write(f"{row['sequence_length']} tokens: {row['value']:.3f}x [{low:.3f}, {high:.3f}]\n")


if __name__ == "__main__":
    main()

"""On an NVIDIA GPU: fp32 and fp16 on onnxruntime's CUDA provider, its parity, and a step of movement pruning in bf16.

    python bench/cuda.py [--model FOLDER] [--output bench/results/cuda.json]

Without --model it is a BERT-base with random weights. Inputs and outputs stay on the device (IO binding) and the
clock stops when it is done; `host_p50_ms` is the same with copies from and to the host. Without a GPU, or without
onnxruntime's CUDA provider, the result says that nothing was measured, and why.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from compressor.log import quiet_libraries

quiet_libraries()

import numpy as np
import onnxruntime
import torch
import training_step
import transformers

from compressor.benchmark.harness import measure
from compressor.benchmark.machine import fingerprint
from compressor.benchmark.sessions import EXECUTION_PROVIDERS, open_session
from compressor.cell import Cell
from compressor.files import write_json
from compressor.models import checkpoint
from compressor.models.parity import varied_inputs
from compressor.onnx.export import check_parity, export_onnx
from compressor.onnx.quantize import Scheme, quantize
from compressor.report.fields import speedup_text

Json = dict[str, Any]
CELLS = [Cell("cuda", 1, batch, length) for batch, length in ((1, 128), (8, 128), (32, 128), (8, 384))]
PARITY = 1e-4
STEPS: dict[str, dict[str, Any] | None] = {"plain": None, "movement": {}}
BATCH, LENGTH, SECONDS = 32, 128, 20.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--output", type=Path, default=Path("bench/results/cuda.json"))
    options = parser.parse_args()
    made: Json = {"command": " ".join(["python", *sys.argv]), "machine": fingerprint()}
    if reason := lacking():
        made["measured"] = f"not measured: {reason}"
    else:
        made |= {"measured": "yes", **inference(options.model), "training_step": training()}
    write_json(options.output, made)
    for name, rows in made.get("speedup_over_fp32", {}).items():
        for row in rows:
            print(f"{name}, {Cell.of(row)}: {speedup_text(row)}")
    print(made["measured"])


def lacking() -> str | None:
    """What this machine lacks for it."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if EXECUTION_PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        return "onnxruntime has no CUDA provider; install compressor[gpu] instead of [cpu]"
    return None


def inference(folder: Path | None) -> Json:
    """Latency of fp32 and fp16, and how far their logits on the GPU are from fp32's on the CPU."""
    transformers.set_seed(0)
    bert = transformers.BertForSequenceClassification
    model = checkpoint.load(folder) if folder else bert(transformers.BertConfig()).eval()
    with tempfile.TemporaryDirectory() as name:
        files = {precision: Path(name) / f"{precision}.onnx" for precision in ("fp32", "fp16")}
        export_onnx(model, "text-classification", 18, files["fp32"])
        check_parity(model, files["fp32"], PARITY)
        quantize(files["fp32"], files["fp16"], Scheme("fp16"))
        errors = {precision: error(files["fp32"], file, model.config) for precision, file in files.items()}
        measured = measure(files, CELLS, reference="fp32")
    return {
        "model": folder.name if folder else "BERT-base, random weights",
        "max_abs_error": errors,
        "latency": measured.latency,
        "speedup_over_fp32": measured.speedup,
        "conditions": measured.conditions,
    }


def error(reference: Path, file: Path, config: Any) -> float:
    """The largest difference of a logit, over varied batch sizes, lengths and padding."""
    host, device = open_session(reference, "cpu", 1), open_session(file, "cuda", 1)
    worst = 0.0
    for inputs in varied_inputs(config):
        feed = {node.name: np.asarray(inputs[node.name]) for node in host.get_inputs()}
        worst = max(worst, float(np.abs(host.run(None, feed)[0] - device.run(None, feed)[0]).max()))
    return worst


def training() -> Json:
    """Milliseconds of a training step with distillation in bf16, plain and with movement pruning's masks."""
    steps = {
        name: training_step.step_of("bert-base", BATCH, LENGTH, keys, "cuda", bf16=True)
        for name, keys in STEPS.items()
    }
    compared = training_step.compare(steps, SECONDS)
    return {"shape": "bert-base", "batch_size": BATCH, "length": LENGTH, "precision": "bf16", **compared}


if __name__ == "__main__":
    main()

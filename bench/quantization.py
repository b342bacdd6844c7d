"""Every way to quantize a run's models, and what `mode: auto` makes of them: time, accuracy, and how long each took.

    python bench/quantization.py --run runs/minilm-sst2-block --budget 60
    python bench/quantization.py --table

Takes the exported models (dense and pruned), the task and its data from a finished run. A run that classifies texts
also lends its tokenizer and texts to BERT-base shapes, dense and pruned, with random weights: there the metric is
the agreement with the fp32 model's answers, and the head's bias is set so that both answers are equally frequent.

First `auto` searches, as a recipe makes it. Then the grid: fp32; dynamic by channel or not; static for each
calibration and for symmetric activations or not. Each graph is made and scored on the same examples of the selection
split; at last all are timed in turns, with what `auto` took among them. The grid's time is that of making and scoring
all and of its share of that timing. Entropy calibration takes many times longer than the rest: BERT-base has none.
Every piece is saved as it is made; the same command goes on where the last one stopped.
"""

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.log import quiet_libraries

quiet_libraries()

import numpy as np
import torch
from quantization_table import AUTO, FP32, table
from transformers import BertConfig, BertForSequenceClassification

from compressor.benchmark.harness import measure
from compressor.benchmark.machine import fingerprint, machine_key
from compressor.benchmark.schema import BenchmarkKeys
from compressor.files import read_json, sha256, write_json
from compressor.models.architecture import structure_of
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from compressor.onnx.export import export_onnx
from compressor.onnx.quantize import CALIBRATORS, Scheme
from compressor.project import Project
from compressor.recipe import Loaded, parse
from compressor.stages import auto
from compressor.stages.base import Data, Work
from compressor.stages.evaluate import predict
from compressor.stages.export import MODEL_FILE, copy_companions
from compressor.stages.quantize import Quantize
from compressor.stages.release import GateKeys
from compressor.stages.selection import Selection
from compressor.stages.trials import Trials, label
from compressor.yamlfile import Document

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "bench" / "results" / "quantization.json"
MODELS = ("dense", "pruned")
SHAPES = {"bert-base dense": 1.0, "bert-base pruned": 0.25}
"""Made with random weights: how many of the heads and neurons of each layer are kept."""
BASE: Json = {}
"""Sizes of a BertConfig: its defaults are BERT-base's."""
MAX_DROP = {"metric": 0.01, "agreement": 0.1}
"""What may be lost. Logits of random weights lie so close together that an accurate int8 graph turns some round."""
KEYS = Quantize(mode="auto")


def main() -> None:
    options = arguments()
    state = load(options.output)
    if options.table:
        sys.stdout.write(table(state) + "\n")
        return
    end = time.monotonic() + 60 * options.budget
    found = results_of(options.run)
    names = options.models or [*MODELS, *(SHAPES if found["task"]["type"] == "text-classification" else ())]
    data = data_of(found)
    for name in names:
        case = Case(options, found, data, name)
        for piece in case.lacking(state):
            if time.monotonic() > end:
                break
            print(f"{case.key}: {piece}", file=sys.stderr, flush=True)
            case.measure(state, piece)
            write_json(options.output, state)
    missing = [
        f"{name} {piece}" for name in names for piece in Case(options, found, data, name).lacking(state)
    ]
    print("missing:", "; ".join(missing) or "nothing")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="print what was measured as Markdown")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="of a finished run, with all its stages")
    parser.add_argument("--budget", type=float, metavar="MINUTES", default=60.0)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *SHAPES], help="by default all that apply")
    parser.add_argument("--length", type=int, default=128, help="tokens of an input that is timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of the last timing, in each process")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "quantization", help="keeps the graphs")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    if not options.table and options.run is None:
        parser.error("--run FOLDER is needed: the models and the task of a finished run")
    return options


def load(path: Path) -> Json:
    """What was measured on this machine before, or a fresh start."""
    machine = fingerprint()
    fresh: Json = {"machine": machine, "machine_key": machine_key(machine), "models": {}}
    stored: Json = read_json(path) if path.is_file() else fresh
    return stored if "--table" in sys.argv or stored["machine_key"] == fresh["machine_key"] else fresh


def results_of(run: Path) -> Json:
    path = run / "results.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: give the folder of a finished run")
    found: Json = read_json(path)
    return found


def grid(name: str, first: Scheme) -> Iterator[Scheme]:
    """The fixed grid of a model, beside fp32."""
    for per_channel in (True, False):
        yield replace(first, mode="dynamic", per_channel=per_channel)
    for calibration in CALIBRATORS if name in MODELS else auto.CALIBRATIONS:
        for symmetric in (False, True):
            yield replace(first, mode="static", calibration=calibration, symmetric=symmetric)


@dataclass
class Case:
    """One model of one run."""

    options: argparse.Namespace
    results: Json
    data: Data
    name: str

    @property
    def key(self) -> str:
        return f"{self.results['name']}: {self.name}"

    @property
    def metric(self) -> str:
        return "agreement" if self.name in SHAPES else "metric"

    @property
    def folder(self) -> Path:
        made: Path = self.options.work / self.results["name"] / self.name.replace(" ", "-")
        made.mkdir(parents=True, exist_ok=True)
        return made

    def lacking(self, state: Json) -> list[str]:
        """The pieces that are missing, in order: the search, a score of each graph, the timing of all."""
        pieces = [AUTO, FP32, *(label(scheme) for scheme in grid(self.name, Scheme())), "timing"]
        return [piece for piece in pieces if piece not in state["models"].get(self.key, {})]

    def measure(self, state: Json, piece: str) -> None:
        row = state["models"].setdefault(self.key, {})
        work = self.work(piece)
        assert work.data.task  # read before the time counts
        began = time.monotonic()
        if piece == AUTO:
            made = self.search(work)
        elif piece == "timing":
            made = self.timing(work, row)
        else:
            made = self.score(work, piece)
        row[piece] = made | {"seconds": time.monotonic() - began}
        row |= {"command": self.command(), "metric": self.metric, "allowed": MAX_DROP[self.metric]}
        row |= {
            "length": self.options.length,
            "threads": self.options.threads,
            "task": self.results["task"]["type"],
        }

    def search(self, work: Work) -> Json:
        target = self.folder / "auto.onnx"
        choice = auto.choose(work, KEYS)
        scheme = auto.write(work, KEYS, choice, target)
        return choice | {"label": label(scheme) if scheme else FP32, "sha256": sha256(target)}

    def score(self, work: Work, piece: str) -> Json:
        """Make a graph and score it on all the examples that `auto` may read."""
        trials = Trials(work, KEYS)
        schemes = {label(scheme): scheme for scheme in grid(self.name, KEYS.scheme(work))}
        began = time.monotonic()
        file = trials.source if piece == FP32 else trials.file(schemes[piece])
        making = time.monotonic() - began
        scored = Selection(work)
        task = work.data.task
        _, rows = predict(task, work.tokenizer(), file, scored.frame, work.progress, piece)
        value = float(task.score(rows)[task.primary])
        return {"making_seconds": making, "value": value, "examples": len(rows)}

    def timing(self, work: Work, row: Json) -> Json:
        """Speedups over fp32 of the grid and of what `auto` took, and of that over the grid's best admissible one."""
        files = {name: work.scratch / f"{name}.onnx" for name in self.scored(row)}
        files |= {FP32: work.source / MODEL_FILE, AUTO: self.folder / "auto.onnx"}
        cell = work.benchmark.cells()[0]
        measured = measure(files, [cell], reference=FP32, seconds=self.options.seconds)
        speedups = {name: rows[0] for name, rows in measured.speedup.items()}
        best = max(
            (name for name in self.scored(row) if self.drop(work, row, name) <= MAX_DROP[self.metric]),
            key=lambda name: 1.0 if name == FP32 else speedups[name]["value"],
        )
        return {
            "latency": {name: rows[0] for name, rows in measured.latency.items()},
            "speedup": speedups,
            "drop": {name: self.drop(work, row, name) for name in self.scored(row)},
            "best": best,
            "auto_over_best": measured.speedup_over(best)[AUTO][0],
            "conditions": measured.conditions[0],
            "files": len(files),
        }

    def scored(self, row: Json) -> list[str]:
        return [name for name, piece in row.items() if isinstance(piece, dict) and "value" in piece]

    def drop(self, work: Work, row: Json, name: str) -> float:
        sign = 1 if work.data.task.higher_is_better(work.data.task.primary) else -1
        return float(sign * (row[FP32]["value"] - row[name]["value"]))

    # What is worked with

    def work(self, piece: str) -> Work:
        """As a run's quantize stage has it. The search has a folder of its own: it finds nothing made before."""
        source = self.folder / "fp32"
        if self.name in MODELS:
            source = exported(self.options.run, self.results, self.name)
        scratch = self.folder / ("search" if piece == AUTO else "grid")
        scratch.mkdir(exist_ok=True)
        work = Work(
            model=parse(Document(Path("recipe"), self.results["recipe"])).model,
            data=self.data,
            seed=self.data.seed,
            source=source,
            folder=scratch,
            scratch=scratch,
            shared=scratch,
            folder_of=lambda name: self.options.run / name,
            progress=lambda *_: None,
            # of a run's model the loss is against its own fp32 file, not against the dense model
            gates=GateKeys() if self.name in MODELS else GateKeys(max_metric_drop=MAX_DROP[self.metric]),
            benchmark=BenchmarkKeys(threads=[self.options.threads], sequence_lengths=[self.options.length]),
        )
        return work if self.name in MODELS else self.shaped(work)

    def shaped(self, work: Work) -> Work:
        """The same with random weights of BERT-base's shape, and with the fp32 model's answers as the truth."""
        donor = exported(self.options.run, self.results, "dense")
        if not (work.source / MODEL_FILE).exists():
            copy_companions(donor, work.source)
            write_shape(work, SHAPES[self.name])
        data, task = copy.copy(work.data), copy.copy(work.data.task)
        data.__dict__["task"] = task
        frame = Selection(work).frame
        _, rows = predict(task, work.tokenizer(), work.source / MODEL_FILE, frame, work.progress, "answers")
        numbers = [task.labels.index(name) for name in rows["prediction"]]
        task.examples = replace(task.examples, selection=frame.assign(label=numbers))
        return replace(work, data=data)

    def command(self) -> str:
        """The command without anybody's folders."""
        return (
            f"python bench/quantization.py --run .../{self.options.run.name} --length {self.options.length}"
        )


def data_of(results: Json) -> Data:
    """The task of a run, not read yet."""
    recipe = parse(Document(Path("recipe"), results["recipe"]))
    return Data(recipe.task, recipe.seed)


def exported(run: Path, results: Json, member: str) -> Path:
    """The folder of a run's exported model: the dense one, or the last that was pruned."""
    loaded = Loaded(parse(Document(Path("recipe"), results["recipe"])), results["recipe"], Path("recipe"))
    chain = Project(loaded, run).chain
    exports = [node for name, node in chain.variants.items() if name.endswith("_fp32")]
    return run / (chain.variants["dense_fp32"] if member == "dense" else exports[-1])


def write_shape(work: Work, kept: float) -> None:
    """A BERT of random weights, part of its heads and neurons kept, that answers each label equally often."""
    torch.manual_seed(0)
    tokenizer = work.tokenizer()
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=2, **BASE)).eval()
    if kept < 1:
        dense = structure_of(model)
        parts = {
            (layer.stack, layer.index, name): SubLayer(sub.kept[: max(1, round(kept * len(sub.kept)))])
            for layer, name, sub in dense.each()
        }
        model = slice_model(model, dense.keeping(parts))
    file = work.source / MODEL_FILE
    export_onnx(model, "text-classification", 18, file)
    outputs, _ = predict(work.data.task, tokenizer, file, Selection(work).frame, work.progress, "logits")
    with torch.no_grad():
        model.classifier.bias -= torch.tensor(np.median(outputs["logits"], axis=0))
    export_onnx(model, "text-classification", 18, file)


if __name__ == "__main__":
    main()

"""`quantize: {mode: auto}`: what is fastest here among what is accurate enough; it may be fp32.

Speed does not depend on calibration, so one graph of each kind is timed, all in turns with fp32. Accuracy is then
measured from the fastest kind down, on the selection split; a static kind that loses too much gets another
calibration before the next kind is tried. The first that is accurate enough and surely faster than fp32 is taken.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.files import read_json, write_json
from compressor.stages.base import Work
from compressor.stages.evaluate import predict
from compressor.stages.export import MODEL_FILE

if TYPE_CHECKING:
    from compressor.onnx.quantize import Calibration, Scheme
    from compressor.stages.quantize import Quantize

SECONDS, PROCESSES = 1.0, 4
MOST_EXAMPLES = 2000
"""Examples of the selection split that decide about accuracy."""
MAX_DROP = 0.01
"""Loss that is accepted where the recipe's gates name none."""
CALIBRATIONS: tuple[Calibration, ...] = ("percentile", "minmax", "entropy")
Tried = dict[str, Any]


@dataclass
class Search:
    """One search, over one exported model. What it tried becomes a table in the results."""

    work: Work
    keys: Quantize
    tried: list[Tried] = field(default_factory=list)

    @property
    def source(self) -> Path:
        """The fp32 graph."""
        return self.work.source / MODEL_FILE

    def choose(self) -> dict[str, Any]:
        """The scheme chosen (`None`: fp32) and all that was tried; stored, so that a resumed run decides the same."""
        stored = self.work.scratch / "choice.json"
        if not stored.exists():
            scheme = self._search()
            write_json(stored, {"scheme": asdict(scheme) if scheme else None, "tried": self.tried})
        found: dict[str, Any] = read_json(stored)
        return found

    def _search(self) -> Scheme | None:
        kinds = list(self._kinds())
        speeds = self._time(kinds)
        dense = self._metric(self.source, "fp32")
        fp32: Tried = {
            "scheme": "fp32",
            "speedup": 1.0,
            "ci95": [1.0, 1.0],
            "metric": dense,
            "admitted": False,
        }
        self.tried.append(fp32)
        for kind in sorted(kinds, key=lambda kind: -speeds[kind]["value"]):
            speed = {"speedup": speeds[kind]["value"], "ci95": speeds[kind]["ci95"]}
            if speed["ci95"][0] <= 1.0:
                self.tried.append({"scheme": label(kind), **speed, "admitted": False, "why": "not faster"})
                continue
            for scheme in self._calibrated(kind):
                metric = self._metric(self._file(scheme), label(scheme))
                drop = dense - metric if self._higher_is_better else metric - dense
                good = drop <= self._allowed
                why = "" if good else f"loses more than {self._allowed:g}"
                self.tried.append(
                    {
                        "scheme": label(scheme),
                        **speed,
                        "metric": metric,
                        "drop": drop,
                        "admitted": good,
                        "why": why,
                    }
                )
                if good:
                    return scheme
        fp32["admitted"] = True
        return None

    def _kinds(self) -> Iterator[Scheme]:
        """One scheme of every speed: dynamic and static, weights by channel or not."""
        first = self.keys.scheme(self.work)
        for per_channel in (True, False):
            yield replace(first, mode="dynamic", per_channel=per_channel)
        yield replace(first, mode="static", per_channel=True, calibration=CALIBRATIONS[0])

    def _calibrated(self, kind: Scheme) -> Iterator[Scheme]:
        """The schemes that run as fast as `kind`."""
        if kind.mode != "static":
            yield kind
            return
        for method in CALIBRATIONS:
            yield replace(kind, calibration=method)

    def _file(self, scheme: Scheme) -> Path:
        """The graph of a scheme, made once."""
        from compressor.onnx.quantize import quantize

        path = self.work.scratch / f"{label(scheme)}.onnx"
        if not path.exists():
            quantize(self.source, path, scheme, self.keys.batches(self.work, scheme))
        return path

    def _time(self, kinds: list[Scheme]) -> dict[Scheme, Any]:
        from compressor.benchmark.harness import measure

        files = {"fp32": self.source} | {label(kind): self._file(kind) for kind in kinds}
        cell = self.work.benchmark.cells()[0]
        measured = measure(
            files,
            [cell],
            reference="fp32",
            seconds=SECONDS,
            processes=PROCESSES,
            progress=self.work.progress,
        )
        return {kind: measured.speedup[label(kind)][0] for kind in kinds}

    def _metric(self, file: Path, name: str) -> float:
        task = self.work.data.task
        frame = self.work.data.frame("selection", self.work.progress)
        frame = frame.sample(min(MOST_EXAMPLES, len(frame)), random_state=self.work.seed)
        _, rows = predict(task, self.work.tokenizer(), file, frame, self.work.progress, f"evaluate {name}")
        return task.judged(rows)

    @property
    def _higher_is_better(self) -> bool:
        task = self.work.data.task
        return task.higher_is_better(task.primary)

    @property
    def _allowed(self) -> float:
        given = self.work.gates.max_metric_drop
        return MAX_DROP if given is None else given

    def write(self, choice: dict[str, Any], target: Path) -> Scheme | None:
        """Put the chosen graph at `target`."""
        from compressor.onnx.quantize import Scheme

        if choice["scheme"] is None:
            shutil.copyfile(self.source, target)
            return None
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in choice["scheme"].items()
        }
        scheme = Scheme(**values)
        shutil.copyfile(self._file(scheme), target)
        return scheme


def label(scheme: Scheme) -> str:
    """A scheme's name in tables and files."""
    parts = [scheme.mode, "per-channel" if scheme.per_channel else "per-tensor"]
    if scheme.mode == "static":
        parts += [scheme.calibration, "symmetric" if scheme.symmetric else "asymmetric"]
    return "-".join(parts)

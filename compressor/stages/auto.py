"""`quantize: {mode: auto}`: what is fastest here among what is accurate enough; it may be fp32.

1. Speed does not depend on calibration, so one graph of each kind is timed, all in turns with fp32; the surely slower
   drop out early. If onnxruntime's profile of the fastest shows matrix products that int8 does not speed up, it is
   timed without them as well.
2. Accuracy is measured on the selection split, from the fastest kind down; a static kind that loses too much gets
   another calibration first. The first that is accurate enough and surely faster than fp32 is taken.
3. Where a faster one was refused, the fewest operators are looked for that must stay in fp32 to make it accurate
   enough. It is taken if it is the faster one even so.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.files import read_json, write_json
from compressor.stages.trials import FP32, Trials, label

if TYPE_CHECKING:
    from compressor.benchmark.statistics import Interval
    from compressor.onnx.products import Group
    from compressor.onnx.quantize import Calibration, Scheme
    from compressor.stages.base import Work
    from compressor.stages.quantize import Quantize

CALIBRATIONS: tuple[Calibration, ...] = ("minmax", "percentile")
"""The cheaper first. `entropy` takes many times longer than all the rest of the search, and is left to recipes."""
MOST_LEFT_OUT = 0.5
"""Share of the groups of operators that may stay in fp32 for the sake of accuracy."""
WORTH = 1.02
"""A speedup that is worth another look."""
Tried = dict[str, Any]


def choose(work: Work, keys: Quantize) -> dict[str, Any]:
    """The scheme chosen (`None`: fp32) and all that was tried; stored, so that a resumed run decides the same."""
    stored = work.scratch / "choice.json"
    if not stored.exists():
        search = Search(Trials(work, keys), keys.scheme(work), keys.minutes)
        scheme = search.run()
        write_json(stored, {"scheme": asdict(scheme) if scheme else None, "tried": search.table(scheme)})
    found: dict[str, Any] = read_json(stored)
    return found


def write(work: Work, keys: Quantize, choice: dict[str, Any], target: Path) -> Scheme | None:
    """Put the chosen graph at `target`."""
    from compressor.onnx.quantize import Scheme

    trials = Trials(work, keys)
    if choice["scheme"] is None:
        shutil.copyfile(trials.source, target)
        return None
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in choice["scheme"].items()
    }
    scheme = Scheme(**values)
    shutil.copyfile(trials.file(scheme), target)
    return scheme


@dataclass
class Search:
    """One search, over one exported model; `first` is what all that is tried has in common.

    After `minutes` nothing more is tried: what is running is brought to its end, and the best so far is taken.
    """

    trials: Trials
    first: Scheme
    minutes: float
    fates: dict[Scheme, str] = field(default_factory=dict)
    """What became of every scheme that was tried, in words."""
    began: float = field(default_factory=time.monotonic)

    def run(self) -> Scheme | None:
        """The scheme to take; `None` is fp32."""
        kinds = list(self._kinds())
        self.trials.time(kinds)
        kinds += self._trimmed(max(kinds, key=self._speed))
        refused: list[Scheme] = []
        taken = None
        for kind in sorted(kinds, key=self._speed, reverse=True):
            if taken:
                self.fates[kind] = f"slower than {label(taken)}"
            elif not self._beats_fp32(kind):
                self.fates[kind] = "not faster than fp32"
            elif not (taken := self._accurate(kind, refused)):
                self.fates.setdefault(kind, "no time left")
        if refused and not self._is_late:
            taken = self._repaired(refused, taken)
        return taken

    def table(self, taken: Scheme | None) -> list[Tried]:
        """A row for all that was tried: speed, metric where it was measured, and why it was not taken."""
        dense = next((loss.dense for loss in self.trials.losses.values()), None)
        fp32 = {"scheme": FP32, "speedup": 1.0, "ci95": [1.0, 1.0], "metric": dense}
        rows = [
            fp32 | {"admitted": taken is None, "why": "" if taken is None else f"slower than {label(taken)}"}
        ]
        for scheme, fate in self.fates.items():
            speed, loss = self._timed(scheme), self.trials.losses.get(scheme)
            row = {
                "scheme": label(scheme),
                "admitted": scheme == taken,
                "why": "" if scheme == taken else fate,
            }
            row |= {"speedup": speed and speed.value, "ci95": speed and [speed.low, speed.high]}
            if loss:
                row |= {"metric": loss.metric, "drop": loss.value, "drop_ci95": [loss.low, loss.high]}
                row |= {"examples": loss.examples}
            rows.append(row)
        return rows

    def _kinds(self) -> Iterator[Scheme]:
        """One scheme of every speed: dynamic and static, weights by channel or not, activations symmetric or not."""
        if self.trials.work.benchmark.cells()[0].provider == "cuda":
            yield replace(self.first, mode="fp16")
            return
        for per_channel in (True, False):
            yield replace(self.first, mode="dynamic", per_channel=per_channel)
        for symmetric in (False, True):
            yield replace(self.first, mode="static", symmetric=symmetric, calibration=CALIBRATIONS[0])

    def _calibrated(self, kind: Scheme) -> list[Scheme]:
        """The schemes that run as fast as `kind`."""
        return [replace(kind, calibration=c) for c in CALIBRATIONS] if kind.mode == "static" else [kind]

    def _trimmed(self, kind: Scheme) -> list[Scheme]:
        """`kind` without the matrix products that int8 does not speed up, timed beside it; nothing if it does all."""
        slow = [] if kind.mode == "fp16" else self.trials.not_faster(kind)
        if not slow or len(slow) == len(self.trials.groups(kind, ("MatMul",))):
            return []
        trimmed = without(kind, slow)
        self.trials.time([kind, trimmed])
        return [trimmed]

    def _beats_fp32(self, kind: Scheme) -> bool:
        """Whether a kind is surely faster than fp32; one that dropped out early is timed again to know."""
        speedup = self.trials.speedup(kind)
        if speedup.low <= 1 and speedup.value > WORTH and not self._is_late:
            self.trials.time([kind])
        return self.trials.speedup(kind).low > 1

    def _accurate(self, kind: Scheme, refused: list[Scheme]) -> Scheme | None:
        """The first calibration of `kind` that does not lose too much; those before it join the `refused`."""
        for scheme in self._calibrated(kind):
            if self._is_late:
                break
            if self._loses_little(scheme):
                return scheme
            refused.append(scheme)
        return None

    def _repaired(self, refused: list[Scheme], taken: Scheme | None) -> Scheme | None:
        """`taken`, or a faster one of the `refused` with as few operators in fp32 as make it accurate enough."""
        next_best = self._speed(taken) if taken else 1.0
        fastest = max(map(self._speed, refused))
        if fastest < next_best * WORTH:
            return taken
        scheme = min(
            (s for s in refused if self._speed(s) == fastest), key=lambda s: self.trials.loss(s).value
        )
        found = self._fewest_left_out(scheme)
        if found is None:
            self.fates[scheme] += ", even with half of its operators in fp32"
            return taken
        rivals = [taken] if taken else []
        self.trials.time([found, *rivals])
        speedup = self.trials.speedup(found, *rivals)
        if speedup.value > 1 and self.trials.speedup(found).low > 1:
            if taken:
                self.fates[taken] = f"slower than {label(found)}"
            return found
        self.fates[found] = f"no faster than {label(taken) if taken else FP32}"
        return taken

    def _fewest_left_out(self, scheme: Scheme) -> Scheme | None:
        """`scheme` without the fewest of its worst groups that make it accurate enough, by bisection."""
        worst = self.trials.worst_first(scheme)
        fewest, most, found = 1, int(MOST_LEFT_OUT * len(worst)), None
        while fewest <= most and not self._is_late:
            count = (fewest + most) // 2
            candidate = without(scheme, worst[:count])
            if self._loses_little(candidate):
                found, most = candidate, count - 1
            else:
                fewest = count + 1
        return found

    def _loses_little(self, scheme: Scheme) -> bool:
        good = self.trials.loss(scheme).value <= self.trials.allowed
        self.fates[scheme] = "accurate enough" if good else f"loses more than {self.trials.allowed:g}"
        return good

    def _timed(self, scheme: Scheme) -> Interval | None:
        """A scheme's speedup over fp32, if it was timed."""
        try:
            return self.trials.speedup(scheme)
        except ValueError:
            return None

    def _speed(self, scheme: Scheme) -> float:
        return self.trials.speedup(scheme).value

    @property
    def _is_late(self) -> bool:
        return time.monotonic() - self.began > 60 * self.minutes


def without(scheme: Scheme, groups: Iterable[Group]) -> Scheme:
    """A scheme that leaves these groups in fp32 too."""
    return replace(scheme, exclude=(*scheme.exclude, *(node for group in groups for node in group.nodes)))

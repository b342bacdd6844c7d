"""Which machine this is and what else runs on it."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import onnxruntime
import pytest

from compressor.benchmark import machine
from compressor.benchmark.machine import Snapshot, between, busy, disturbance, fingerprint, machine_key

CPUINFO = """processor : 0
model name : Some CPU @ 2 GHz
flags : fpu sse2 avx2 avx512f avx512_vnni amx_int8 rdtscp
"""


def test_the_fingerprint_can_be_stored_and_names_what_timings_depend_on():
    found = json.loads(json.dumps(fingerprint()))
    assert found["cores"] >= 1
    assert found["usable_cores"] >= 1
    assert len(found["load"]) == 3
    assert {"python", "onnxruntime", "torch", "numpy"} <= found["versions"].keys()


def test_onnxruntime_has_one_name_whichever_package_installed_it(monkeypatch):
    def version(package):
        if package == "onnxruntime":
            raise PackageNotFoundError(package)
        return "9.9"

    monkeypatch.setattr(machine, "version", version)
    versions = fingerprint()["versions"]
    assert versions["onnxruntime"] == onnxruntime.__version__
    assert versions["onnxruntime-gpu"] == "9.9"


@pytest.mark.parametrize(
    ("text", "isa"),
    [
        (CPUINFO, ["avx2", "avx512f", "avx512_vnni", "amx_int8"]),
        ("Features : fp asimd asimddp i8mm sve", ["neon", "dotprod", "i8mm", "sve"]),
    ],
)
def test_instruction_sets_that_matter_are_read(monkeypatch, text, isa):
    monkeypatch.setattr(machine, "_read", lambda path: text if path == "/proc/cpuinfo" else "")
    assert fingerprint()["isa"] == isa


def test_the_key_holds_what_makes_timings_comparable_and_nothing_else():
    found = fingerprint()
    passing = {**found, "load": [9.0, 9.0, 9.0], "versions": {**found["versions"], "torch": "0"}}
    assert machine_key(passing) == machine_key(found)
    assert machine_key({**found, "cpu": "another"}) != machine_key(found)
    newer = {**found, "versions": {**found["versions"], "onnxruntime": "99"}}
    assert machine_key(newer) != machine_key(found)


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("max 100000", 8), ("", 8)])
def test_a_container_quota_limits_the_usable_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(machine, "_read", lambda path: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert machine.usable_cores() == cores


def test_a_busy_neighbour_is_seen_by_name():
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        seen = busy(0.5)
    finally:
        hog.kill()
        hog.wait()
    assert max(share["cores"] for share in seen["processes"]) > 0.2
    assert seen["other_cores"] > 0.2
    assert "other processes ran" in disturbance(seen)


def test_what_ran_between_two_snapshots():
    before = Snapshot(0.0, 10.0, 1.0, 2.0, {(1, 0.0): ("idle", 5.0), (2, 0.0): ("old", 1.0)})
    after = Snapshot(
        10.0, 22.0, 1.5, 5.0, {(1, 0.0): ("idle", 5.1), (2, 0.0): ("old", 3.0), (2, 9.0): ("new", 4.0)}
    )
    seen = between(before, after)
    assert seen["other_cores"] == pytest.approx((12 - 3) / 10)
    assert seen["steal"] == pytest.approx(0.05)
    assert seen["processes"] == [
        {"name": "new", "pid": 2, "cores": 0.4},
        {"name": "old", "pid": 2, "cores": 0.2},
    ]


def test_short_lived_processes_and_stolen_time_disturb_too():
    quiet = {"processes": [], "other_cores": 0.01, "steal": 0.0}
    assert disturbance(quiet) is None
    assert "ended since" in disturbance({**quiet, "other_cores": 0.5})
    assert "virtual machines" in disturbance({**quiet, "steal": 0.02})

"""Which machine this is, and what else runs on it: what a timing means only together with."""

import os
import platform
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path
from typing import Any

import psutil

from compressor.files import digest

PACKAGES = (
    "compressor",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "transformers",
    "optimum",
    "numpy",
)
# What decides how fast fp32 and int8 matrix products run, by the names Linux gives them.
X86_FLAGS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_int8", "amx_bf16", "amx_fp16"),
)
ARM_FLAGS = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}
BF16_SETS = ("avx512_bf16", "amx_bf16", "bf16")
"""Instruction sets of x86 and Arm that multiply bf16: training with it is faster there."""
BUSY_SHARE = 0.05
"""A process that uses more than this share of a core disturbs a measurement."""
STEAL_SHARE = 0.01
"""More of the CPU time than this taken by other virtual machines disturbs a measurement."""


def fingerprint() -> dict[str, Any]:
    """Everything a reader needs to judge a timing: processor, cores, versions, load, GPUs. JSON-able."""
    cpu, isa = _processor()
    return {
        "cpu": cpu,
        "isa": isa,
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "gpus": _gpus(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
        "load": list(os.getloadavg()),
        "versions": _versions(),
    }


def machine_key(fingerprint: dict[str, Any]) -> str:
    """Hash of what makes timings comparable; timings are never reused under another key.

    It leaves out what changes from hour to hour (load) and what does not touch inference (torch, the kernel).
    """
    stable = ("cpu", "isa", "cores", "usable_cores", "governor", "gpus")
    runtime = {
        name: value for name, value in fingerprint["versions"].items() if name.startswith("onnxruntime")
    }
    return digest({**{key: fingerprint[key] for key in stable}, "runtime": runtime})[:16]


def usable_cores() -> int:
    """Cores this process may use at once: its CPU affinity and its container's quota both count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(cores, ceil(int(quota) / int(period))) if quota.isdigit() and period.isdigit() else cores


@dataclass(frozen=True)
class Snapshot:
    """CPU seconds used since boot, by process and in total; see `between` for the difference of two."""

    wall: float
    used: float
    steal: float
    own: float
    processes: dict[tuple[int, float], tuple[str, float]]


def snapshot() -> Snapshot:
    """The CPU time used so far. Takes a few milliseconds for a hundred processes."""
    total, own = psutil.cpu_times(), os.times()
    used = sum(getattr(total, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))
    processes = {}
    for process in psutil.process_iter(["pid", "name", "create_time", "cpu_times"]):
        info = process.info
        if info["cpu_times"] and info["pid"] != os.getpid():
            spent = info["cpu_times"].user + info["cpu_times"].system
            processes[info["pid"], info["create_time"]] = (info["name"], spent)
    return Snapshot(time.monotonic(), used, getattr(total, "steal", 0.0), sum(own[:4]), processes)


def between(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """What ran beside this process and the children it has waited for.

    `other_cores`: cores kept busy by everything else, processes that have ended too; `steal`: share of a core
    taken by other virtual machines; `processes`: those above 5 % of a core, most first.
    """
    seconds = max(after.wall - before.wall, 1e-9)
    shares = [
        (round((spent - before.processes.get(key, ("", 0.0))[1]) / seconds, 2), name, key[0])
        for key, (name, spent) in after.processes.items()
    ]
    above = sorted((share for share in shares if share[0] > BUSY_SHARE), reverse=True)
    others = (after.used - before.used) - (after.own - before.own)
    return {
        "seconds": round(seconds, 2),
        "other_cores": round(max(0.0, others / seconds), 3),
        "steal": round((after.steal - before.steal) / seconds, 4),
        "load": round(os.getloadavg()[0], 2),
        "processes": [{"name": name, "pid": pid, "cores": cores} for cores, name, pid in above],
    }


def busy(seconds: float = 0.5) -> dict[str, Any]:
    """What else runs on this machine now, watched for `seconds`; see `between`."""
    before = snapshot()
    time.sleep(seconds)
    return between(before, snapshot())


def disturbance(seen: dict[str, Any]) -> str | None:
    """Why a machine where `busy` saw this is not quiet, or None where it is."""
    if seen["processes"]:
        names = ", ".join(f"{share['name']} ({share['cores']:.0%} of a core)" for share in seen["processes"])
        return f"other processes ran: {names}"
    if seen["other_cores"] > BUSY_SHARE:
        return f"processes that have ended since kept {seen['other_cores']:.2f} cores busy"
    if seen["steal"] > STEAL_SHARE:
        return f"other virtual machines took {seen['steal']:.1%} of a core"
    return None


def bf16_sets() -> list[str]:
    """This CPU's instruction sets that make training in bf16 faster than in fp32."""
    return [name for name in BF16_SETS if name in _processor()[1]]


def _processor() -> tuple[str, list[str]]:
    lines = [line.partition(":") for line in _read("/proc/cpuinfo").splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in lines}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    isa = [flag for flag in X86_FLAGS if flag in flags] + [
        ours for flag, ours in ARM_FLAGS.items() if flag in flags
    ]
    return facts.get("model name") or platform.processor() or platform.machine(), isa


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    with suppress(ImportError):  # its own word: two packages install it, and can overwrite each other
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
    return found


def _gpus() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""

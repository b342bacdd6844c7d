"""Calls in turn, in processes and on Ray: equal results, and what happens when something fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from compressor import executors
from compressor.errors import RunError, UserError
from compressor.executors import ExecutorKeys, check_executor, run_all

IN_TURN, PROCESSES = ExecutorKeys(), ExecutorKeys(workers=2)
RAY = ExecutorKeys(executor="ray", workers=2)


def trained(seed: int) -> list[float]:
    """Weights after some steps of training: the same wherever it happens."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(20):
        optimiser.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimiser.step()
    return [value for parameter in model.parameters() for value in parameter.flatten().tolist()]


def where(_: int) -> tuple[int, str, int]:
    return os.getpid(), os.getcwd(), torch.get_num_threads()


def refuses(job: int) -> int:
    if job == 1:
        raise UserError("job 1 cannot be done")
    return job


def dies(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'compressor[ray]'")
    ray.init(
        num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000
    )
    yield
    ray.shutdown()


def found(keys: ExecutorKeys) -> dict[int, list[float]]:
    return dict(run_all(keys, trained, range(3)))


def test_processes_find_what_one_finds_in_turn() -> None:
    assert found(PROCESSES) == found(IN_TURN)
    pids = {pid for _, (pid, _, _) in run_all(PROCESSES, where, range(4))}
    assert os.getpid() not in pids
    assert not [p for p in psutil.Process().children() if p.pid in pids]


@pytest.mark.slow
def test_ray_finds_what_one_finds_in_turn(local_ray: None) -> None:
    assert found(RAY) == found(IN_TURN)
    for _, (pid, folder, threads) in run_all(RAY, where, range(2)):
        assert pid != os.getpid()
        assert (folder, threads) == (os.getcwd(), 1)
    with pytest.raises(UserError, match=r"^job 1 cannot be done$"):
        dict(run_all(RAY, refuses, range(3)))
    with pytest.raises(RunError, match="on Ray died"):
        list(run_all(RAY, dies, [0]))
    import ray

    assert ray.is_initialized()  # whoever started it ends it


def test_workers_divide_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert {threads for _, (_, _, threads) in run_all(PROCESSES, where, range(2))} == {2}


def test_what_a_job_raises_ends_the_rest() -> None:
    for keys in (IN_TURN, PROCESSES):
        with pytest.raises(UserError, match=r"^job 1 cannot be done$"):
            dict(run_all(keys, refuses, range(3)))


def test_a_worker_that_dies_is_said() -> None:
    with pytest.raises(RunError, match="a worker of the search died"):
        list(run_all(PROCESSES, dies, [0]))


WAITS = """
import signal, sys, time
from compressor.executors import ExecutorKeys, run_all
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    sys.stdout.write("ready\\n"), sys.stdout.flush()
    list(run_all(ExecutorKeys(workers=2), time.sleep, [600.0, 600.0]))
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(sign: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(WAITS, encoding="utf-8")
    path = os.pathsep.join(
        filter(None, [str(Path(executors.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path}, stderr=-3)
    workers: list[psutil.Process] = []
    while len([w for w in workers if "spawn_main" in " ".join(w.cmdline())]) < 2:
        time.sleep(0.1)
        workers = psutil.Process(parent.pid).children()
    time.sleep(2)
    parent.send_signal(sign)
    parent.wait(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda _: None)
    check_executor(PROCESSES)
    with pytest.raises(UserError, match=r"pip install 'compressor\[ray\]'"):
        check_executor(RAY)

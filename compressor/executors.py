"""Many calls of one function: in turn, in processes of this machine, or on a Ray cluster, with equal results.

Equal to the last bit where every call has as many threads; otherwise as equal as sums in another order are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from compressor.errors import RunError, UserError
from compressor.schema import Keys

Job = TypeVar("Job")
Result = TypeVar("Result")
Submit = Callable[[Callable[[Any], Any], Any], "Future[Any]"]


class ExecutorKeys(Keys):
    """Where a search tries its candidates. It does not change what is found, so it is no part of a stage's key.

    `workers` at a time: with `local`, processes of this machine, which share its devices or its threads; with
    `ray`, tasks on the cluster that RAY_ADDRESS names (or one started here), whose machines must see the run's
    folder and the data under the same paths.
    """

    executor: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(gt=0)] = 1

    @property
    def in_turn(self) -> bool:
        """Whether everything happens in this process."""
        return self.executor == "local" and self.workers == 1


def check_executor(keys: ExecutorKeys) -> None:
    """Raise UserError where Ray is asked for and not installed."""
    if keys.executor == "ray" and find_spec("ray") is None:
        raise UserError("executor: ray needs Ray, which is not installed: pip install 'compressor[ray]'")


def run_all(
    keys: ExecutorKeys, function: Callable[[Job], Result], jobs: Sequence[Job]
) -> Iterator[tuple[Job, Result]]:
    """Every job with what `function` makes of it, as they are done; whatever it raises ends the rest.

    Both must be picklable unless all happens in turn.

    Raises:
        RunError: a worker died.
    """
    if keys.in_turn or not jobs:
        yield from ((job, function(job)) for job in jobs)
        return
    with (_on_ray if keys.executor == "ray" else _in_processes)(keys.workers) as submit:
        futures = {submit(function, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def _in_processes(workers: int) -> Iterator[Submit]:
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(number) for number in range(count))
    devices = named.split(",") if count else [""]
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    places = context.SimpleQueue()
    for number in range(workers):
        places.put(devices[number % len(devices)])
    threads = max(1, torch.get_num_threads() // workers)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _settle, (places, threads))
    try:
        yield pool.submit
    except BrokenProcessPool as error:
        raise RunError(
            f"a worker of the search died, perhaps for want of memory with {workers} at a time; what was tried is "
            "kept: run the same command again, if need be with fewer `workers`"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
            child.join()


def _settle(places: Any, threads: int) -> None:
    """Begin a worker: its device, its threads, and its end together with its parent's."""
    from compressor.log import quiet_libraries

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device := places.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    quiet_libraries()
    _set_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


@contextmanager
def _on_ray(workers: int) -> Iterator[Submit]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, configure_logging=False)
    have = ray.cluster_resources()
    largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    threads = max(1, int(min(have.get("CPU", 1) / workers, largest)))
    call = ray.remote(num_cpus=threads, num_gpus=1 if have.get("GPU") else 0, max_retries=0)(_as_here)
    here = os.getcwd()
    try:
        yield lambda function, job: call.remote(here, threads, function, job).future()
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise RunError(
            f"a worker of the search on Ray died ({type(error).__name__}); what was tried is kept: run again"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _as_here(folder: str, threads: int, function: Callable[[Any], Any], job: Any) -> Any:
    """Call on a worker of Ray's, in the folder that relative paths are meant from."""
    from compressor.log import quiet_libraries

    os.chdir(folder)
    quiet_libraries()
    _set_threads(threads)
    return function(job)

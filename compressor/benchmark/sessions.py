"""Sessions of onnxruntime that are all opened the same way, and that run where they were asked to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compressor.benchmark.inputs import parse_input_shapes, random_inputs
from compressor.cell import Provider
from compressor.errors import UserError

__all__ = [
    "check_provider",
    "host_call",
    "open_session",
    "parse_input_shapes",
    "random_inputs",
    "run_call",
    "share_threads",
]

EXECUTION_PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXTRAS = {"cpu": "compressor[cpu]", "cuda": "compressor[gpu]"}


def check_provider(provider: Provider) -> None:
    """Raise UserError unless the installed onnxruntime offers `provider`."""
    available = onnxruntime.get_available_providers()
    if EXECUTION_PROVIDERS[provider] not in available:
        raise UserError(
            f"provider '{provider}' is not in the installed onnxruntime, which has {', '.join(available)}; "
            f"uninstall onnxruntime, then install {EXTRAS[provider]} (the two builds overwrite each other)"
        )


def share_threads(threads: int) -> None:
    """Make one thread pool for all sessions of this process; call it before the first is opened.

    Sessions that run in turn are then never disturbed by each other's waiting threads, spinning stays at
    onnxruntime's default, and the operating system cannot place one session's threads worse than another's.
    With a pool each and a busy neighbour, it does so for as long as the process lives: the ratio of a model
    to a copy of itself was off by 30 % in one process, and by 4 % with one pool.
    """
    onnxruntime.set_global_thread_pool_sizes(threads, 1)


def open_session(
    path: Path, provider: Provider, threads: int, *, shared_threads: bool = False
) -> onnxruntime.InferenceSession:
    """Open an ONNX file on `provider` and nothing else, with `threads` threads inside an operator.

    A session has threads of its own, which do not spin between its runs, unless `shared_threads`: then it
    uses the pool of `share_threads`. Raises UserError where the file cannot be opened, or the provider is not
    there or does not start (onnxruntime alone would only warn and run on the CPU).
    """
    check_provider(provider)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if provider == "cuda":
        onnxruntime.preload_dlls()  # finds the CUDA libraries that came as Python packages
    wanted = EXECUTION_PROVIDERS[provider]
    providers = list(dict.fromkeys([wanted, EXECUTION_PROVIDERS["cpu"]]))  # shape arithmetic stays on the CPU
    try:
        session = onnxruntime.InferenceSession(
            str(path), _options(threads, shared_threads), providers=providers, enable_fallback=0
        )
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise UserError(f"{path}: onnxruntime cannot open it on {provider}: {_first_line(error)}") from error
    if session.get_providers()[0] != wanted:
        raise UserError(
            f"{path}: {wanted} did not start (is the driver, CUDA or cuDNN missing?); "
            f"onnxruntime would have run on {session.get_providers()[0]}"
        )
    session.disable_fallback()
    return session


def run_call(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray], provider: Provider
) -> Callable[[], Any]:
    """One inference as a function without arguments, to be timed.

    On CUDA inputs and outputs stay on the device, and the call returns when the device is done.
    """
    if provider == "cpu":
        return host_call(session, inputs)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)
    binding.synchronize_inputs()

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def host_call(session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    """One inference from and to numpy arrays: on CUDA the copies, which a server pays too, are part of it."""
    feed = dict(inputs)
    return lambda: session.run(None, feed)


def _options(threads: int, shared_threads: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if shared_threads:
        options.use_per_session_threads = False
        return options
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Faster than allow_spinning=0 by a quarter (it still spins inside a run), and as quiet between runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

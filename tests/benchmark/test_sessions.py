"""Sessions: same options for all, and never on another provider than asked for."""

import numpy as np
import onnxruntime
import pytest

from compressor.benchmark import sessions
from compressor.benchmark.sessions import check_provider, open_session, run_call
from compressor.errors import UserError
from tests.benchmark.graphs import encoder


def test_threads_are_explicit_and_do_not_spin_between_runs(saved):
    options = open_session(saved(encoder(["batch", "sequence"])), "cpu", 2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_provider_that_is_not_installed_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match=r"'cuda'.*CPUExecutionProvider.*compressor\[gpu\]"):
        check_provider("cuda")


def test_a_silent_fallback_to_the_cpu_is_an_error(saved, monkeypatch):
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    real = onnxruntime.InferenceSession

    def falls_back(path, options, providers, enable_fallback):
        assert providers == available
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(UserError, match="CUDAExecutionProvider did not start"):
        open_session(saved(encoder(["batch", "sequence"])), "cuda", 1)


def test_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_session(tmp_path / "model.onnx", "cpu", 1)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot open it on cpu"):
        open_session(tmp_path / "model.onnx", "cpu", 1)


class Recorder:
    """Stands for a CUDA session and its binding: notes what is called, in order."""

    def __init__(self):
        self.calls = []

    def io_binding(self):
        return self

    def get_outputs(self):
        return [type("Output", (), {"name": "y"})]

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_on_cuda_the_timed_call_runs_on_bound_memory_and_waits_for_the_device(monkeypatch):
    def on_device(array, device, number):
        return (array.tolist(), device, number)

    monkeypatch.setattr(sessions.onnxruntime.OrtValue, "ortvalue_from_numpy", on_device)
    session = Recorder()
    call = run_call(session, {"x": np.array([1, 2])}, "cuda")
    assert session.calls == [
        ("bind_ortvalue_input", "x", ([1, 2], "cuda", 0)),
        ("bind_output", "y", "cuda", 0),
        ("synchronize_inputs",),
    ]
    session.calls.clear()
    call()
    assert session.calls == [("run_with_iobinding", session), ("synchronize_outputs",)]

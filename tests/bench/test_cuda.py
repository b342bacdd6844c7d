"""The GPU bench on a machine without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compressor.files import read_json

SCRIPT = Path(__file__).parents[2] / "bench" / "cuda.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would measure it")
def test_without_a_gpu_it_says_so_and_is_content(tmp_path: Path) -> None:
    output = tmp_path / "cuda.json"
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), "--output", str(output)]
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert made.stdout == "not measured: no CUDA device\n"
    assert read_json(output)["measured"] == "not measured: no CUDA device"

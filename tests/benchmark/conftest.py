"""What the tests of the harness share."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[onnx.ModelProto, str], Path]:
    """Writes a model to a file."""

    def save(model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return save

"""The best state of a training run, on disk: a run that is killed and resumed ends with the same."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from compressor.files import appearing, read_json, write_json

log = logging.getLogger(__name__)


class Best:
    """One state and what it was rated, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.weights = folder / "best.safetensors"
        self.record = folder / "best.json"

    def beaten_by(self, score: float) -> bool:
        """Whether no state that was kept is as good."""
        return not self.record.exists() or score > read_json(self.record)["score"]

    def keep(self, model: nn.Module, score: float, step: int) -> None:
        """Keep this state in place of the last one."""
        with appearing(self.weights) as temporary:
            save_model(model, str(temporary))
        write_json(self.record, {"score": score, "step": step})

    def restore(self, model: nn.Module) -> None:
        """Bring the best state back into the model; nothing happens where none was kept."""
        if not self.record.exists():
            return
        found = read_json(self.record)
        log.info("best state: score %.4f after step %d", found["score"], found["step"])
        load_model(model, self.weights, device=str(next(model.parameters()).device))

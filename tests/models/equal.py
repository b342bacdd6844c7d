"""What holds of every structure of every family: held to it, cut to it and reopened, a model computes the same."""

from pathlib import Path
from typing import Any

import torch

from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure
from tests.zoo import logits


def cut_and_reloaded(model: Any, inputs: Any, structure: Structure, folder: Path) -> tuple[Any, Any]:
    """The sliced model and the one reopened from `folder`, equal to each other and to the gated one."""
    dense = logits(model, inputs)
    with Gates(model, structure):
        gated = logits(model, inputs)
    assert not torch.allclose(gated, dense, atol=1e-3)
    torch.testing.assert_close(logits(model, inputs), dense)
    small = slice_model(model, structure)
    torch.testing.assert_close(logits(small, inputs), gated, atol=1e-5, rtol=0)
    checkpoint.save(small, folder)
    again = checkpoint.load(folder)
    assert torch.equal(logits(again, inputs), logits(small, inputs))
    assert structure_of(again) == structure.simplified()
    return small, again

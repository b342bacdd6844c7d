"""Models with learned gates, for tests of CoFi."""

from typing import Any

import torch

from compressor.models.architecture import structure_of
from compressor.pruning.cofi.gates import LearnedGates
from compressor.pruning.cofi.masking import Masking
from tests.zoo import tiny_model

KINDS = ("hidden", "layer", "head", "ffn", "neuron")


def gated_model(
    family: str = "bert", task: str = "text-classification", kinds: Any = KINDS, **extra: Any
) -> Any:
    """A tiny model held to gates that are all open, and its masking."""
    model = tiny_model(family, task, **extra)
    gates = LearnedGates(structure_of(model), kinds, lambda _: 10.0, seed=0)
    return model, Masking(model, gates)


@torch.no_grad()
def scatter(gates: LearnedGates, seed: int = 0, mean: float = -0.5, spread: float = 2.0) -> None:
    """Random logits."""
    torch.manual_seed(seed)
    for logits in gates.logits.values():
        torch.nn.init.normal_(logits, mean=mean, std=spread)

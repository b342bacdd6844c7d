"""Running a model from one layer to another, on what an earlier pass left: nothing below is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of


class Replay(nn.Module):
    """Stands for all layers below: whatever enters, it gives what the last of them gave."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`outputs`."""
        return self.outputs


@contextmanager
def window(model: PreTrainedModel, start: int, stop: int | None = None, below: Any = None) -> Iterator[None]:
    """The model's first stack with its layers from `start` to before `stop` alone.

    `below` is what layer `start - 1` gave for the batch to come; layer 0 takes the embeddings.
    """
    architecture = architecture_of(model.config)
    stack = architecture.stacks[0]
    whole = architecture.layers(model, stack)
    parent, _, name = stack.path.rpartition(".")
    owner = model.base_model.get_submodule(parent)
    layers = list(whole)[start:stop]
    setattr(owner, name, nn.ModuleList([Replay(below), *layers] if start else layers))
    try:
        yield
    finally:
        setattr(owner, name, whole)


@contextmanager
def recorded(model: PreTrainedModel) -> Iterator[list[Any]]:
    """What every layer of the first stack gives in the forward pass inside, in the order of layers."""
    architecture = architecture_of(model.config)
    outputs: list[Any] = []
    handles = [
        layer.register_forward_hook(lambda _module, _args, out: outputs.append(out))
        for layer in architecture.layers(model, architecture.stacks[0])
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()

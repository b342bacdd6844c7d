"""How large a model is: parameters and densities, three numbers that must not be mixed up."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from compressor.models.architecture import architecture_of, structure_of


def measures(model: PreTrainedModel) -> dict[str, Any]:
    """Parameters (all, and of the layers), and the linear weights of the layers as a share of the dense model's.

    `sliced_density` counts all weights that are left, `nonzero_density` those of them that are not zero; what
    layers share counts once.
    """
    architecture = architecture_of(model.config)
    structure = structure_of(model)
    linear, nonzero, body = 0, 0, 0
    for stack in architecture.stacks:
        layers = architecture.layers(model, stack)
        body += sum(p.numel() for p in layers.parameters())
        for layer in dict.fromkeys(layers):
            for table in stack.sublayers:
                weights = [f"{path}.weight" for path in (*table.inputs, table.output)]
                for name in (*weights, *table.learned):
                    weight: Any = dict(layer.named_parameters()).get(name)
                    if weight is not None:
                        linear += weight.numel()
                        nonzero += int(weight.count_nonzero())
    dense = structure.dense(structure.sizes).linear_weights()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "body_parameters": body,
        "nonzero_density": nonzero / dense,
        "sliced_density": linear / dense,
    }

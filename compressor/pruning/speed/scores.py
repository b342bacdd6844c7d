"""In which order a sub-layer's units go: the scores that the search can be run with.

All give, for every place, the units from the first to go to the last; weights are made up for in the same way after
all of them. Scores compare units of one sub-layer: how many of them go is the search's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.pruning.speed.divergence import SPANS, answers
from compressor.pruning.speed.moments import Batch, Moments, inputs_of
from compressor.pruning.speed.obs import removal_order
from compressor.pruning.speed.places import Key, Place

NEURON_BLOCK = 16
"""Neurons that are taken out together: sizes come in such steps, and it is 16 times faster."""
HARM = 0.1
"""Share of an error that counts whatever it changes in the answers."""
REPRESENTATION = 2.5e-4
"""Weight of what a unit adds to its sub-layer's output beside what it adds to the answers (K-prune's lambda)."""


@dataclass(frozen=True)
class Evidence:
    """What scores may look at: the dense model, calibration batches with labels, moments of inputs, a seed."""

    model: PreTrainedModel
    places: Sequence[Place]
    batches: Sequence[Batch]
    moments: Mapping[Key, Moments]
    seed: int


Orders = dict[Key, list[int]]


def second_order(evidence: Evidence) -> Orders:
    """Structured optimal brain surgeon: each removal looks at what the ones before it left (ZipLM, 2023).

    An error in a sub-layer's output counts by what it changes in the answers: its square is taken under the Fisher
    information of that output, the other half of a Kronecker-factored Hessian (Wang et al., "EigenDamage", 2019).
    """
    found, information = {}, _output_information(evidence)
    for place in evidence.places:
        block = NEURON_BLOCK if place.size == 1 else 1
        values, vectors = torch.linalg.eigh(information[place.key])
        weight = place.projection.weight.detach().double().cpu()
        felt = values.clamp(min=0).sqrt()[:, None] * (vectors.T @ weight)
        found[place.key] = removal_order(evidence.moments[place.key].covariance, felt, place.size, block)[0]
    return found


def fisher(evidence: Evidence) -> Orders:
    """Empirical Fisher information of gates on the units of a sub-layer (Kwon et al. 2022).

    What it costs to close some of them is the sum over examples of their loss gradients' sum, squared: less than each
    alone where gradients cancel. Published as a search by squares and a rearrangement of what it found; here every
    unit goes when it adds least to what went before it, so that each size is part of the next.
    """
    products: dict[Key, Tensor] = {}
    for gradients in _gradients(evidence, lambda output, _inputs, _random: output.loss):
        for key, each in gradients.items():
            products[key] = products.get(key, 0) + (each.T @ each).float()
    return {key: least_together(matrix) for key, matrix in products.items()}


def least_together(products: Tensor) -> list[int]:
    """The units in the order in which each adds least to the sum of `products` (units, units) over all that went."""
    adds, order = products.diagonal().clone(), []
    for _ in range(len(products)):
        order.append(int(adds.argmin()))
        adds += 2 * products[order[-1]]
        adds[order[-1]] = float("inf")
    return order


def kprune(evidence: Evidence) -> Orders:
    """Knowledge in answers and in representations (Park, Choi, Kang, "K-prune", ICLR 2024).

    That in answers is the Fisher information under labels drawn from the model's own answers: the published one, the
    gradient of the divergence from the dense model, is zero as long as nothing is pruned. That in representations is
    the mean squared part of each unit in the output.
    """
    predictive: dict[Key, Any] = dict.fromkeys((place.key for place in evidence.places), 0.0)
    for gradients in _gradients(evidence, _own_loss):
        for key, each in gradients.items():
            predictive[key] = predictive[key] + each.square().sum(dim=0)
    examples = sum(len(batch["input_ids"]) for batch in evidence.batches)
    scores = {}
    for place in evidence.places:
        share = _second_moment(
            evidence, place
        ) * place.projection.weight.detach().double().cpu().square().mean(0)
        scores[place.key] = predictive[place.key] / examples + REPRESENTATION * _by_unit(place, share).mean(1)
    return _rising(scores)


def activation(evidence: Evidence) -> Orders:
    """Root mean square of what each unit hands on (after Muralidharan et al., "Minitron", 2024)."""
    scores = {
        place.key: _by_unit(place, _second_moment(evidence, place)).sum(1).sqrt() for place in evidence.places
    }
    return _rising(scores)


def magnitude(evidence: Evidence) -> Orders:
    """Norm of each unit's weights in the output projection."""
    squares = {p.key: p.projection.weight.detach().double().cpu().square().sum(0) for p in evidence.places}
    return _rising({place.key: _by_unit(place, squares[place.key]).sum(1) for place in evidence.places})


def chance(evidence: Evidence) -> Orders:
    """Any order, by the recipe's seed: for comparison."""
    random = torch.Generator().manual_seed(evidence.seed)
    return {
        place.key: torch.randperm(len(place.units), generator=random).tolist() for place in evidence.places
    }


ORDERS: dict[str, Callable[[Evidence], Orders]] = {
    "second-order": second_order,
    "fisher": fisher,
    "kprune": kprune,
    "activation": activation,
    "magnitude": magnitude,
    "random": chance,
}


def _rising(scores: Mapping[Key, Tensor]) -> Orders:
    return {key: values.argsort(stable=True).tolist() for key, values in scores.items()}


def _by_unit(place: Place, columns: Tensor) -> Tensor:
    """A value a column of the output projection as (units, columns a unit)."""
    return columns.view(len(place.units), place.size)


def _second_moment(evidence: Evidence, place: Place) -> Tensor:
    """Mean square of every input of the output projection."""
    moments = evidence.moments[place.key]
    return moments.covariance.diagonal() + moments.mean.square()


LossOf = Callable[[Any, Batch, torch.Generator], Tensor]
"""The mean loss over a batch's examples, of a model's output."""


def _gradients(evidence: Evidence, loss_of: LossOf) -> Iterator[dict[Key, Tensor]]:
    """Of every batch the gradients of each example's loss by a gate on each unit, (rows, units).

    Every example has gates of its own, so that one backward pass a batch gives the gradients one by one.
    """
    model, random = evidence.model.eval(), torch.Generator().manual_seed(evidence.seed)
    gates: dict[Key, Tensor] = {}
    handles = [_gated(place, gates) for place in evidence.places]
    try:
        for batch in evidence.batches:
            gates.clear()
            inputs = {name: values.to(model.device) for name, values in batch.items()}
            loss = loss_of(model(**inputs), inputs, random) * len(inputs["input_ids"])
            grads = torch.autograd.grad(loss, list(gates.values()))
            yield {key: grad.double().cpu() for key, grad in zip(gates, grads, strict=True)}
    finally:
        for handle in handles:
            handle.remove()


def _output_information(evidence: Evidence) -> dict[Key, Tensor]:
    """Fisher information of what each output projection gives a token, (out, out), up to a factor.

    Labels are drawn from the model's own answers. A share of the identity is added, as no error is quite harmless.
    """
    model, random = evidence.model.eval(), torch.Generator().manual_seed(evidence.seed)
    outputs: dict[Key, Tensor] = {}
    handles = [
        place.projection.register_forward_hook(_keeping(place.key, outputs)) for place in evidence.places
    ]
    sums: dict[Key, Any] = dict.fromkeys((place.key for place in evidence.places), 0.0)
    try:
        for batch in evidence.batches:
            inputs = inputs_of(model, batch)
            loss = _own_loss(model(**inputs), inputs, random) * len(inputs["input_ids"])
            grads = torch.autograd.grad(loss, list(outputs.values()))
            real = inputs["attention_mask"].bool()
            for key, grad in zip(outputs, grads, strict=True):
                rows = grad[real].double().cpu()
                sums[key] = sums[key] + rows.T @ rows
    finally:
        for handle in handles:
            handle.remove()
    return {key: _mixed(total) for key, total in sums.items()}


def _mixed(total: Tensor) -> Tensor:
    """With a mean diagonal of 1, and `HARM` of it the identity."""
    scale = total.diagonal().mean().clamp(min=torch.finfo(total.dtype).tiny)
    return (1 - HARM) * total / scale + HARM * torch.eye(len(total), dtype=total.dtype)


def _keeping(key: Key, outputs: dict[Key, Tensor]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        outputs[key] = output

    return hook


def _gated(place: Place, gates: dict[Key, Tensor]) -> Any:
    """Put gates of one before a place's output projection, (rows, units), fresh at every forward pass."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        gates[place.key] = x.new_ones(x.shape[0], len(place.units), requires_grad=True)
        return (x * gates[place.key].repeat_interleave(place.size, dim=1)[:, None, :], *args[1:])

    return place.projection.register_forward_pre_hook(hook)


def _own_loss(output: Any, inputs: Batch, random: torch.Generator) -> Tensor:
    """The loss under labels drawn from the model's own answers: its squared gradient is the true Fisher."""
    mask, losses = inputs["attention_mask"].bool(), []
    for name, values in answers(output).items():
        if name in SPANS:
            values = values.masked_fill(~mask, float("-inf"))
        if name not in (*SPANS, "logits") or values.shape[-1] == 1:
            noise = torch.randn(values.shape, generator=random).to(values.device)
            losses.append((values * noise).sum() / len(values))
            continue
        rows = values[mask] if values.dim() == 3 else values
        drawn = torch.multinomial(rows.detach().softmax(-1).cpu(), 1, generator=random)[:, 0].to(rows.device)
        losses.append(functional.cross_entropy(rows, drawn, reduction="sum") / len(values))
    return torch.stack(losses).sum()

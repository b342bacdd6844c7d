"""What is kept of a model, as plain data. No torch here: a Structure is read, compared and stored anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class SubLayer:
    """An attention or FFN sub-layer: the indices of its kept units (heads or neurons, original numbering).

    Nothing kept means `constant`: the output projection's bias, the residual and the norm stay. `absent`
    means that residual add and norm go too: the sub-layer returns its input.
    """

    kept: tuple[int, ...] = ()
    absent: bool = False

    @property
    def active(self) -> bool:
        """Whether anything is left to compute."""
        return bool(self.kept)

    def to_json(self) -> Any:
        """`{"kept": [...]}`, `"constant"` or `"absent"`."""
        if self.absent:
            return "absent"
        return {"kept": list(self.kept)} if self.kept else "constant"

    @classmethod
    def from_json(cls, value: Any) -> SubLayer:
        """Inverse of `to_json`."""
        if value == "absent":
            return cls(absent=True)
        return cls() if value == "constant" else cls(tuple(value["kept"]))


@dataclass(frozen=True)
class Layer:
    """One kept layer: its stack, its original index there, and its sub-layers by name."""

    stack: str
    index: int
    sublayers: Mapping[str, SubLayer]

    @property
    def absent(self) -> bool:
        """Whether the layer returns its input."""
        return all(sub.absent for sub in self.sublayers.values())


@dataclass(frozen=True)
class Sizes:
    """The dense original: per stack `{"layers": n, "<sub-layer>": units}`; hidden and head width.

    `projections` counts the matrices of a sub-layer that a unit has rows or columns in (attention 4, FFN 2,
    gated FFN 3), `positional` those of them that do not read the residual stream (relative positions: 1). The
    layers of the stacks in `shared` are one and the same, applied again and again: fewer of them are less to
    compute, not less to store. `learned` counts the keys and values that every head of a sub-layer has of its own.
    """

    stacks: Mapping[str, Mapping[str, int]]
    hidden: int
    head_size: int
    projections: Mapping[str, int]
    positional: Mapping[str, int] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    learned: Mapping[str, int] = field(default_factory=dict)

    def unit_size(self, name: str) -> int:
        """Rows per unit: a head's width, or 1 for a neuron."""
        return 1 if name == "ffn" else self.head_size


@dataclass(frozen=True)
class Structure:
    """Layers kept, what is kept of each, and the hidden dimensions kept (`None`: all)."""

    sizes: Sizes
    layers: tuple[Layer, ...] = field(default=())
    hidden: tuple[int, ...] | None = None

    @classmethod
    def dense(cls, sizes: Sizes) -> Structure:
        """Everything kept."""
        layers = tuple(
            Layer(
                stack,
                index,
                {n: SubLayer(tuple(range(units))) for n, units in counts.items() if n != "layers"},
            )
            for stack, counts in sizes.stacks.items()
            for index in range(counts["layers"])
        )
        return cls(sizes, layers)

    def keeping(self, kept: Mapping[tuple[str, int, str], SubLayer]) -> Structure:
        """A copy in which the named sub-layers `(stack, index, name)` are replaced."""
        layers = tuple(
            replace(
                layer,
                sublayers={
                    name: kept.get((layer.stack, layer.index, name), sub)
                    for name, sub in layer.sublayers.items()
                },
            )
            for layer in self.layers
        )
        return replace(self, layers=layers)

    def simplified(self) -> Structure:
        """The same function with layers that do nothing left out."""
        return replace(self, layers=tuple(layer for layer in self.layers if not layer.absent))

    def within(self, other: Structure) -> bool:
        """Whether `other` keeps everything that this keeps."""
        theirs = {(la.stack, la.index): la for la in other.layers}
        if self.hidden_kept() - other.hidden_kept():
            return False
        return all(
            (layer.stack, layer.index) in theirs
            and all(
                sub.absent
                or (
                    not theirs[layer.stack, layer.index].sublayers[name].absent
                    and set(sub.kept) <= set(theirs[layer.stack, layer.index].sublayers[name].kept)
                )
                for name, sub in layer.sublayers.items()
            )
            for layer in self.simplified().layers
        )

    def hidden_kept(self) -> set[int]:
        """Kept hidden dimensions as a set."""
        return set(range(self.sizes.hidden) if self.hidden is None else self.hidden)

    @property
    def hidden_width(self) -> int:
        """Width of the residual stream."""
        return self.sizes.hidden if self.hidden is None else len(self.hidden)

    def heads(self) -> int:
        """Attention heads kept, over all layers."""
        return sum(len(sub.kept) for _, name, sub in self.each() if name != "ffn")

    def linear_weights(self) -> int:
        """Weights in the layers' linear maps, without biases (what published densities count)."""
        own = [layer for layer in self.layers if layer.stack not in self.sizes.shared]
        shared = {layer.stack: layer for layer in self.layers if layer.stack in self.sizes.shared}
        return sum(self._weights(layer) for layer in [*own, *shared.values()])

    def _weights(self, layer: Layer) -> int:
        sizes, width = self.sizes, self.hidden_width
        total = 0
        for name, sub in layer.sublayers.items():
            columns = sizes.projections[name] * width + sizes.positional.get(name, 0) * (sizes.hidden - width)
            columns += sizes.learned.get(name, 0)
            total += len(sub.kept) * sizes.unit_size(name) * columns
        return total

    def density(self) -> float:
        """Linear weights kept as a fraction of the dense original's."""
        return self.linear_weights() / Structure.dense(self.sizes).linear_weights()

    def flops(self, batch: int, length: int) -> int:
        """Multiply-adds of the layers for `batch` sequences of `length` tokens (attention scores included)."""
        scores = sum(
            2 * len(sub.kept) * self.sizes.head_size * length for _, name, sub in self.each() if name != "ffn"
        )
        products = sum(self._weights(layer) for layer in self.layers)
        return batch * length * (products + scores)

    def each(self) -> Iterable[tuple[Layer, str, SubLayer]]:
        """Every sub-layer with its layer and name, in order."""
        return ((layer, name, sub) for layer in self.layers for name, sub in layer.sublayers.items())

    def is_dense(self) -> bool:
        """Whether nothing was cut from it."""
        return self == Structure.dense(self.sizes)

    def only_layers_dropped(self) -> bool:
        """Whether every kept layer is whole, so that plain transformers can open the model."""
        whole = self.hidden is None
        return whole and all(
            len(sub.kept) == self.sizes.stacks[layer.stack][name] for layer, name, sub in self.each()
        )

    def check_shared(self) -> None:
        """That only whole layers are missing where all are one.

        Raises:
            ValueError: a part of a shared layer is.
        """
        if self.sizes.shared and not self.simplified().only_layers_dropped():
            raise ValueError("layers that share their weights can only be dropped whole")

    def to_json(self) -> dict[str, Any]:
        """Plain data for files."""
        return {
            "layers": [
                {"stack": la.stack, "index": la.index, **{n: s.to_json() for n, s in la.sublayers.items()}}
                for la in self.layers
            ],
            "hidden": None if self.hidden is None else {"kept": list(self.hidden)},
            "sizes": {
                "stacks": {name: dict(counts) for name, counts in self.sizes.stacks.items()},
                "hidden": self.sizes.hidden,
                "head_size": self.sizes.head_size,
                "projections": dict(self.sizes.projections),
                "positional": dict(self.sizes.positional),
                "shared": list(self.sizes.shared),
                "learned": dict(self.sizes.learned),
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Structure:
        """Inverse of `to_json`."""
        layers = tuple(
            Layer(
                row["stack"],
                row["index"],
                {n: SubLayer.from_json(s) for n, s in row.items() if n not in ("stack", "index")},
            )
            for row in value["layers"]
        )
        hidden = None if value["hidden"] is None else tuple(value["hidden"]["kept"])
        sizes = Sizes(**value["sizes"])
        return cls(replace(sizes, shared=tuple(sizes.shared)), layers, hidden)

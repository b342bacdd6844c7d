"""What is left of a model, layer by layer, for the picture and the console."""

from compressor.models.structure import Layer, Structure, SubLayer
from compressor.report.fields import Results

SHARED = "one layer's weights serve them all: fewer layers are less to compute, not less to store"


def structures_of(results: Results) -> list[tuple[list[str], Structure]]:
    """The different pruned structures, each with the variants that have it."""
    groups: dict[str, tuple[list[str], Structure]] = {}
    for name, variant in results["variants"].items():
        if variant.get("structure"):
            structure = Structure.from_json(variant["structure"])
            if not structure.is_dense():
                groups.setdefault(repr(structure), ([], structure))[0].append(name)
    return list(groups.values())


def every_layer(structure: Structure, stack: str) -> list[Layer | None]:
    """The original layers of `stack` in order, `None` for one that is gone as a whole."""
    kept = {layer.index: layer for layer in structure.layers if layer.stack == stack and not layer.absent}
    return [kept.get(index) for index in range(structure.sizes.stacks[stack]["layers"])]


def sublayer_names(structure: Structure, stack: str) -> list[str]:
    """The sub-layers of a stack's layers, in order."""
    return [name for name in structure.sizes.stacks[stack] if name != "layers"]


def sublayer_state(sub: SubLayer) -> str:
    """`absent`, `constant`, or nothing for a sub-layer that still computes."""
    return "" if sub.active else "absent" if sub.absent else "constant"


def hidden_text(structure: Structure) -> str:
    """`hidden width 352 of 384`."""
    return f"hidden width {structure.hidden_width:,} of {structure.sizes.hidden:,}"


def kept_summary(structure: Structure) -> str:
    """Layers, heads and neurons left, in a line."""
    hidden = [] if structure.hidden is None else [hidden_text(structure)]
    return "; ".join([*(_stack_summary(structure, stack) for stack in structure.sizes.stacks), *hidden])


def _stack_summary(structure: Structure, stack: str) -> str:
    layers = every_layer(structure, stack)
    words = [f"{stack}: {sum(layer is not None for layer in layers)} of {len(layers)} layers"]
    for name in sublayer_names(structure, stack):
        kept = sum(len(layer.sublayers[name].kept) for layer in layers if layer)
        unit = "FFN neurons" if name == "ffn" else f"{name.replace('_', ' ')} heads"
        words.append(f"{kept:,} of {structure.sizes.stacks[stack][name] * len(layers):,} {unit}")
    note = f" ({SHARED})" if stack in structure.sizes.shared else ""
    return ", ".join(words) + note

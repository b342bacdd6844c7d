"""What int8 does on which processor: the one place that knows."""

from collections.abc import Collection
from typing import NamedTuple


class Preset(NamedTuple):
    """How to quantize where one of these instruction sets is there.

    int8 products are sums of unsigned activations times signed weights. Without instructions that add four of them
    in 32 bits at once, pairs are added in 16 bits, which can overflow: weights of 7 bits (`reduce_range`) cannot.
    """

    name: str
    instructions: tuple[str, ...]
    reduce_range: bool
    effect: str


EXACT = "int8 products are fast, and exact"
PRESETS = (
    Preset("AMX", ("amx_int8",), False, "int8 products are fastest, and exact"),
    Preset("VNNI", ("avx512_vnni", "avx_vnni"), False, EXACT),
    Preset("i8mm", ("i8mm",), False, EXACT),
    Preset("dotprod", ("dotprod",), False, EXACT),
    Preset(
        "no VNNI",
        ("avx2", "avx512f"),
        True,
        "int8 sums can saturate, so `quantize` takes 7-bit weights; expect less speedup",
    ),
)
"""The first that applies is taken."""
UNKNOWN = Preset("no instructions for int8 known here", (), True, "measure whether it pays")


def preset_for(isa: Collection[str]) -> Preset:
    """What to do on a processor with these instruction sets (as `benchmark.machine.fingerprint` names them)."""
    return next((preset for preset in PRESETS if set(preset.instructions) & set(isa)), UNKNOWN)

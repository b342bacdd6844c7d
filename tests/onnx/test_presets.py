"""Which processors get 7-bit weights."""

import pytest

from compressor.benchmark import machine
from compressor.onnx.presets import PRESETS, preset_for
from compressor.stages.quantize import Quantize


@pytest.mark.parametrize(
    ("isa", "name", "reduce_range"),
    [
        (["avx2", "avx512f", "avx512_vnni", "amx_int8"], "AMX", False),
        (["avx2", "avx512f", "avx512_vnni"], "VNNI", False),
        (["avx2", "avx_vnni"], "VNNI", False),
        (["avx2", "avx512f"], "no VNNI", True),
        (["neon", "dotprod", "i8mm"], "i8mm", False),
        (["neon", "dotprod"], "dotprod", False),
        (["neon"], "no instructions for int8 known here", True),
    ],
)
def test_sums_that_can_overflow_get_smaller_weights(isa, name, reduce_range, monkeypatch) -> None:
    assert preset_for(isa)[::2] == (name, reduce_range)
    monkeypatch.setattr(machine, "fingerprint", lambda: {"isa": isa})
    assert Quantize().reduces_range() is reduce_range
    assert Quantize(reduce_range=True).reduces_range()
    assert not Quantize(reduce_range=False).reduces_range()


def test_presets_speak_of_what_the_fingerprint_knows() -> None:
    known = {*machine.X86_FLAGS, *machine.ARM_FLAGS.values()}
    assert {name for preset in PRESETS for name in preset.instructions} <= known

"""The bench of whole generations, on sizes that run in milliseconds."""

from pathlib import Path

import pytest
from transformers import BartConfig

from bench import generation
from compressor.files import read_json
from compressor.models.architecture import ARCHITECTURES
from compressor.models.structure import Structure

TINY = BartConfig(
    vocab_size=60, d_model=24, max_position_embeddings=40, encoder_layers=6, decoder_layers=6,
    encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=260, decoder_ffn_dim=260,
)  # fmt: skip


def test_the_published_network_has_the_published_numbers_of_heads_and_neurons() -> None:
    dense = Structure.dense(ARCHITECTURES["bart"].sizes(generation.base_config()))
    assert dense.linear_weights() == 99_090_432
    assert dense.heads() == 216
    small, ffn_only = (generation.structure(dense, name) for name in generation.NETWORKS)
    assert dense.heads() - small.heads() == 61
    assert ffn_only.heads() == 216
    widths = [len(sub.kept) for _, name, sub in small.each() if name == "ffn"]
    assert widths == [68, 57, 75, 84, 88, 107, 30, 216, 244, 249, 115, 170]
    weights = 1503 * 768 * 2
    assert ffn_only.linear_weights() == 18 * 4 * 768 * 768 + weights
    assert sum(widths) == 1503
    assert weights / (12 * 2 * 768 * 3072) == pytest.approx(generation.PUBLISHED["ffn_density"], abs=5e-4)


@pytest.mark.slow
def test_every_part_is_measured_saved_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "generation.json"
    options = generation.Options(("d23",), (8,), 4, 0.02, 3, 1, TINY)
    state = generation.run(options, 1.0, output)
    assert state == read_json(output)
    assert state["missing"] == []
    (cell,) = state["networks"]["d23"]["cells"]
    for name in ("dense_fp32", "pruned_fp32", "dense_int8", "pruned_int8"):
        assert [row["part"] for row in cell["latency"][name]] == [
            "generation",
            "encoder",
            "first_token",
            "next_token",
        ]
    assert [row["part"] for row in cell["speedup"]["int8_over_int8"]] == [
        row["part"] for row in cell["speedup"]["pruned_fp32"]
    ]
    assert state["networks"]["d23"]["heads"] == 155
    monkeypatch.setattr(generation, "exported", lambda *_: pytest.fail("measured again"))
    assert generation.run(options, 1.0, output)["networks"] == state["networks"]

"""The comparison with Transformer-XL: its cells, their recipes and its table."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import all_attention as bench
from compressor.recipe import load_recipe


def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        train=str(tmp_path / "a.txt"),
        validation=str(tmp_path / "b.txt"),
        lines=None,
        epochs=0.5,
        precision="fp32",
        seeds=1,
        set=[],
    )


@pytest.mark.parametrize("cell", list(bench.cells(2)), ids=lambda cell: cell.name)
def test_every_cell_is_a_valid_recipe(cell: bench.Cell, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one two\n" * 9, encoding="utf-8")
    path = tmp_path / "cell.yaml"
    path.write_text(yaml.safe_dump(bench.recipe(options(tmp_path), cell)), encoding="utf-8")
    recipe = load_recipe(path).recipe
    assert recipe.seed == 42 + cell.seed
    epochs = sum(stage.training.epochs for stage in recipe.stages if stage.training)
    # Half of 8 + 3 + 1, of 8 where nothing is trained afterwards, of 8 twice where the gates learn from the start.
    assert epochs == pytest.approx({"unconverged": 10, "half": 4}.get(cell.kind, 6))


def test_cells_of_a_family_and_seed_share_the_dense_model(tmp_path: Path) -> None:
    first, second = (
        bench.recipe(options(tmp_path), bench.Cell("transformer-xl", "pruned", penalty, 0))
        for penalty in (0.01, 0.02)
    )
    assert first["stages"][0] == second["stages"][0]
    assert first["model"] == second["model"]
    assert first["stages"][1]["prune"]["id"] != second["stages"][1]["prune"]["id"]


def test_the_table_shows_what_a_token_takes() -> None:
    cell: dict[str, Any] = {
        "family": "all-attention",
        "kind": "pruned",
        "value": 0.02,
        "seed": 0,
        "heads": [3, 0, 8],
        "parameters": {"body_parameters": 1_230_000, "parameters": 2_500_000},
        "dense": 120.0,
        "perplexity": 125.5,
        "latency": [
            {"part": "segment", "p50_ms": 6.4, "sequence_length": 64},
            {"part": "segment", "p50_ms": 7.0, "sequence_length": "data"},
            {"part": "prompt", "p50_ms": 3.2, "sequence_length": 64},
            {"part": "step", "p50_ms": 0.5, "sequence_length": 64},
        ],
    }
    *_, last = bench.table({"cells": {"one": cell}}).splitlines()
    assert last.endswith("| 11 | 1.2 M | 2.5 M | 120.00 | 125.50 | 0.100 | 0.050 | 0.500 |")

"""What pruning methods get of a task without labels: a loss with a slope, and a metric to choose by."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.benchmark.schema import BenchmarkKeys
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.structure import SubLayer
from compressor.pruning.head_scores import sensitivity
from compressor.stages.base import Data, Work
from compressor.stages.context import TaskContext
from compressor.stages.release import GateKeys
from compressor.tasks.schema import TaskKeys
from tests.stages.test_tokenizer import source
from tests.zoo import HEADS, HIDDEN, plain_encoder, tiny_model

SIZE = HIDDEN // HEADS


@pytest.fixture
def context(tmp_path: Path) -> TaskContext:
    """Of a stage that prunes a random encoder, with texts alone."""
    folder = source(tmp_path / "model", "bert")
    plain_encoder("bert").save_pretrained(folder)
    path = tmp_path / "texts.jsonl"
    texts = [{"text": " ".join("abcdefgh"[n % 5 : n % 5 + n % 3 + 1])} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    files = {"train": str(path), "validation": str(path)}
    keys = TaskKeys(type="feature-extraction", dataset=files, selection={"fraction": 0.5}, max_length=16)
    return TaskContext(
        Work(
            str(folder),
            Data(keys, 0, str(folder)),
            0,
            folder,
            tmp_path / "out",
            tmp_path / "scratch",
            tmp_path,
            tmp_path.joinpath,
            lambda *_: None,
            GateKeys(),
            BenchmarkKeys(),
        )
    )


def model_of(context: TaskContext) -> Any:
    task = context.work.data.task
    return checkpoint.open_source(str(context.work.source), task.auto_class, task.model_config())[0]


def test_batches_have_the_same_random_targets_every_time(context: TaskContext) -> None:
    one, other = (list(context.labelled_batches()) for _ in range(2))
    assert one[0]["labels"].shape == (len(one[0]["input_ids"]), HIDDEN)
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(one, other, strict=True))
    assert all("labels" not in batch for batch in context.batches())


def test_a_sample_has_targets_too(context: TaskContext) -> None:
    one, other = (context.sample("train", 20, 1000) for _ in range(2))
    assert sum(len(batch["labels"]) for batch in one) == 20
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(one, other, strict=True))


def test_sensitivity_ranks_heads_by_how_far_they_move_the_embedding(context: TaskContext) -> None:
    model = model_of(context)
    output = model.base_model.encoder.layer[2].attention.output.dense.weight
    with torch.no_grad():
        for head, scale in enumerate((0.0, 4.0, 0.3, 1.0)):
            output[:, head * SIZE : (head + 1) * SIZE] *= scale
    dense = structure_of(model)
    scores = sensitivity(model, dense, context)["encoder", 2, "attention"]
    assert scores[0] == 0
    assert scores.argsort().tolist() == [0, 2, 3, 1]


def test_choices_go_by_the_cosine_with_the_model_as_it_came(context: TaskContext) -> None:
    model = model_of(context)
    assert context.evaluate(model) == pytest.approx(1, abs=1e-6)
    structure = structure_of(model).keeping({("encoder", 1, "ffn"): SubLayer()})
    with Gates(model, structure):
        assert context.evaluate(model) < 0.999
    other = tiny_model("bert", "feature-extraction", seed=9)
    assert context.evaluate(other) < 0.9

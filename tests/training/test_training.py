"""Order of batches, distillation, optimiser groups, fill, and exact resume."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from compressor.errors import RunError
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.outputs import collect_outputs, load_outputs, save_outputs, torch_runner
from compressor.models.slicing import slice_model
from compressor.models.structure import SubLayer
from compressor.pruning.layer_drop import without
from compressor.schema import Distill, TrainingKeys
from compressor.training.batches import LengthGrouped
from compressor.training.distillation import FAR, collate_with_teacher, distillation_loss, divergence
from compressor.training.fill import fill_zeros
from compressor.training.trainer import Run, _Trainer, newest_checkpoint, train
from tests.pruning.masked import masked_model, part_of, values
from tests.zoo import logits, padded_batch, tiny_model


def rows(count: int = 40, seed: int = 0, labels: int = 2) -> list[dict[str, Any]]:
    """Features of several lengths whose label is whether the first token is a large one."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        ids = random.integers(5, 100, random.integers(4, 12)).tolist()
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(ids[0] > 50) % labels})
    return made


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in batch)
    out = {
        name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in batch])
        for name in ("input_ids", "attention_mask")
    }
    return out | ({"labels": torch.tensor([row["labels"] for row in batch])} if "labels" in batch[0] else {})


def silent(_what: str, _share: float) -> None:
    """No progress."""


def run_of(folder: Path, features: list[dict[str, Any]], **extra: Any) -> Run:
    part, teacher = extra.pop("part", None), extra.pop("teacher", None)
    keys = TrainingKeys(**({"epochs": 3.0, "learning_rate": 1e-3, "batch_size": 8} | extra))
    return Run(keys, features, collate, folder, 7, silent, part=part, teacher=teacher)


def test_batches_are_of_similar_length_and_depend_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1003).tolist()
    sampler = LengthGrouped(lengths, 16, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(1003))
    assert first == list(LengthGrouped(lengths, 16, seed=1))
    assert first != list(LengthGrouped(lengths, 16, seed=2))
    sampler.set_epoch(1)
    assert list(sampler) != first
    spreads = [np.ptp([lengths[i] for i in first[at : at + 16]]) for at in range(0, 992, 16)]
    assert np.mean(spreads) < 20 < np.ptp(lengths)


def test_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.3, -0.2]]), torch.tensor([[0.0, 2.0], [0.1, 0.4]])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    by_hand = (p * (p.log() - q.log())).sum(-1).mean() * 4
    torch.testing.assert_close(divergence(student, teacher, 2.0), by_hand)
    assert divergence(teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-7)


def test_span_logits_are_averaged_and_padding_takes_no_part() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    ours = {n: torch.randn(2, 4) for n in ("start_logits", "end_logits")}
    theirs = {n: torch.randn(2, 4).masked_fill(~mask, FAR) for n in ours}
    loss = distillation_loss(ours, theirs, mask, 2.0)
    by_hand = [
        torch.stack(
            [divergence(ours[n][i : i + 1, :k], theirs[n][i : i + 1, :k], 2.0) for i, k in ((0, 4), (1, 2))]
        )
        for n in ours
    ]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean(), atol=1e-5, rtol=1e-5)


def test_token_logits_count_real_tokens_and_regression_is_squared() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    ours, theirs = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    expected = divergence(ours[mask], theirs[mask], 3.0)
    torch.testing.assert_close(distillation_loss({"logits": ours}, {"logits": theirs}, mask, 3.0), expected)
    one, two = torch.randn(4, 1), torch.randn(4, 1)
    squared = functional.mse_loss(one, two)
    torch.testing.assert_close(distillation_loss({"logits": one}, {"logits": two}, mask, 2.0), squared)


def test_outputs_come_back_in_order_and_from_disk(tmp_path: Path) -> None:
    model, features = tiny_model("bert", "question-answering"), rows(11)
    outputs = collect_outputs(torch_runner(model), features, collate, ["start_logits"], silent, batch_size=4)
    for row, found in zip(features, outputs["start_logits"], strict=True):
        alone = torch_runner(model)(collate([{k: row[k] for k in ("input_ids", "attention_mask")}]))
        np.testing.assert_allclose(found, alone["start_logits"][0], atol=1e-5)
    save_outputs(tmp_path / "o.npz", outputs)
    again = load_outputs(tmp_path / "o.npz")
    assert all(
        np.array_equal(a, b) for a, b in zip(outputs["start_logits"], again["start_logits"], strict=True)
    )


def test_teacher_outputs_travel_with_their_features() -> None:
    batch = [
        dict(row) | {"teacher_start_logits": np.arange(len(row["input_ids"]), dtype=np.float32)}
        for row in rows(3)
    ]
    lengths = [len(row["input_ids"]) for row in batch]
    made = collate_with_teacher(collate)(batch)
    assert made["teacher_start_logits"].shape == made["input_ids"].shape
    for i, length in enumerate(lengths):
        assert made["teacher_start_logits"][i, :length].tolist() == list(range(length))
        assert (made["teacher_start_logits"][i, length:] == FAR).all()


def test_optimiser_groups(tmp_path: Path) -> None:
    model, masks = masked_model()
    part = part_of(masks)
    trainer = _Trainer(model, run_of(tmp_path, rows(), weight_decay=0.1, part=part))
    groups = trainer.create_optimizer().param_groups
    every = [id(p) for group in groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in model.parameters())
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0]
    assert groups[2]["lr"] == 1e-2
    assert {id(p) for p in groups[2]["params"]} == {id(s) for s in values(masks)}
    assert all(p.dim() == 1 for p in groups[1]["params"])


def test_embeddings_can_be_frozen(tmp_path: Path) -> None:
    model = tiny_model("bert")
    before = model.bert.embeddings.word_embeddings.weight.clone()
    body = model.bert.encoder.layer[0].output.dense.weight.clone()
    train(model, run_of(tmp_path, rows(), freeze_embeddings=True))
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before)
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.weight, body)


def test_frozen_layers_are_named_by_their_number_in_the_original_model(tmp_path: Path) -> None:
    dense = tiny_model("bert")
    model = slice_model(dense, without(structure_of(dense), [0]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, run_of(tmp_path, rows(), freeze_layers=[0, 2]))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith("bert.encoder.layer.1.")]  # the original's 2
    assert any(name.startswith("bert.encoder.layer.0.") for name in changed)
    assert any(name.startswith("bert.embeddings.") for name in changed)


def test_it_learns_and_distillation_follows_the_teacher(tmp_path: Path) -> None:
    features = rows(64)
    teacher = {
        "logits": [np.array([4.0, -4.0] if r["labels"] else [-4.0, 4.0], dtype=np.float32) for r in features]
    }
    model = tiny_model("bert")
    distill = Distill(teacher="t", alpha=1.0)
    log = train(model, run_of(tmp_path, features, epochs=25.0, distill=distill, teacher=teacher))
    assert log[-1]["loss"] < log[0]["loss"]
    outputs = collect_outputs(torch_runner(model), features, collate, ["logits"], silent)
    opposite = np.mean([o.argmax() != r["labels"] for o, r in zip(outputs["logits"], features, strict=True)])
    assert opposite > 0.9  # the teacher says the opposite of the labels, and alpha 1 listens to it alone


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"the loss is no finite number at step 3 of 15; lower learning_rate"
    ) as told:
        train(tiny_model("bert"), run_of(tmp_path, rows(), learning_rate=1e30))
    assert told.value.exit_code == 1


class Overflow:
    """A part whose term is finite but has no finite gradient in the second step."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        self.weight = weight
        self.scale = 1.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        return []

    def before_step(self, step: int, total: int) -> None:
        self.scale = float(step == 0)

    def loss(self) -> torch.Tensor:
        return (self.scale * self.weight.square().sum()).sqrt()

    def log(self) -> dict[str, float]:
        return {}


def test_gradients_that_are_no_numbers_are_left_out_of_the_log(tmp_path: Path) -> None:
    model = tiny_model("bert")
    log = train(model, run_of(tmp_path, rows(16), epochs=1.0, part=Overflow(model.classifier.weight)))
    assert [("loss" in row, "grad_norm" in row) for row in log] == [(True, True), (True, False)]
    assert all(np.isfinite(list(row.values())).all() for row in log)


def test_a_gated_model_stays_gated_while_it_trains(tmp_path: Path) -> None:
    model = tiny_model("bert")
    structure = structure_of(model).keeping({("encoder", 0, "attention"): SubLayer((1,))})
    dead = model.bert.encoder.layer[0].attention.self.value.weight[:12].clone()
    with Gates(model, structure):
        train(model, run_of(tmp_path, rows()))
    assert torch.equal(model.bert.encoder.layer[0].attention.self.value.weight[:12], dead)


def test_an_unfinished_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"glo')
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")


MOVEMENT: dict[str, dict[str, Any]] = {
    "movement": {},
    "l0": {"mask": "l0"},
    "patched": {"nonorm": 0.5, "relu": 8},
    "magnitude": {"mask": "magnitude", "threshold": 0.3},
}


@pytest.mark.parametrize("pruning", [None, *MOVEMENT])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_run_ends_as_an_undisturbed_one(
    tmp_path: Path, pruning: str | None, accumulation: int
) -> None:
    """Weights, scores and log of a run resumed in the middle of an epoch are bitwise those of a whole one."""

    class Killed(Exception):
        pass

    def attempt(folder: Path, stop_at: float = 2.0) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        model, part = tiny_model("bert"), None
        if pruning:
            model, masks = masked_model(**MOVEMENT[pruning], warmup=2, cooldown=4)
            part = part_of(masks)
        run = run_of(folder, rows(), part=part, gradient_accumulation=accumulation)

        def progress(_what: str, share: float) -> None:
            if share > stop_at:
                raise Killed

        run.progress = progress
        log = train(model, run)
        return model.state_dict(), log

    whole, log = attempt(tmp_path / "whole")
    with pytest.raises(Killed):
        attempt(tmp_path / "killed", stop_at=0.55)
    assert newest_checkpoint(tmp_path / "killed")
    resumed, resumed_log = attempt(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [row["loss"] for row in resumed_log] == [row["loss"] for row in log]


def test_fill_touches_only_zeros_of_weight_matrices(tmp_path: Path) -> None:
    model = tiny_model("bert", hidden_size=128, intermediate_size=256)
    dense = model.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        dense.weight[:100] = 0
        dense.bias[:100] = 0
    before = {name: p.clone() for name, p in model.state_dict().items()}
    inputs = padded_batch("bert")
    answered = logits(model, inputs)
    filled = fill_zeros(model, 0.01, seed=3)
    assert filled == 100 * 128
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"bert.encoder.layer.0.intermediate.dense.weight"}
    weight = before["bert.encoder.layer.0.intermediate.dense.weight"]
    assert torch.equal(dense.weight[100:], weight[100:])
    assert not (dense.weight == 0).any()
    noise = dense.weight[:100]
    assert noise.mean().item() == pytest.approx(weight.mean().item(), abs=1e-4)
    assert noise.std().item() == pytest.approx(0.01 * weight.std().item(), rel=0.05)
    assert (logits(model, inputs) - answered).abs().max() < 0.2
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.query.weight.zero_()
    fill_zeros(model, 0.01, seed=3)
    assert model.bert.encoder.layer[1].attention.self.query.weight.std() > 0
    again = tiny_model("bert", hidden_size=128, intermediate_size=256)
    again.load_state_dict(before)
    fill_zeros(again, 0.01, seed=3)
    assert torch.equal(again.bert.encoder.layer[0].intermediate.dense.weight, dense.weight)
    shutil.rmtree(tmp_path)

"""CoFi as a method: keys, phases, ladder, selection, failures, determinism (CoFi specification, 2 and 8)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig

from compressor.benchmark.encoder_graph import EncoderShape
from compressor.benchmark.latency_table import Curve, LatencyTable
from compressor.errors import RunError, UserError
from compressor.models.architecture import structure_of
from compressor.models.gates import Gates
from compressor.models.outputs import collect_outputs, torch_runner
from compressor.models.slicing import slice_model
from compressor.models.structure import Structure, SubLayer
from compressor.pruning.base import Pruned
from compressor.pruning.cofi import Cofi
from compressor.pruning.cofi.masking import CONTAINER
from compressor.pruning.cofi.training import CofiPart
from compressor.pruning.cofi.values import ParameterShare
from compressor.pruning.context import Timing
from compressor.pruning.target import Target
from compressor.schema import TrainingKeys, steps_in, steps_of
from compressor.training.trainer import _Trainer, newest_checkpoint, train
from tests.pruning.gated import gated_model
from tests.training.test_training import collate, rows, run_of, silent
from tests.zoo import FFN, HEADS, HIDDEN, LAYERS, logits, padded_batch, tiny_model

QUICK: dict[str, Any] = {
    "method": "cofi", "epochs": 40.0, "learning_rate": 1e-3, "batch_size": 8, "gate_learning_rate": 0.2,
    "preparation": 0.1, "sparsity_warmup": 0.5,
}  # fmt: skip
FEATURES = rows(40)
TABLE = LatencyTable(
    EncoderShape("bert", LAYERS, HIDDEN, HEADS, HIDDEN // HEADS, FFN, HIDDEN, 64, HIDDEN),
    base_ms=0.5,
    attention=Curve(tuple(range(1, HEADS + 1)), tuple(1.0 + n for n in range(HEADS)), 0.1),
    ffn=Curve((1, FFN), (1.0, 5.0), 0.1),
    setting={},
    check={},
)


def ms_of(structure: Structure) -> float:
    """Milliseconds of a structure by the table, whatever its hidden width."""
    return TABLE.time(replace(structure, hidden=None))


class Alone:
    """The context of a method, without a pipeline: trains and scores on a few made-up rows."""

    seed = 7

    def __init__(self, folder: Path, family: str = "bert", **target: Any) -> None:
        self.folder, self.family = folder, family
        self.target = Target(**target)
        self.measured: list[Structure] = []
        self.trainings: list[tuple[str, TrainingKeys]] = []
        self.log: list[dict[str, float]] = []
        self.stop_at = 2.0

    def steps(self, keys: TrainingKeys) -> int:
        return steps_in(keys, len(FEATURES))

    def train(
        self, model: Any, keys: TrainingKeys, part: Any = None, name: str = "", score: Callable | None = None
    ) -> None:
        self.trainings.append((name, keys))
        run = run_of(self.folder / name, FEATURES, part=part)
        run.keys, run.score, run.progress = keys, score or (lambda: self.score(model)), self.progress
        self.log += train(model, run)

    def model(self) -> Any:
        return tiny_model(self.family)

    def latency_table(self) -> LatencyTable:
        return TABLE

    def timing(self, name: str, model: Callable[[], Any]) -> Timing:
        """A clock by which every model takes a tenth longer than the table says."""
        structure = structure_of(model())
        self.measured.append(structure)
        ms = 1.1 * ms_of(structure)
        speedup = TABLE.dense_ms / ms
        return Timing(ms, speedup, (speedup, speedup), False, (ms, ms))

    def progress(self, _what: str, share: float) -> None:
        if len(self.trainings) > 1 and share > self.stop_at:
            raise KeyboardInterrupt

    def score(self, model: Any) -> float:
        outputs = collect_outputs(torch_runner(model), FEATURES, collate, ["logits"], silent)["logits"]
        return float(np.mean([o.argmax() == r["labels"] for o, r in zip(outputs, FEATURES, strict=True)]))


def pruned(
    folder: Path, sparsity: Any = 0.5, family: str = "bert", **keys: Any
) -> tuple[list[Pruned], Alone]:
    context = Alone(folder, family, sparsity=sparsity)
    return list(Cofi(**QUICK | keys).prune(tiny_model(family), context)), context


def part_of(masking: Any, target: float = 0.5, rate: float = 0.1) -> CofiPart:
    share = ParameterShare(structure_of(masking.model).sizes)
    part = CofiPart(masking.gates, share, rate, lambda total: steps_of(0.3, total), 0.005, seed=7)
    part.aim(0.0, target)
    return part


def test_the_defaults_are_the_published_settings() -> None:
    keys = Cofi(method="cofi")
    assert keys.granularity == ["hidden", "layer", "head", "ffn", "neuron"]
    assert (keys.epochs, keys.learning_rate, keys.batch_size, keys.gate_learning_rate) == (20, 2e-5, 32, 0.01)
    assert keys.preparation * 20 == 1
    assert keys.sparsity_warmup * 20 == 2
    assert keys.freeze_embeddings
    assert keys.warmup == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"preparation": 0.5, "sparsity_warmup": 0.5}, "must leave steps at the target"),
        ({"granularity": []}, "at least 1 item"),
        ({"granularity": ["heads"]}, "'hidden', 'layer', 'head', 'ffn' or 'neuron'"),
        ({"granularity": ["head", "head"]}, "names a kind twice"),
        ({"distill": {"teacher": "t", "alpha": 0.9, "layers": 0.2}}, "together at most 1"),
        ({"distill": {"teacher": "t", "match": "nearest"}}, "give `layers` their weight"),
    ],
)
def test_what_does_not_fit_together_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Cofi(**{"method": "cofi"} | keys)


def test_a_target_that_gates_of_these_kinds_cannot_reach_is_refused_before_the_first_stage() -> None:
    bert = AutoConfig.for_model("bert")
    Cofi(method="cofi").check_target(bert, Target(sparsity=[0.6, 0.95]))
    with pytest.raises(
        UserError, match=r"gates of head can be expected to remove 0\.318 .* the target is 0\.6"
    ):
        Cofi(method="cofi", granularity=["head"]).check_target(bert, Target(sparsity=[0.2, 0.6]))


def test_optimiser_groups_cover_every_parameter_once_but_the_embeddings(tmp_path: Path) -> None:
    model, masking = gated_model()
    part = part_of(masking)
    trainer = _Trainer(model, run_of(tmp_path, rows(), weight_decay=0.1, part=part, freeze_embeddings=True))
    optimizer = trainer.create_optimizer()
    groups = optimizer.param_groups
    every = [id(p) for group in groups for p in group["params"]]
    trained = {id(p) for n, p in model.named_parameters() if ".embeddings." not in n}
    assert sorted(every) == sorted(trained)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0, 0.0]
    assert [g.get("maximize") for g in groups] == [False, False, False, True]
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in masking.gates.logits.values()}
    assert {id(p) for p in groups[3]["params"]} == {id(p) for p in masking.gates.lagrangian.parameters()}
    scheduler = trainer.create_scheduler(10, optimizer)
    rates = []
    for _ in range(10):
        rates.append([g["lr"] for g in groups])
        optimizer.step()
        scheduler.step()
    assert [r[2:] for r in rates] == [[0.1, 0.1]] * 10
    assert rates[2][0] > rates[9][0] > 0
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
    norm = torch.stack([p.grad.norm() for g in groups[:2] for p in g["params"]]).norm()
    assert norm < 1.01
    assert all((p.grad == 5).all() for g in groups[2:] for p in g["params"])


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_training_holds_logits_within_their_limit_and_follows_the_target(
    accumulation: int, tmp_path: Path
) -> None:
    model, masking = gated_model()
    part = part_of(masking, target=0.2, rate=0.5)
    seen: list[tuple[float, bool]] = []
    before = part.before_step

    def watched(step: int, total: int) -> None:
        before(step, total)
        within = all(v.abs().max() <= 4.60518 for v in masking.gates.logits.values())
        seen.append((part.target, within))

    part.before_step = watched
    embeddings = model.bert.embeddings.state_dict()
    embeddings = {name: value.clone() for name, value in embeddings.items()}
    keys = {"epochs": 4.0, "gradient_accumulation": accumulation, "freeze_embeddings": True}
    train(model, run_of(tmp_path, rows(), part=part, **keys))
    targets = [target for target, _ in seen][::accumulation]
    assert len(targets) == 20
    assert targets[0] == 0
    assert targets[3] == pytest.approx(0.1)
    assert targets[6:] == [0.2] * 14
    assert all(within for _, within in seen)
    assert all(torch.equal(v, embeddings[n]) for n, v in model.bert.embeddings.state_dict().items())


def test_pruning_trains_in_two_phases_and_reaches_the_target(tmp_path: Path) -> None:
    """Real sparsity within half a point of the target, better than chance, gated == sliced."""
    (one,), context = pruned(tmp_path, evaluate_every=0.1)
    names = [name for name, _ in context.trainings]
    prepare, gates = (keys for _, keys in context.trainings)
    assert names == ["prepare", "gates-pruned"]
    assert (prepare.epochs, gates.epochs) == (pytest.approx(4), pytest.approx(36))
    assert (prepare.schedule, gates.schedule) == ("constant", "linear")
    assert not prepare.evaluate_every
    assert one.member == "pruned"
    assert 1 - one.structure.density() == pytest.approx(0.5, abs=0.015)
    assert one.report["sparsity"] == pytest.approx(0.5, abs=0.005)
    assert one.report["expected_sparsity"] == pytest.approx(0.5, abs=0.1)
    assert not hasattr(one.model, CONTAINER)
    inputs = padded_batch("bert")
    with Gates(one.model, one.structure):
        gated = logits(one.model, inputs)
        accuracy = context.score(one.model)
    small = slice_model(one.model, one.structure)
    torch.testing.assert_close(logits(small, inputs), gated, atol=1e-5, rtol=1e-5)
    assert accuracy == context.score(small) > 0.7
    assert (tmp_path / "gates-pruned" / "best.safetensors").exists()
    shapes = [p.shape for p in small.parameters()]
    context.train(small, TrainingKeys(epochs=1.0, batch_size=8), name="after")
    assert [p.shape for p in small.parameters()] == shapes
    logged = [row for row in context.log if "expected_sparsity" in row]
    assert logged[0]["expected_sparsity"] < 0.2
    assert {"target_sparsity", "sparsity", "lambda_1", "lambda_2"} <= set(logged[-1])


def test_a_ladder_makes_every_sparsity_in_one_run(tmp_path: Path) -> None:
    family, context = pruned(tmp_path, [0.6, 0.3], epochs=60.0)
    assert [one.member for one in family] == ["s30", "s60"]
    assert [name for name, _ in context.trainings] == ["prepare", "gates-s30", "gates-s60"]
    assert sum(keys.epochs for _, keys in context.trainings) == pytest.approx(60)
    inputs = padded_batch("bert")
    for one, sparsity in zip(family, (0.3, 0.6), strict=True):
        assert 1 - one.structure.density() == pytest.approx(sparsity, abs=0.015)
        with Gates(one.model, one.structure):
            gated = logits(one.model, inputs)
        torch.testing.assert_close(
            logits(slice_model(one.model, one.structure), inputs), gated, atol=1e-5, rtol=1e-5
        )
    second = [row for row in context.log if row.get("target_sparsity", 0) > 0.3]
    assert min(row["target_sparsity"] for row in second) < 0.35


def test_preparation_can_be_given_in_steps_or_left_out(tmp_path: Path) -> None:
    _, context = pruned(tmp_path / "a", preparation=20, sparsity_warmup=60)
    assert [keys.epochs for _, keys in context.trainings] == [pytest.approx(4), pytest.approx(36)]
    _, context = pruned(tmp_path / "b", preparation=0.0)
    assert [name for name, _ in context.trainings] == ["gates-pruned"]
    with pytest.raises(UserError, match="leaves none of 200 optimiser steps for gates"):
        pruned(tmp_path / "c", preparation=200)


def test_the_same_seed_makes_the_same_model_also_after_a_kill(tmp_path: Path) -> None:
    (whole,), _ = pruned(tmp_path / "whole", evaluate_every=0.1)
    context = Alone(tmp_path / "killed", sparsity=0.5)
    context.stop_at = 0.63
    method = Cofi(**QUICK | {"evaluate_every": 0.1})
    with pytest.raises(KeyboardInterrupt):
        list(method.prune(tiny_model("bert"), context))
    assert newest_checkpoint(tmp_path / "killed" / "gates-pruned")
    (again,), _ = pruned(tmp_path / "killed", evaluate_every=0.1)
    assert again.structure.to_json() == whole.structure.to_json()
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in again.model.state_dict().items())


@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert"])
def test_other_families_are_pruned(family: str, tmp_path: Path) -> None:
    (one,), _ = pruned(tmp_path, 0.6, family=family)
    assert 1 - one.structure.density() == pytest.approx(0.6, abs=0.015)
    inputs = padded_batch(family)
    with Gates(one.model, one.structure):
        gated = logits(one.model, inputs)
    torch.testing.assert_close(
        logits(slice_model(one.model, one.structure), inputs), gated, atol=1e-5, rtol=1e-5
    )


def test_gates_that_stay_away_from_the_target_end_the_run_and_leave_its_last_state(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"do not come to the target, 0\.9 \(sparsity\), .* raise gate_learning_rate"
    ):
        pruned(tmp_path, 0.9, gate_learning_rate=1e-4)
    assert newest_checkpoint(tmp_path / "gates-pruned")


def test_multipliers_that_are_no_numbers_end_the_run(tmp_path: Path) -> None:
    model, masking = gated_model()
    part = part_of(masking)
    with torch.no_grad():
        masking.gates.logits["hidden"].fill_(float("nan"))
    with pytest.raises(RunError, match=r"no finite number|do not come to the target"):
        train(model, run_of(tmp_path, rows(), part=part))


def test_a_sliced_model_is_refused(tmp_path: Path) -> None:
    (one,), context = pruned(tmp_path)
    with pytest.raises(UserError, match="cofi starts from a model with whole layers"):
        next(iter(Cofi(**QUICK).prune(slice_model(one.model, one.structure), context)))


def test_a_sliced_model_is_refused_by_its_config() -> None:
    model = tiny_model("bert")
    kept = {("encoder", 0, "ffn"): SubLayer((0, 1))}
    small = slice_model(model, structure_of(model).keeping(kept))
    with pytest.raises(UserError, match="cofi starts from a model with whole layers"):
        Cofi(method="cofi").check(small.config)
    Cofi(method="cofi").check(model.config)


def test_a_target_that_rises_for_as_long_as_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sparsity_warmup takes 10000 of the \d+ optimiser steps"):
        pruned(tmp_path, sparsity_warmup=10_000)


def test_gates_at_a_target_that_never_rose_are_not_at_the_goal() -> None:
    part = part_of(gated_model()[1], target=0.9)
    part.before_step(0, 1000)
    with pytest.raises(RunError, match=r"do not come to the target, 0\.9"):
        part.check()


def test_only_states_at_the_target_are_rated() -> None:
    _, masking = gated_model()
    part = part_of(masking, target=0.4)
    part.before_step(0, 100)
    assert part.rated(lambda: 1.0) is None
    part.before_step(40, 100)
    assert part.rated(lambda: 1.0) is None
    with torch.no_grad():
        for logits_ in masking.gates.logits.values():
            logits_.uniform_(-3, 2)
        part.goal = part.removed(masking.gates.decided()) + 0.03
    removed = []
    masking.model.eval()
    assert part.rated(lambda: removed.append(part.removed(masking.gates.values())) or 0.5) == 0.5
    assert removed[0] == pytest.approx(part.goal, abs=0.005)
    assert masking.gates.settled is None


@pytest.mark.parametrize("asked", [{"speedup": 2.0}, {"latency_ms": 8.0}])
def test_a_speed_asked_for_is_learned_and_measured(asked: dict[str, float], tmp_path: Path) -> None:
    """The Lagrangian drives the predicted time; the clock is slower than the table, which is corrected for."""
    context = Alone(tmp_path, **asked)
    (one,) = Cofi(**QUICK, granularity=["layer", "head", "ffn", "neuron"]).prune(tiny_model("bert"), context)
    measured = one.report["measured"]
    assert 1 <= measured["reach"] <= 1.2
    assert one.structure in context.measured
    assert measured["ms"] == pytest.approx(1.1 * ms_of(one.structure))
    wanted = one.report["asked"].get("latency_ms") or TABLE.dense_ms / asked["speedup"]
    assert measured["ms"] <= wanted
    logged = [row for row in context.log if "expected_time" in row]
    assert logged[-1]["expected_time"] == pytest.approx(1 - wanted / TABLE.dense_ms, abs=0.1)
    inputs = padded_batch("bert")
    with Gates(one.model, one.structure):
        gated = logits(one.model, inputs)
    torch.testing.assert_close(
        logits(slice_model(one.model, one.structure), inputs), gated, atol=1e-5, rtol=1e-5
    )


def test_a_family_of_speeds_begins_with_the_slowest(tmp_path: Path) -> None:
    context = Alone(tmp_path, latency_ms=[8.0, 12.0])
    keys = QUICK | {"epochs": 100.0, "sparsity_warmup": 0.3}
    family = list(Cofi(**keys).prune(tiny_model("bert"), context))
    assert [one.member for one in family] == ["12ms", "8ms"]
    assert ms_of(family[0].structure) > ms_of(family[1].structure)


def test_a_speed_that_gates_of_these_kinds_cannot_reach_is_refused(tmp_path: Path) -> None:
    context = Alone(tmp_path, speedup=50.0)
    with pytest.raises(UserError, match=r"target.speedup 50 cannot be learned here.*gates of head.* at most"):
        list(Cofi(**QUICK, granularity=["head"]).prune(tiny_model("bert"), context))


def test_a_latency_table_is_read_only_where_a_time_is_asked_for() -> None:
    cofi = Cofi(**QUICK)
    assert cofi.reads_table(Target(speedup=2.0))
    assert not cofi.reads_table(Target(sparsity=0.5))

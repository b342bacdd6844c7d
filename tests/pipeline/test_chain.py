"""Ids, families, the dense branch and the variants that a list of stages stands for."""

from collections.abc import Iterable
from typing import Any, Literal

import pytest

from compressor.pruning.base import Pruned, Pruner
from compressor.pruning.context import Context
from compressor.pruning.movement import Movement
from compressor.pruning.target import Target
from compressor.stages.chain import build_chain, check_order, default_baseline, stage_ids
from compressor.stages.export import Export
from compressor.stages.finetune import Finetune
from compressor.stages.prune import Prune
from compressor.stages.quantize import Quantize
from compressor.stages.slice import Slice


class Family(Pruner):
    """A method that makes two models."""

    method: Literal["family"] = "family"

    def members(self, target: Target | None) -> list[str]:
        return ["2x", "4x"]

    def prune(self, model: Any, context: Context) -> Iterable[Pruned]:
        raise NotImplementedError


def movement(rewind: str | None = None, **keys: Any) -> Prune:
    return Prune(pruner=Movement(method="movement", rewind=rewind), **keys)


FULL = [Finetune(id="teacher"), movement(**{"from": "model"}), Slice(), Finetune(), Export(), Quantize()]


def test_ids_count_every_stage_of_a_verb_named_ones_too() -> None:
    assert stage_ids(FULL) == ["teacher", "prune", "slice", "finetune-2", "export", "quantize"]
    assert stage_ids([Finetune(), Finetune(id="x"), Finetune()]) == ["finetune", "x", "finetune-3"]


def test_the_full_chain() -> None:
    chain = build_chain(FULL, None)
    assert {n.name: n.inputs for n in chain.nodes} == {
        "model": (),
        "teacher": ("model",),
        "prune": ("model",),
        "slice": ("prune",),
        "finetune-2": ("slice",),
        "export/dense": ("teacher",),
        "export/pruned": ("finetune-2",),
        "quantize/dense": ("export/dense",),
        "quantize/pruned": ("export/pruned",),
    }
    assert list(chain.variants) == ["dense_fp32", "pruned_fp32", "dense_int8", "pruned_int8"]
    assert (chain.baseline, chain.final) == ("teacher", "pruned_int8")


def test_a_teacher_is_an_input() -> None:
    distill = {"teacher": "teacher"}
    chain = build_chain([Finetune(id="teacher"), Finetune(distill=distill), Export()], None)
    assert chain.node("finetune-2").inputs == ("teacher", "teacher")


def test_a_family_runs_every_later_stage_once_a_member() -> None:
    stages = [Finetune(), Prune(pruner=Family()), Slice(), Finetune(), Export(), Quantize()]
    chain = build_chain(stages, None)
    names = [n.name for n in chain.nodes]
    assert names[:7] == [
        "model",
        "finetune",
        "prune",
        "slice/2x",
        "slice/4x",
        "finetune-2/2x",
        "finetune-2/4x",
    ]
    assert chain.node("slice/4x").inputs == ("prune/4x",)
    assert chain.node("prune/4x").name == "prune"
    assert list(chain.variants)[:3] == ["dense_fp32", "2x_fp32", "4x_fp32"]
    assert chain.final == "4x_int8"


def test_without_pruning_the_dense_model_is_the_only_one() -> None:
    chain = build_chain([Finetune(), Export(), Quantize()], None)
    assert list(chain.variants) == ["dense_fp32", "dense_int8"]
    assert chain.final == "dense_int8"


def test_a_distilled_model_is_not_its_own_baseline() -> None:
    student = Finetune(**{"from": "model", "distill": {"teacher": "teacher"}})
    chain = build_chain([Finetune(id="teacher"), student, Export(), Quantize()], None)
    assert list(chain.variants) == ["dense_fp32", "tuned_fp32", "dense_int8", "tuned_int8"]
    assert chain.node("export/dense").inputs == ("teacher",)
    assert chain.node("export/tuned").inputs == ("finetune-2",)
    assert chain.node("quantize/tuned").inputs == ("export/tuned",)
    assert chain.final == "tuned_int8"


@pytest.mark.parametrize("guide", ["prune", "slice"])
def test_a_rewind_is_guided_by_what_was_pruned(guide: str) -> None:
    again = movement(**{"from": "model"}, rewind=guide)
    stages = [Finetune(id="teacher"), movement(), Slice(), again, Slice(), Export()]
    assert list(check_order(stages, None)) == []
    assert build_chain(stages, None).node("prune-2").inputs == ("model", guide)
    for wrong, said in (("teacher", "is not pruned"), ("prun", "no stage 'prun'")):
        stages[3] = movement(**{"from": "model"}, rewind=wrong)
        assert any(said in message for _, message in check_order(stages, None))


def test_a_list_of_targets_makes_a_family() -> None:
    prune = movement().aiming(Target(sparsity=[0.5, 0.8]))
    chain = build_chain([Finetune(), prune, Slice(), Export()], None)
    assert list(chain.variants) == ["dense_fp32", "s50_fp32", "s80_fp32"]
    alone = build_chain([Finetune(), movement().aiming(Target(sparsity=0.5)), Slice(), Export()], None)
    assert list(alone.variants) == ["dense_fp32", "pruned_fp32"]
    assert movement().aiming(Target(speedup=2.0)).target is None


@pytest.mark.parametrize(
    ("stages", "baseline"), [(FULL, "teacher"), ([movement(), Finetune(), Slice(), Export()], "model")]
)
def test_the_default_baseline(stages: list[Any], baseline: str) -> None:
    assert default_baseline(stages) == baseline


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([Finetune(), Quantize()], "put `export` before it"),
        ([Slice(), Export()], "there is none"),
        ([movement(), Export()], "put `slice` between"),
        ([movement(), movement(), Slice(), Export()], "put `slice` between"),
        ([Finetune()], "without `export`"),
        ([Finetune(), Export(), Finetune()], "can follow `export`"),
        ([Finetune(), Export(), Quantize(), Quantize()], "can follow `export`"),
        ([Finetune(id="a"), Finetune(id="a"), Export()], "id of two stages"),
        ([Finetune(id="model"), Export()], "recipe's model"),
        ([Finetune(**{"from": "nowhere"}), Export()], "no stage 'nowhere'"),
        ([Finetune(distill={"teacher": "techer"}, id="x"), Export()], "no stage 'techer'"),
    ],
)
def test_impossible_orders(stages: list[Any], said: str) -> None:
    problems = list(check_order(stages, None))
    assert any(said in message for _, message in problems), problems


def test_possible_orders() -> None:
    assert list(check_order(FULL, "teacher")) == []
    again = [Finetune(), movement(), Finetune(), Slice(), movement(), Slice(), Finetune(), Export()]
    assert list(check_order(again, None)) == []
    assert list(check_order([Finetune(), Export()], "model")) == []


def test_a_pruned_stage_is_no_baseline() -> None:
    assert any("no dense model" in m for _, m in check_order(FULL, "finetune-2"))
    assert any("no stage" in m for _, m in check_order(FULL, "teecher"))

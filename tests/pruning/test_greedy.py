"""Greedy layer pruning: the published searches replayed, and what the search may and may not do."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compressor.errors import UserError
from compressor.models.architecture import structure_of
from compressor.pruning.greedy import Greedy, Memo, greedy_order
from tests.zoo import tiny_model

LOGS = json.loads(Path(__file__).with_name("greedy_logs.json").read_text(encoding="utf-8"))


def keys(**given: Any) -> Greedy:
    return Greedy(**({"method": "greedy", "drop": 2} | given))


@pytest.mark.parametrize("run", LOGS["runs"], ids=lambda run: run["run"])
def test_the_published_searches(run: dict[str, Any]) -> None:
    asked: list[list[int]] = []

    def score(gone: Sequence[int]) -> float:
        asked.append(list(gone))
        before, candidate = list(gone[:-1]), gone[-1]
        left = [at for at in range(LOGS["layers"]) if at not in before]
        found: int = run["thousandths"][len(before)][left.index(candidate)]
        return found / 1000

    count = len(run["removed"])
    assert greedy_order(LOGS["layers"], count, score) == run["removed"]
    assert len(asked) == count * 12 - count * (count - 1) // 2
    for before, after in itertools.pairwise(asked):
        assert len(after) > len(before) or after[-1] > before[-1]
        assert len(set(after)) == len(after)


def test_an_additive_score_gives_the_best_set_an_interaction_may_not() -> None:
    values = [0.1, 0.5, 0.2, 0.4, 0.3]
    assert greedy_order(5, 2, lambda gone: -sum(values[at] for at in gone)) == [0, 2]
    pairs = {(0,): 0.9, (1,): 0.8, (2,): 0.7, (0, 1): 0.5, (0, 2): 0.6, (1, 2): 0.85}
    assert greedy_order(3, 2, lambda gone: pairs[tuple(sorted(gone))]) == [0, 2]  # the best pair is 1 and 2


def test_shorter_searches_are_beginnings_and_one_layer_stays() -> None:
    def score(gone: Sequence[int]) -> float:
        return -sum((at * 7) % 5 for at in gone) / 10

    whole = greedy_order(6, 9, score)
    assert len(whole) == 5
    for count in range(6):
        assert greedy_order(6, count, score) == whole[:count]


def test_scores_are_rounded_and_the_last_of_equal_ones_goes() -> None:
    table = {0: 0.9001, 1: 0.9004, 2: 0.8996}
    assert greedy_order(3, 1, lambda gone: table[gone[0]]) == [2]
    assert greedy_order(3, 1, lambda gone: {0: 0.9, 1: float("-inf"), 2: 0.8}[gone[0]]) == [0]


def test_a_search_that_was_killed_asks_for_no_candidate_twice(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    asked: list[tuple[int, ...]] = []

    def score(gone: Sequence[int]) -> float:
        if len(asked) == 7:
            raise Killed
        asked.append(tuple(sorted(gone)))
        return -sum((at * 7) % 5 for at in gone) / 10

    with pytest.raises(Killed):
        greedy_order(6, 3, Memo(tmp_path / "memo.json").remembering(score))
    first = list(asked)
    asked.clear()
    order = greedy_order(
        6, 3, Memo(tmp_path / "memo.json").remembering(score if len(first) < 7 else unhindered(asked))
    )
    assert not set(first) & set(asked)
    assert len(first) + len(asked) == 6 + 5 + 4
    assert order == greedy_order(6, 3, lambda gone: -sum((at * 7) % 5 for at in gone) / 10)


def unhindered(asked: list[tuple[int, ...]]) -> Any:
    def score(gone: Sequence[int]) -> float:
        asked.append(tuple(sorted(gone)))
        return -sum((at * 7) % 5 for at in gone) / 10

    return score


class Trains:
    """A context whose training is told apart by name; scores go by the layers that are left."""

    target = None
    seed = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: list[tuple[str, float, float]] = []

    def train(self, model: Any, training: Any, part: Any = None, name: str | None = None) -> None:
        total = sum(p.detach().double().sum().item() for p in model.parameters())
        self.trained.append((name or "", training.epochs, total))
        with torch.no_grad():
            model.classifier.bias += 1.0

    def forget(self, name: str) -> None:
        assert name == self.trained[-1][0]

    def score(self, model: Any) -> float:
        present = [layer.index for layer in structure_of(model).layers]
        gates = [h for h in model.modules() if h._forward_hooks]
        return len(present) / 10 + len(gates) / 100 + present[0] / 1000


def test_every_candidate_starts_from_the_same_untouched_weights(tmp_path: Path) -> None:
    model = tiny_model("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    context = Trains(tmp_path)
    family = list(keys(drop=[1, 2], epochs=3.0).prune(model, context))
    assert [name for name, _, _ in context.trained][:3] == ["without-0", "without-1", "without-2"]
    assert len(context.trained) == 3 + 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.member for p in family] == ["drop1", "drop2"]
    one, two = (set(p.report["dropped"]) for p in family)
    assert one < two
    assert [len(p.structure.layers) for p in family] == [2, 1]


@pytest.mark.parametrize("search", ["full", "screened"])
def test_of_layers_that_are_one_every_round_has_one_candidate(search: str, tmp_path: Path) -> None:
    context = Trains(tmp_path)
    model = tiny_model("albert")
    (pruned,) = keys(drop=2, search=search).prune(model, context)
    rounds = [name for name, _, _ in context.trained if name != "whole"]
    assert [name.split("-", 1)[1] for name in rounds] == ["2", "1-2"]
    assert len(pruned.structure.layers) == 1


def test_the_cheap_search_trains_the_whole_model_once_and_few_candidates_shortly(tmp_path: Path) -> None:
    context = Trains(tmp_path)
    model = tiny_model("bert", num_hidden_layers=6)
    (pruned,) = keys(drop=3, search="screened", screen=2, short=0.25, epochs=4.0).prune(model, context)
    names, epochs, _ = zip(*context.trained, strict=True)
    assert names[0] == "whole"
    assert all(name.startswith("screened-") for name in names[1:])
    assert list(epochs) == [4.0] + [1.0] * 6
    assert len(pruned.structure.layers) == 3
    full = 4.0 * (6 + 5 + 4)
    assert sum(epochs) <= full / 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"drop": [1, 1]}, "lists a number twice"),
        ({"drop": 0}, "greater than 0"),
        ({"screen": 3}, "is for search screened"),
        ({"short": 0.5}, "is for search screened"),
    ],
)
def test_keys_that_do_not_fit_together(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        keys(**given)


def test_too_many_layers_are_refused() -> None:
    with pytest.raises(UserError, match="of 3 layers 1 to 2 can be dropped, not 3"):
        keys(drop=3).check(tiny_model("bert").config)

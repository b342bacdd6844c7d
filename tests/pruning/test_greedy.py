"""Greedy layer pruning: the published searches replayed, and what the search may and may not do."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compressor.errors import UserError
from compressor.files import digest
from compressor.models import checkpoint
from compressor.models.architecture import structure_of
from compressor.models.slicing import slice_model
from compressor.pruning.greedy import Greedy
from compressor.pruning.greedy.search import Memo, greedy_order
from compressor.pruning.greedy.sizes import fewest_for_time, latency_by_size, most_within_drop
from compressor.pruning.layer_drop import without
from compressor.pruning.target import Target
from tests.zoo import tiny_model

LOGS = json.loads(Path(__file__).with_name("greedy_logs.json").read_text(encoding="utf-8"))


def keys(**given: Any) -> Greedy:
    return Greedy(**({"method": "greedy", "drop": 2} | given))


def order_by(layers: int, count: int, score: Callable[[Sequence[int]], float]) -> list[int]:
    """The order by a score of dropped layers, asked candidate by candidate."""

    def tried(gone: list[int]) -> Mapping[int, float]:
        return {at: score([*gone, at]) for at in range(layers) if at not in gone}

    return [layer for layer, _ in greedy_order(layers, count, tried)]


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
    assert order_by(LOGS["layers"], count, score) == run["removed"]
    assert len(asked) == count * 12 - count * (count - 1) // 2
    for before, after in itertools.pairwise(asked):
        assert len(after) > len(before) or after[-1] > before[-1]
        assert len(set(after)) == len(after)


def test_an_additive_score_gives_the_best_set_an_interaction_may_not() -> None:
    values = [0.1, 0.5, 0.2, 0.4, 0.3]
    assert order_by(5, 2, lambda gone: -sum(values[at] for at in gone)) == [0, 2]
    pairs = {(0,): 0.9, (1,): 0.8, (2,): 0.7, (0, 1): 0.5, (0, 2): 0.6, (1, 2): 0.85}
    assert order_by(3, 2, lambda gone: pairs[tuple(sorted(gone))]) == [0, 2]
    assert max(itertools.combinations(range(3), 2), key=lambda pair: pairs[pair]) == (1, 2)


def missed(gone: Sequence[int]) -> float:
    """A score that tells all sets of six layers apart."""
    return -sum((at * 7) % 5 + at / 100 for at in gone) / 10


def test_shorter_searches_are_beginnings_and_one_layer_stays() -> None:
    whole = order_by(6, 9, missed)
    assert len(whole) == 5
    for count in range(6):
        assert order_by(6, count, missed) == whole[:count]


def test_scores_are_rounded_and_the_last_of_equal_ones_goes() -> None:
    table = {0: 0.9001, 1: 0.9004, 2: 0.8996}
    assert order_by(3, 1, lambda gone: table[gone[0]]) == [2]
    assert order_by(3, 1, lambda gone: {0: 0.9, 1: -1e9, 2: 0.8}[gone[0]]) == [0]


class Killed(Exception):
    pass


class Trains:
    """A context that knows scores by the layers that are gone, and remembers what it was asked."""

    is_main = True
    seed = 0

    def __init__(
        self, folder: Path, layers: int = 3, target: Target | None = None, survives: int = 99
    ) -> None:
        self.folder, self.target, self.survives = folder, target, survives
        self.source = tiny_model("bert", num_hidden_layers=layers)
        self.layers = layers
        self.trained: list[tuple[str, float, float]] = []
        self.after: list[int] = []
        self.scored: list[list[int]] = []
        self.timed: list[list[str]] = []

    def model(self) -> Any:
        return deepcopy(self.source)

    def kept(self, what: str, *depends: Any) -> Path:
        folder = self.folder / f"{what}-{digest(depends)[:8]}"
        folder.mkdir(exist_ok=True)
        return folder

    def once(self, path: Path, make: Callable[[Path], None]) -> None:
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            make(path)

    def each(self, do: Callable[..., Any], jobs: Sequence[Any], where: Any) -> Iterator[tuple[Any, Any]]:
        return ((job, do(self, job)) for job in jobs)

    def train(
        self, model: Any, training: Any, part: Any = None, name: str | None = None, after: int = 0
    ) -> None:
        if len(self.trained) == self.survives:
            raise Killed
        total = sum(p.detach().double().sum().item() for p in model.parameters())
        self.trained.append((name or "", training.epochs, total))
        self.after.append(after)
        with torch.no_grad():
            model.classifier.bias += 1.0

    def forget(self, name: str) -> None:
        assert name == self.trained[-1][0]

    def score(self, model: Any) -> float:
        gated = [h for h in model.modules() if h._forward_hooks or h._forward_pre_hooks]
        gone = sorted(set(range(self.layers)) - {layer.index for layer in structure_of(model).layers})
        self.scored.append(gone)
        return missed(gone) - len(gated) / 1e4

    def latency(self, models: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        self.timed.append(list(models))
        return {name: 2.0 + 10 * len(structure_of(make()).layers) for name, make in models.items()}


def search(context: Trains, **given: Any) -> list[Any]:
    return list(keys(**given).prune(context.model(), context))


def test_every_candidate_starts_from_the_same_untouched_weights(tmp_path: Path) -> None:
    context = Trains(tmp_path)
    model = context.source
    before = {name: value.clone() for name, value in model.state_dict().items()}
    family = list(keys(drop=[1, 2], epochs=3.0).prune(model, context))
    assert [name for name, _, _ in context.trained][:3] == ["without-0", "without-1", "without-2"]
    assert len(context.trained) == 3 + 2
    whole = sum(p.detach().double().sum().item() for p in model.parameters())
    for name, _, total in context.trained[:3]:
        lost = model.bert.encoder.layer[int(name[-1])].parameters()
        assert total == pytest.approx(whole - sum(p.detach().double().sum().item() for p in lost))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.member for p in family] == ["drop1", "drop2"]
    one, two = (set(p.report["dropped"]) for p in family)
    assert one < two
    assert [len(p.structure.layers) for p in family] == [2, 1]
    assert family[0].report["epochs"] == 3.0 * (3 + 2)


@pytest.mark.parametrize("survives", [0, 3, 7, 14])
def test_a_full_search_that_was_killed_tries_no_candidate_twice(survives: int, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    whole = search(Trains(fresh, layers=6), drop=3)
    first = Trains(tmp_path, layers=6, survives=survives)
    with pytest.raises(Killed):
        search(first, drop=3)
    second = Trains(tmp_path, layers=6)
    (pruned,) = search(second, drop=3)
    assert len(first.trained) == survives
    assert not {name for name, _, _ in first.trained} & {name for name, _, _ in second.trained}
    assert survives + len(second.trained) == 6 + 5 + 4
    assert pruned.report == whole[0].report


def test_a_longer_search_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    for kind, rounds in (("full", 4), ("screened", 3)):
        search(Trains(tmp_path, layers=6), drop=2, search=kind)
        context = Trains(tmp_path, layers=6)
        (pruned,) = search(context, drop=3, search=kind)
        assert len(context.trained) == rounds
        fresh = tmp_path / f"fresh-{kind}"
        fresh.mkdir()
        assert pruned.report == search(Trains(fresh, layers=6), drop=3, search=kind)[0].report


def test_more_layers_than_the_source_has_left_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="greedy: of 3 layers 1 to 2 can be dropped, not 3"):
        search(Trains(tmp_path, layers=3), drop=3)


@pytest.mark.parametrize("search", ["full", "screened"])
def test_of_layers_that_are_one_every_round_has_one_candidate(search: str, tmp_path: Path) -> None:
    context = Trains(tmp_path)
    model = tiny_model("albert")
    (pruned,) = keys(drop=2, search=search).prune(model, context)
    rounds = [name for name, _, _ in context.trained if name != "whole" and "halfway" not in name]
    assert [name.split("-", 1)[1] for name in rounds] == ["2", "1-2"]
    assert len(pruned.structure.layers) == 1


def test_the_cheap_search_trains_the_whole_model_once_and_few_candidates_shortly(tmp_path: Path) -> None:
    context = Trains(tmp_path, layers=6)
    (pruned,) = search(context, drop=3, search="screened", screen=2, short=0.25, epochs=4.0)
    names, epochs, _ = zip(*context.trained, strict=True)
    assert names[0] == "whole"
    assert all(name.startswith("screened-") for name in names[1:])
    assert list(epochs) == [4.0] + [0.5] * 3 * (2 + 1)
    assert context.after == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6]  # no half sees the examples as those before it did
    assert len(pruned.structure.layers) == 3
    assert pruned.report["epochs"] == sum(epochs) <= 4.0 * (6 + 5 + 4) / 4


@pytest.mark.parametrize("kind", ["full", "screened"])
def test_layers_of_a_model_that_was_cut_before_have_their_original_numbers(kind: str, tmp_path: Path) -> None:
    context = Trains(tmp_path, layers=6)
    context.source = slice_model(context.source, without(structure_of(context.source), [0, 3]))
    (pruned,) = search(context, drop=2, search=kind)
    report, left = pruned.report, [layer.index for layer in pruned.structure.layers]
    assert sorted([*report["dropped"], *left]) == [1, 2, 4, 5]
    assert sorted(report["order"]) == report["dropped"]
    named = {int(number) for name in report["candidates"] for number in name.split("-") if name != "none"}
    assert named == {1, 2, 4, 5} if kind == "full" else named <= {1, 2, 4, 5}
    assert "-".join(map(str, report["dropped"])) in report["candidates"]


def test_the_cheap_search_goes_on_from_the_last_rounds_winner(tmp_path: Path) -> None:
    context = Trains(tmp_path, layers=6)
    (pruned,) = search(context, drop=3, search="screened")
    first, second, third = pruned.report["order"]
    (folder,) = tmp_path.glob("greedy-*")
    assert [path.name for path in (folder / "models").iterdir()] == [
        "-".join(str(at) for at in sorted((first, second, third)))
    ]
    model = checkpoint.load(next((folder / "models").iterdir()))
    rounds = (model.classifier.bias - context.source.classifier.bias).detach()
    torch.testing.assert_close(rounds, torch.full_like(rounds, 7.0))  # whole, and twice a round
    assert [la.index for la in structure_of(model).layers] == [la.index for la in pruned.structure.layers]


def test_the_cheap_search_stops_the_half_that_is_behind_halfway(tmp_path: Path) -> None:
    context = Trains(tmp_path, layers=6)
    (pruned,) = search(context, drop=1, search="screened", screen=4)
    begun, ended = (
        [name.split("-")[1] for name, _, _ in context.trained[1:] if name.endswith("halfway") is half]
        for half in (True, False)
    )
    assert len(begun) == 4
    assert ended == sorted(begun, key=lambda layer: (-round(missed([int(layer)]), 3), -int(layer)))[:2]
    assert pruned.report["dropped"] == [int(ended[0])]
    assert pruned.report["epochs"] == 3.0 * (1 + 0.25 * (4 + 2) / 2)


@pytest.mark.parametrize("survives", range(10))
def test_a_cheap_search_that_was_killed_ends_as_if_it_was_not(survives: int, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    expected = search(Trains(fresh, layers=6), drop=3, search="screened")
    with pytest.raises(Killed):
        search(Trains(tmp_path, layers=6, survives=survives), drop=3, search="screened")
    context = Trains(tmp_path, layers=6)
    (pruned,) = search(context, drop=3, search="screened")
    assert pruned.report == expected[0].report
    assert survives + len(context.trained) == 10


# Sizes


def test_a_loss_takes_the_most_layers_whose_smaller_numbers_all_lose_no_more(tmp_path: Path) -> None:
    """In the order 0, 5, 3, 1, 4 the scores fall by 0, 0.005, 0.108, ... of the whole's 0."""
    context = Trains(tmp_path, layers=6, target=Target(max_metric_drop=0.05))
    (pruned,) = search(context, drop=5)
    assert pruned.member == "pruned"
    assert pruned.report["dropped"] == [0, 5]
    assert pruned.report["whole"] == 0.0
    assert (
        len(context.trained) == 1 + 6 + 5 + 4
    )  # the third round is the first that loses more, and the last played
    assert pruned.report["epochs"] == 3.0 * 16


def test_another_target_takes_other_sizes_of_the_same_search(tmp_path: Path) -> None:
    search(Trains(tmp_path, layers=6, target=Target(max_metric_drop=0.3)), drop=5)
    for target, members in (
        (Target(max_metric_drop=0.05), {"pruned": 2}),
        (Target(max_metric_drop=[0.05, 0.2]), {"d5": 2, "d20": 3}),
        (Target(speedup=[1.1, 1.5]), {"1.1x": 1, "1.5x": 3}),
        (None, {"pruned": 3}),
    ):
        context = Trains(tmp_path, layers=6, target=target)
        method = keys(drop=3)
        family = list(method.prune(context.model(), context))
        assert {p.member: len(p.report["dropped"]) for p in family} == members
        assert list(members) == method.members(target)
        assert context.trained == []


def test_numbers_beside_a_target_are_those_there_are(tmp_path: Path) -> None:
    context = Trains(tmp_path, layers=6, target=Target(speedup=1.1))
    (pruned,) = search(context, drop=[2, 4])
    assert len(pruned.report["dropped"]) == 2
    context = Trains(tmp_path, layers=6, target=Target(max_metric_drop=0.15))
    (pruned,) = search(context, drop=[2, 4])
    assert len(pruned.report["dropped"]) == 2


def test_a_speedup_is_decided_before_anything_is_trained(tmp_path: Path) -> None:
    context = Trains(tmp_path, layers=6, target=Target(speedup=9))
    with pytest.raises(UserError, match=r"without 3 layers .* 1.94x faster; target.speedup asks for 9"):
        search(context, drop=3)
    assert context.trained == []
    assert context.timed == [["0", "2", "5"]]


def test_times_between_those_measured_are_on_a_line() -> None:
    times = {0: 62.0, 2: 42.0, 5: 12.0}
    assert [fewest_for_time(range(1, 6), times, 62.0, "latency_ms", ms) for ms in (52, 51.9, 42, 41, 12)] == [
        1, 2, 2, 3, 5,
    ]  # fmt: skip
    assert [fewest_for_time([1, 2, 3], times, 62.0, "speedup", s) for s in (1.1, 62 / 52, 1.2, 62 / 32)] == [
        1, 1, 2, 3,
    ]  # fmt: skip
    assert fewest_for_time([1, 2, 3], times, 93.0, "speedup", 1.6) == 1  # 93 ms: the model before it was cut
    with pytest.raises(UserError, match=r"speedup 1.5 is reached with all layers \(62 ms\); ask for more"):
        fewest_for_time([1, 2, 3], times, 93.0, "speedup", 1.5)


def test_a_better_model_behind_a_worse_one_is_luck() -> None:
    class Told:
        scores = [0.90, 0.87, 0.91]
        asked = 0

        def score(self, count: int) -> float:
            self.asked = max(self.asked, count)
            return self.scores[count - 1]

    told = Told()
    assert most_within_drop([1, 2, 3], 0.91, told, 0.01) == 1
    assert told.asked == 2
    with pytest.raises(UserError, match=r"without 1 layer .* 0.050 worse .* allows 0.01: allow more"):
        most_within_drop([1, 2, 3], 0.95, Told(), 0.01)
    with pytest.raises(UserError, match=r"without 2 layers .* 0.040 worse"):
        most_within_drop([2, 3], 0.91, Told(), 0.01)


def test_every_other_size_is_no_other_model_to_time(tmp_path: Path) -> None:
    context = Trains(tmp_path, layers=2)
    assert latency_by_size(context.model(), context) == {0: 22.0, 1: 12.0}


def test_a_memo_of_another_process_is_not_written(tmp_path: Path) -> None:
    Memo(tmp_path / "memo.json", writes=False).keep("1", 0.5)
    assert not (tmp_path / "memo.json").exists()


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


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        ({}, 3 * (3 * 2 / 3 + 2 * 1 / 3)),
        ({"search": "screened"}, 3 * (1 + 0.25 * (1.5 * 2 / 3 + 1.5 * 1 / 3))),
    ],
)
def test_a_plan_counts_every_training(given: dict[str, Any], epochs: float) -> None:
    assert keys(**given).effort(tiny_model("bert").config) == pytest.approx(epochs)


def test_too_many_layers_are_refused() -> None:
    with pytest.raises(UserError, match="of 3 layers 1 to 2 can be dropped, not 3"):
        keys(drop=3).check(tiny_model("bert").config)

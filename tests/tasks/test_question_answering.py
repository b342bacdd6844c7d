import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import UserError
from compressor.tasks import get_task
from compressor.tasks.schema import TaskKeys
from compressor.tasks.spans import best_span
from compressor.tasks.squad_metrics import normalized, scores

WORDS = ["cat", "dog", "paris", "john", "runs", "very", "good", "zyx", "the", "don't", "U.S."]


def question(context, answer, number, impossible=False):
    answers = [] if impossible else [{"text": answer, "answer_start": context.index(answer)}]
    qa = {
        "id": f"q{number}",
        "question": f"where is {number}?",
        "answers": answers,
        "is_impossible": impossible,
    }
    return {"context": context, "qas": [qa]}


def squad(paragraphs):
    return json.dumps({"version": "x", "data": [{"title": "t", "paragraphs": paragraphs}]})


PARAGRAPHS = [question(f"john{n} lives in paris, the dog {n} sleeps", f"dog {n}", n) for n in range(10)]


@pytest.fixture
def load(write):
    def load(paragraphs, **keys):
        path = write("a.json", paragraphs if isinstance(paragraphs, str) else squad(paragraphs))
        made = TaskKeys(type="question-answering", dataset={"train": path, "validation": path}, **keys)
        return get_task(made.type).load(made, 0)

    return load


def run(task, tokenizer, frame=None, height=5.0):
    """Predictions of a model that is sure of the learned positions."""
    frame = task.examples.validation if frame is None else frame
    features = task.features(frame, tokenizer)
    outputs = {"start_logits": [], "end_logits": []}
    for feature in features:
        for name, at in (("start_logits", "start_positions"), ("end_logits", "end_positions")):
            outputs[name].append(height * np.eye(len(feature["input_ids"]))[feature[at]])
    return task.predictions(outputs, features, frame)


def test_learned_positions_give_the_answers_back(load, tokenizer):
    task = load(PARAGRAPHS)
    found = run(task, tokenizer)
    assert found["prediction"].tolist() == [f"dog {n}" for n in range(10)]
    assert task.score(found) == {"f1": 1.0, "exact_match": 1.0}
    assert not task.unanswerable


@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=10, max_size=120), where=st.data())
def test_every_span_of_a_long_context_makes_the_round_trip(words, where, tokenizer):
    first = where.draw(st.integers(0, len(words) - 1))
    last = where.draw(st.integers(first, min(first + 2, len(words) - 1)))
    context, start = " ".join(words), len(" ".join(words[:first])) + (first > 0)
    answer = " ".join(words[first : last + 1])
    task = make_task([(context, answer, start)], max_length=48, stride=16)
    found = run(task, tokenizer, task.examples.train)
    assert found["prediction"].tolist() == [answer]
    features = task.features(task.examples.train, tokenizer)
    assert max(map(len, features["input_ids"])) <= 48
    covered = {at for starts in features["starts"] for at in starts if at >= 0}
    assert {0, start, len(context) - len(words[-1])} <= covered  # no window is missing


def make_task(rows, **keys):
    import pandas as pd

    from compressor.tasks.base import Examples
    from compressor.tasks.question_answering import QuestionAnswering

    frame = pd.DataFrame(
        {
            "id": [str(n) for n in range(len(rows))],
            "question": ["where does john live"] * len(rows),
            "context": [context for context, _, _ in rows],
            "answers": [[answer] for _, answer, _ in rows],
            "answer_starts": [[start] for _, _, start in rows],
        }
    )
    made = TaskKeys(type="question-answering", dataset="squad", **keys)
    return QuestionAnswering(made, Examples(frame, frame, frame))


def test_no_context_is_on_both_sides_of_the_selection_split(load):
    paragraphs = [
        {**question(f"context {n}", "context", 2 * n), "qas": [
            *question(f"context {n}", "context", 2 * n)["qas"],
            *question(f"context {n}", "context", 2 * n + 1)["qas"],
        ]}
        for n in range(10)
    ]  # fmt: skip
    examples = load(paragraphs, selection={"fraction": 0.3}).examples
    assert len(examples.selection) == 6
    assert not set(examples.train["context"]) & set(examples.selection["context"])


def test_a_long_question_is_cut_and_counted(load, tokenizer):
    paragraphs = [*PARAGRAPHS, question("the cat runs in paris " * 20, "cat", 10)]
    paragraphs[-1]["qas"][0]["question"] = "  " + "where " * 300
    task = load(paragraphs, max_length=64, stride=32)
    features = task.features(task.examples.validation, tokenizer)
    assert max(map(len, features["input_ids"])) <= 64
    cut = {row for row, cut in zip(features["example"], features["truncated"], strict=True) if cut}
    assert cut == {10}
    assert run(task, tokenizer)["prediction"].iloc[-1] == "cat"


def test_unanswerable_questions_are_answered_with_nothing(load, tokenizer):
    paragraphs = [*PARAGRAPHS, *(question("dog cat", "", n, impossible=True) for n in range(20, 30))]
    task = load(paragraphs)
    assert task.unanswerable
    assert task.post_processing(tokenizer)["null_answer"]
    right = run(task, tokenizer)
    assert right["prediction"].tolist()[10:] == [""] * 10
    assert set(task.score(right).values()) == {1.0}
    wrong = run(task, tokenizer, height=-5.0)  # now the span of the answer is the least likely
    by_kind = task.score(wrong)
    assert by_kind["no_answer_exact_match"] == 0.0
    assert (
        by_kind["exact_match"] == (by_kind["has_answer_exact_match"] + by_kind["no_answer_exact_match"]) / 2
    )


def test_a_context_that_lacks_its_answer_is_named_by_question(load):
    broken = json.loads(squad(PARAGRAPHS))
    broken["data"][0]["paragraphs"][3]["qas"][0]["answers"][0]["answer_start"] = 1
    with pytest.raises(UserError, match="question q3: the context does not hold the answer 'dog 3'"):
        load(json.dumps(broken))


def test_ids_must_be_unique_and_answers_well_formed(load, write):
    with pytest.raises(UserError, match="question 11: the id 'q0' was there before"):
        load([*PARAGRAPHS, PARAGRAPHS[0]])
    rows = [{"question": "q", "context": "c", "answers": {"text": ["c"]}}]
    path = write("b.jsonl", "\n".join(map(json.dumps, rows * 3)))
    keys = TaskKeys(type="question-answering", dataset={"train": path, "validation": path})
    with pytest.raises(UserError, match=r"line 1: 'answers' is not \{text"):
        get_task(keys.type).load(keys, 0)


def test_jsonl_without_ids_is_named_by_line(load, write):
    rows = [
        {"question": "q", "context": f"c {n}", "answers": {"text": ["c"], "answer_start": [0]}}
        for n in range(20)
    ]
    path = write("b.jsonl", "\n".join(map(json.dumps, rows)))
    keys = TaskKeys(type="question-answering", dataset={"train": path, "validation": path})
    assert get_task(keys.type).load(keys, 0).examples.validation["id"].tolist()[:2] == ["1", "2"]


def test_the_best_span_is_the_best_allowed_pair():
    starts = np.array([-1, 0, 2, 4, 6, -1])  # tokens 1 to 4 are the context
    start_logits = np.array([9, 0, 0, 5, 0, 9.0])
    end_logits = np.array([9, 0, 6, 0, 0, 9.0])
    assert best_span(start_logits, end_logits, starts) == (6.0, 1, 2)  # 3 to 2 has 11, but runs backwards
    assert best_span(start_logits, end_logits, np.full(6, -1))[0] == -np.inf


def test_an_answer_has_at_most_thirty_tokens():
    start, end = np.eye(40)[0] * 5, np.eye(40)[35] * 5
    score, first, last = best_span(start, end, np.arange(40))
    assert (score, last - first < 30) == (5.0, True)


@given(st.integers(0, 9999))
@settings(max_examples=50, deadline=None)
def test_the_best_span_is_what_trying_all_pairs_finds(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 20))  # below n_best, so nothing is left out
    starts = np.concatenate([[-1, -1], np.arange(length), [-1]])
    start, end = rng.normal(size=(2, length + 3))
    expected = max(start[i] + end[j] for i in range(2, length + 2) for j in range(i, min(i + 30, length + 2)))
    score, first, last = best_span(start, end, starts)
    assert score == pytest.approx(expected)
    assert start[first] + end[last] == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The  Cat!", ["cat"], 1, 1),
        ("the cat sat", ["cat", "dog"], 0, 2 / 3),
        ("a b c", ["b c d", "x"], 0, 0.8),  # the article goes: b c against b c d
        ("dog", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("cat cat", ["cat"], 0, 2 / 3),
    ],
)
def test_scores_follow_the_definition(prediction, answers, exact, f1):
    assert scores(prediction, answers) == (exact, pytest.approx(f1))


def test_normalisation_keeps_words_that_only_contain_articles():
    assert normalized("The U.S.A. theatre, a-b") == "usa theatre ab"

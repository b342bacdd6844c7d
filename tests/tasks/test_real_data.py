"""The shipped tasks on the data sets they are named after."""

import numpy as np
import pytest

from compressor.tasks import get_task
from compressor.tasks.schema import TaskKeys
from tests.tasks.test_question_answering import run


def load(folder, **keys):
    files = {"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv")}
    files |= keys.pop("dataset", {})
    made = TaskKeys(type="text-classification", dataset=files, **keys)
    return get_task(made.type).load(made, 42)


def counts(task):
    parts = (task.examples.train, task.examples.selection, task.examples.validation)
    return tuple(map(len, parts))


def test_sst2(data):
    task = load(data / "sst2")
    assert counts(task) == (60614, 6735, 872)
    assert np.bincount(task.examples.validation["label"]).tolist() == [428, 444]
    points = task.reference_points()
    assert points["largest_class"] == pytest.approx(444 / 872)
    assert 0.75 < points["bag_of_words"] < 0.85


def test_mrpc(data):
    task = load(data / "mrpc", metric="f1")
    assert counts(task) == (3300, 367, 408)
    assert task.examples.validation["pair"][0].startswith('" The foodservice')
    assert task.examples.validation["label"].sum() == 279


def test_cola(data):
    task = load(data / "cola", columns={"text": 3, "label": 1}, dataset={"header": False}, metric="matthews")
    assert counts(task) == (7696, 855, 1043)
    assert task.examples.validation["text"][0] == "The sailors rode the breeze clear of the rocks."
    assert task.examples.validation["label"].sum() == 721


def test_stsb(data):
    task = load(data / "stsb")
    assert counts(task) == (5174, 575, 1500)
    assert task.regression
    assert task.examples.validation["label"].mean() == pytest.approx(2.364, abs=5e-4)


def squad(data, validation):
    files = {
        "train": str(data / "squad_v1" / "train-v1.1-58articles.json"),
        "validation": str(data / "squad_v1" / validation),
    }
    return get_task("question-answering").load(TaskKeys(type="question-answering", dataset=files), 42)


def test_xquad_answers_make_the_round_trip(data, real_tokenizer):
    task = squad(data, "xquad.en.json")
    assert len(task.examples.validation) == 1190
    found = run(task, real_tokenizer)
    assert task.score(found)["exact_match"] > 0.995  # an answer that is part of a token cannot be found
    for prediction, answers in zip(found["prediction"], found["reference"], strict=True):
        assert answers[0] in prediction


@pytest.mark.slow
def test_squad_windows_and_the_official_scores(data, real_tokenizer):
    task = squad(data, "dev-v1.1.json")
    assert counts(task) == (12912, 1436, 10570)
    frame = task.examples.validation
    features = task.features(frame, real_tokenizer)
    assert len(features) == 10784
    found = run(task, real_tokenizer)
    lost = [p for p, known in zip(found["prediction"], found["reference"], strict=True) if known[0] not in p]
    assert len(lost) <= 5  # more than 30 tokens long
    perfect = found.assign(prediction=[known[0] for known in found["reference"]])
    rescored = [metric(perfect) for metric in (_exact, _f1)]
    assert rescored == [1.0, 1.0]


def _exact(found):
    from compressor.tasks.squad_metrics import scores

    return np.mean(
        [scores(p, known)[0] for p, known in zip(found["prediction"], found["reference"], strict=True)]
    )


def _f1(found):
    from compressor.tasks.squad_metrics import scores

    return np.mean(
        [scores(p, known)[1] for p, known in zip(found["prediction"], found["reference"], strict=True)]
    )

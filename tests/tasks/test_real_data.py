"""The shipped tasks on the data sets they are named after."""

import numpy as np
import pytest

from compressor.models.source import TrainTokenizer
from compressor.stages.vocabulary import train_vocabulary
from compressor.tasks import get_task
from compressor.tasks.schema import TaskKeys
from compressor.tasks.squad_metrics import scores
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


def test_stsb_without_labels(data):
    folder = data / "stsb"
    files = {"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv")}
    task = get_task("feature-extraction").load(TaskKeys(type="feature-extraction", dataset=files), 42)
    assert counts(task) == (5174, 575, 1500)
    assert task.primary == "spearman"
    assert 0.55 < task.reference_points()["bag_of_words"] < 0.8


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
    first_answers = [known[0] for known in found["reference"]]
    lost = [
        answer for text, answer in zip(found["prediction"], first_answers, strict=True) if answer not in text
    ]
    assert all(len(real_tokenizer.tokenize(answer)) > 30 for answer in lost)
    held = features.filter(lambda window: window["start_positions"] > 0)
    assert set(held["example"]) == set(range(10570))  # every answer is whole in some window
    for window in held.select_columns(["example", "start_positions", "end_positions", "starts", "ends"]):
        first, last = window["starts"][window["start_positions"]], window["ends"][window["end_positions"]]
        assert frame["answers"][window["example"]][0] in frame["context"][window["example"]][first:last]
    perfect = [scores(known[0], known) for known in found["reference"]]
    assert set(perfect) == {(1.0, 1.0)}


def test_penn_treebank(data):
    """Its published sizes: 10,000 words; 929,589 tokens to train on, 73,760 to validate, ends of lines included."""
    names = {"train": "ptb.train.txt", "validation": "ptb.valid.txt"}
    files = {split: str(data / "ptb" / name) for split, name in names.items()}
    keys = TaskKeys(type="language-modeling", dataset=files, max_length=64, selection={"fraction": 0.05})
    task = get_task(keys.type).load(keys, 42)
    assert counts(task) == (39940, 2128, 3370)
    train = [task.examples.train, task.examples.selection]
    words = train_vocabulary(
        TrainTokenizer(train="word"), [text for frame in train for text in frame["text"]]
    )
    assert len(words) == 10_000
    tokens = [
        sum(map(len, task.features(frame, words)["labels"])) for frame in (*train, task.examples.validation)
    ]
    assert (sum(tokens[:2]), tokens[2]) == (929_589, 73_760)

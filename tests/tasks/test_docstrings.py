from compressor.tasks import docstrings, get_task
from compressor.tasks.schema import TaskKeys


def test_the_builtin_data_set_is_balanced_clean_and_without_overlap():
    frames = docstrings.build()
    assert {split: len(frame) for split, frame in frames.items()} == {"train": 6400, "validation": 1600}
    for frame in frames.values():
        assert frame["label"].nunique() == 8
        assert frame["label"].value_counts().nunique() == 1
        assert frame["text"].str.split().str.len().between(12, 48).all()
    texts = [text.lower() for frame in frames.values() for text in frame["text"]]
    assert len(set(texts)) == len(texts)


def test_rows_do_not_depend_on_anything_but_the_packages(monkeypatch):
    monkeypatch.setattr(docstrings, "PACKAGES", ("networkx", "numpy"))
    monkeypatch.setattr(docstrings, "ROWS", 250)
    first, again = docstrings.build.__wrapped__(), docstrings.build.__wrapped__()
    assert first["train"].equals(again["train"])


def test_rules_and_examples_are_dropped():
    assert docstrings._clean("Title\n=====\n\nText.\n\n>>> code\nmore") == "Title Text. more"


def test_it_can_be_learned_far_beyond_the_largest_class():
    keys = TaskKeys(type="text-classification", dataset={"builtin": "docstrings"})
    task = get_task(keys.type).load(keys, 42)
    points = task.reference_points()
    assert points["largest_class"] == 0.125
    assert 0.75 < points["bag_of_words"] < 0.95
    assert task.fingerprint(keys) == task.fingerprint(keys)

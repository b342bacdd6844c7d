import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from compressor.errors import UserError
from compressor.tasks import get_task
from compressor.tasks.collate import collator
from compressor.tasks.schema import TaskKeys

ROWS = [("the good movie", "pos"), ("the bad movie", "neg"), ("very good", "pos"), ("very bad", "neg")] * 10


def tsv(rows, header="sentence\tlabel"):
    return "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"


@pytest.fixture
def load(write):
    def load(train, validation=None, seed=0, options=None, **keys):
        dataset = {"train": write("train.tsv", train), "validation": write("dev.tsv", validation or train)}
        made = TaskKeys(type="text-classification", dataset={**dataset, **(options or {})}, **keys)
        return get_task(made.type).load(made, seed)

    return load


def predictions(task, logits, tokenizer):
    frame = task.examples.validation
    return task.predictions({"logits": logits}, task.features(frame, tokenizer), frame)


def test_labels_are_sorted_and_become_the_head(load):
    task = load(tsv(ROWS))
    assert task.model_config() == {
        "num_labels": 2,
        "id2label": {0: "neg", 1: "pos"},
        "label2id": {"neg": 0, "pos": 1},
        "problem_type": "single_label_classification",
    }
    assert task.examples.validation["label"].tolist() == [1, 0, 1, 0] * 10


def test_numbers_as_labels_are_in_numerical_order(load):
    task = load(tsv([(text, str(n % 11)) for n, (text, _) in enumerate(ROWS)]))
    assert task.labels == [str(n) for n in range(11)]


def test_labels_of_the_recipe_give_the_order_or_name_numbers(load):
    assert load(tsv(ROWS), labels=["pos", "neg"]).examples.validation["label"][0] == 0
    numbered = load(tsv([(text, str(int(label == "pos"))) for text, label in ROWS]), labels=["bad", "good"])
    assert numbered.labels == ["bad", "good"]
    assert numbered.examples.validation["label"].tolist() == [1, 0, 1, 0] * 10


def test_columns_are_found_by_the_usual_names(load):
    pairs = tsv([(text, "a cat", label) for text, label in ROWS], "#1 String\t#2 String\tQuality")
    assert load(pairs).examples.train["pair"].unique().tolist() == ["a cat"]
    named = load(tsv(ROWS, "review\tstars"), columns={"text": "review", "label": "stars"})
    assert "pair" not in named.examples.train
    headerless = load(
        tsv(ROWS)[len("sentence\tlabel\n") :], options={"header": False}, columns={"text": 0, "label": 1}
    )
    assert len(headerless.examples.validation) == 40


def test_a_column_that_is_missing_is_answered_with_the_nearest_name(load):
    with pytest.raises(UserError, match=r"did you mean 'review'.*its columns are: review, label"):
        load(tsv(ROWS, "review\tlabel"), columns={"text": "revew"})
    with pytest.raises(UserError, match="no column with the text"):
        load(tsv(ROWS, "review\tlabel"))
    with pytest.raises(UserError, match="no column with the label"):
        load(tsv(ROWS, "text\tstars"))
    with pytest.raises(UserError, match=r"dev\.tsv: no column 'sentence'"):
        load(tsv(ROWS), tsv(ROWS, "text\tlabel"))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("", "pos"), "'sentence' is empty"),
        ((" ", "pos"), "'sentence' is empty"),
        (("a", ""), "'label' has no label"),
        (("a", "nan"), "'label' has no label"),
        (
            ("a", "poss"),
            r"'label' holds 'poss', which is not among the labels \(neg, pos\); did you mean 'pos'",
        ),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(load, row, problem):
    with pytest.raises(UserError, match=r"dev\.tsv line 42: " + problem):
        load(tsv(ROWS), tsv([*ROWS, row]))


@pytest.mark.parametrize("label", [["pos", "neg"], {"pos": 1}, []])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_row_with_several_labels_is_refused(write, tmp_path, label, ending):
    rows = [{"text": text, "label": ["pos"] if ending == "parquet" else "pos"} for text, _ in ROWS]
    train = write("train.jsonl", "\n".join(map(json.dumps, [*rows, {"text": "a cat", "label": label}])))
    if ending == "parquet":
        if isinstance(label, dict):
            rows = [row | {"label": {"pos": 0}} for row in rows]
        train = str(tmp_path / "train.parquet")
        pd.DataFrame([*rows, {"text": "a cat", "label": label}]).to_parquet(train)
    keys = TaskKeys(
        type="text-classification", dataset={"train": train, "validation": write("v.tsv", tsv(ROWS))}
    )
    place = "row 1" if ending == "parquet" else "line 41"
    with pytest.raises(UserError, match=rf"{place}: 'label' holds several labels.*; give every row one"):
        get_task(keys.type).load(keys, 0)


def test_one_class_and_too_many_are_refused(load):
    with pytest.raises(UserError, match="nothing to learn"):
        load(tsv([(text, "same") for text, _ in ROWS]))
    with pytest.raises(UserError, match="is it the label"):
        load(tsv([(text, f"id{n}") for n, (text, _) in enumerate(ROWS)]))


def test_scores_mean_regression(load, tokenizer):
    rows = [(text, f"{n / 8:.3f}") for n, (text, _) in enumerate(ROWS)]
    task = load(tsv(rows))
    assert task.regression
    assert task.primary == "pearson"
    assert task.model_config()["problem_type"] == "regression"
    truth = [np.array([label]) for label in task.examples.validation["label"]]
    assert task.score(predictions(task, truth, tokenizer)) == pytest.approx({"pearson": 1, "spearman": 1})
    batch = task.collate(tokenizer)(list(task.features(task.examples.train.head(3), tokenizer)))
    assert batch["labels"].dtype == torch.float32
    assert not load(tsv(rows), labels=sorted({label for _, label in rows})).regression


def test_a_score_that_is_no_number_is_named(load):
    rows = [(text, f"{n / 8:.3f}") for n, (text, _) in enumerate(ROWS)]
    rows[4] = ("a", "n/a")
    with pytest.raises(UserError, match=r"train\.tsv line 6: 'label' holds 'n/a', not a number"):
        load(tsv(rows))


def test_a_metric_of_the_other_kind_is_refused(load):
    with pytest.raises(UserError, match="pearson: the labels are classes"):
        load(tsv(ROWS), metric="pearson")


def test_features_are_unpadded_and_know_their_example(load, tokenizer):
    task = load(tsv([("the cat " * 30, "pos"), *ROWS]), max_length=12)
    frame = task.examples.validation
    features = task.features(frame, tokenizer)
    assert features["example"][:3] == [0, 1, 2]
    assert features["truncated"][:2] == [True, False]
    assert [len(ids) for ids in features["input_ids"][:2]] == [12, 5]
    assert tokenizer.decode(features["input_ids"][1]) == "[CLS] the good movie [SEP]"


def test_batches_are_padded_to_their_longest_row(load, tokenizer):
    task = load(tsv(ROWS))
    batch = task.collate(tokenizer)(list(task.features(task.examples.validation, tokenizer).select([0, 2])))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 1]


def test_padding_follows_the_tokenizer(load, tokenizer):
    task = load(tsv(ROWS))
    rows = list(task.features(task.examples.validation, tokenizer).select([0, 2]))
    settings = {"pad_token_id": 7, "pad_token_type_id": 3, "padding_side": "left"}
    batch = task.collate(SimpleNamespace(**settings))(rows)
    assert batch["input_ids"][1].tolist() == [7, *rows[1]["input_ids"]]
    assert batch["token_type_ids"][1].tolist() == [3, 0, 0, 0, 0]
    with pytest.raises(UserError, match="no padding token"):
        task.collate(SimpleNamespace(pad_token_id=None))


def test_padding_on_the_left_moves_positions_with_their_tokens(tokenizer):
    rows = [
        {"input_ids": [2, 8, 9, 3], "attention_mask": [1] * 4, "start_positions": 1, "end_positions": 2},
        {"input_ids": [2, 3], "attention_mask": [1] * 2, "start_positions": 0, "end_positions": 1},
    ]
    for side in ("left", "right"):
        settings = {"pad_token_id": 0, "pad_token_type_id": 0, "padding_side": side}
        batch = collator(SimpleNamespace(**settings), ())(rows)
        for name in ("start_positions", "end_positions"):
            found = batch["input_ids"][torch.arange(2), batch[name]].tolist()
            assert found == [row["input_ids"][row[name]] for row in rows]


def test_predictions_are_names_in_the_order_of_the_examples(load, tokenizer):
    task = load(tsv(ROWS))
    frame = task.examples.validation
    features = task.features(frame, tokenizer)
    order = np.random.default_rng(0).permutation(len(frame))
    logits = [np.eye(2)[frame["label"][row]] for row in order]
    found = task.predictions({"logits": logits}, features.select(order), frame)
    assert found["prediction"].tolist() == ["pos", "neg", "pos", "neg"] * 10
    assert found["id"][0] == "2"  # the file's line
    assert task.score(found) == {"accuracy": 1.0, "f1": 1.0, "matthews": 1.0}


def test_the_reference_points_are_beaten_by_what_can_be_learned(load):
    points = load(tsv([*ROWS, *[("good", "pos")] * 40])).reference_points()
    assert points["bag_of_words"] == 1.0
    assert points["largest_class"] == 60 / 80


def test_more_than_the_model_takes_and_slow_tokenizers_are_refused(load, tokenizer):
    task = load(tsv(ROWS), max_length=600)
    with pytest.raises(UserError, match="max_length 600 is more than the model takes"):
        task.features(task.examples.train, tokenizer)
    with pytest.raises(UserError, match="has no fast version"):
        task.features(task.examples.train, SimpleNamespace(is_fast=False))


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'text-classification'"):
        get_task("text-clasification")

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from compressor.errors import UserError
from compressor.tasks import get_task
from compressor.tasks.schema import TaskKeys

TEXTS = ["the good movie", "a cat runs", "the dog sleeps in paris", "john lives", "very bad"] * 8
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
SCORED = [(*pair, f"{n % 11 / 2:.2f}") for n, pair in enumerate(PAIRS)]
PAIR, SCORE = "sentence1\tsentence2", "sentence1\tsentence2\tscore"


def tsv(header, rows):
    return "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"


@pytest.fixture
def load(write):
    def load(train, validation, options=None, **keys):
        dataset = {"train": write("train.tsv", train), "validation": write("dev.tsv", validation)}
        made = TaskKeys(type="feature-extraction", dataset={**dataset, **(options or {})}, **keys)
        return get_task(made.type).load(made, 0)

    return load


def vectors(texts, seed=0, noise=0.0):
    """The same random vector for the same text."""
    made = {t: np.random.default_rng(len(t)).standard_normal(6) for t in sorted(set(texts))}
    random = np.random.default_rng(seed)
    return [(made[t] + noise * random.standard_normal(6)).astype(np.float32) for t in texts]


def texts_of(features, tokenizer):
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in features["input_ids"]]


def predicted(task, tokenizer, noise=0.0, dense=False, order=None):
    """Predictions on validation of a model that gives every text the vector of its words, and noise."""
    frame = task.examples.validation
    features = task.features(frame, tokenizer)
    own = {"sentence_embedding": vectors(texts_of(features, tokenizer))}
    frame = task.beside(frame, own, features) if dense else frame
    if order is not None:
        features = features.select(order)
    outputs = {"sentence_embedding": vectors(texts_of(features, tokenizer), noise=noise)}
    return task.predictions(outputs, features, frame)


def test_texts_alone_are_enough_and_are_scored_by_the_dense_model(load, tokenizer):
    task = load(tsv("text", [[t] for t in TEXTS]), tsv("text", [[t] for t in TEXTS]))
    assert list(task.examples.train.columns) == ["id", "text"]
    assert task.primary == "cosine"
    assert task.reference_points() == {}
    rows = predicted(task, tokenizer, noise=0.5, dense=True)
    assert list(rows.columns) == ["id", "embedding", "cosine"]
    own = vectors(task.examples.validation["text"])
    by_hand = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(rows["embedding"], own, strict=True)
    ]
    assert task.score(rows) == {"cosine": pytest.approx(np.mean(by_hand))}
    assert task.judged(rows) == task.score(rows)["cosine"] < 1
    assert task.score(predicted(task, tokenizer, dense=True))["cosine"] == pytest.approx(1)


def test_pairs_are_scored_by_rank(load, tokenizer):
    task = load(tsv(SCORE, SCORED), tsv(SCORE, SCORED))
    assert task.primary == "spearman"
    rows = predicted(task, tokenizer, noise=0.3, dense=True)
    cosine = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(rows["embedding"], rows["pair_embedding"], strict=True)
    ]
    np.testing.assert_allclose(rows["prediction"], cosine, atol=1e-6)
    expected = spearmanr([float(row[2]) for row in SCORED], rows["prediction"]).statistic
    assert task.score(rows)["spearman"] == pytest.approx(expected)
    assert set(task.score(rows)) == {"spearman", "cosine"}
    assert task.judged(rows) == pytest.approx(expected)


def test_choices_go_by_the_dense_model_where_train_has_no_scores(load, tokenizer):
    task = load(tsv("text", [[t] for t in TEXTS]), tsv(SCORE, SCORED))
    assert task.primary == "spearman"
    frame = task.examples.selection
    features = task.features(frame, tokenizer)
    outputs = {"sentence_embedding": vectors(texts_of(features, tokenizer))}
    rows = task.predictions(outputs, features, task.beside(frame, outputs, features))
    assert task.judged(rows) == pytest.approx(1)


def test_both_texts_of_a_pair_are_learned_each_alone(load, tokenizer):
    task = load(tsv(PAIR, PAIRS), tsv(PAIR, PAIRS))
    features = task.features(task.examples.validation.head(2), tokenizer)
    assert texts_of(features, tokenizer) == [*PAIRS[0], *PAIRS[1]]
    assert features["example"][:] == [0, 0, 1, 1]
    assert features["side"][:] == [0, 1, 0, 1]
    assert set(task.collate(tokenizer)(list(features))) == {"input_ids", "attention_mask", "token_type_ids"}
    assert task.primary == "cosine"  # nobody says how similar they are


def test_the_order_of_features_does_not_matter(load, tokenizer):
    task = load(tsv(SCORE, SCORED), tsv(SCORE, SCORED))
    order = np.random.default_rng(3).permutation(2 * len(SCORED))
    one, other = (predicted(task, tokenizer, dense=True, order=which) for which in (None, order))
    for name in ("embedding", "pair_embedding"):
        np.testing.assert_array_equal(np.stack(one[name]), np.stack(other[name]))
    assert task.score(one) == task.score(other)


def test_a_part_of_the_examples_keeps_its_dense_vectors(load, tokenizer):
    task = load(tsv(SCORE, SCORED), tsv(SCORE, SCORED))
    features = task.features(task.examples.validation, tokenizer)
    own = {"sentence_embedding": vectors(texts_of(features, tokenizer))}
    frame = task.beside(task.examples.validation, own, features).sample(9, random_state=1)
    features = task.features(frame, tokenizer)
    same = {"sentence_embedding": vectors(texts_of(features, tokenizer))}
    rows = task.predictions(same, features, frame)
    np.testing.assert_allclose(rows["cosine"], 1)


def test_agreement_is_the_mean_cosine(load, tmp_path):
    task = load(tsv(PAIR, PAIRS), tsv(PAIR, PAIRS))
    tables = []
    for turned in ([1.0, 0.0], [0.0, 1.0]):
        path = tmp_path / "stored.parquet"
        columns = {"embedding": [[1.0, 0.0], [2.0, 0.0]], "pair_embedding": [[0.0, 3.0], turned]}
        pd.DataFrame(columns).to_parquet(path)
        tables.append(pd.read_parquet(path))
    assert task.agreement(tables[0], tables[0]) == 1
    assert task.agreement(*tables) == pytest.approx(3 / 4)


def test_columns_are_found_or_named(load):
    named = load(
        tsv("a\tb\tsim", SCORED),
        tsv("a\tb\tsim", SCORED),
        columns={"text": "a", "pair": "b", "score": "sim"},
    )
    assert list(named.examples.train.columns) == ["id", "text", "pair", "score"]
    only = load(tsv("a", [[t] for t in TEXTS]), tsv("a\tb", PAIRS), columns={"text": "a", "pair": "b"})
    assert "pair" not in only.examples.train
    assert "pair" in only.examples.validation
    plain = "\n".join(TEXTS)
    headless = load(plain, plain, options={"header": False}, columns={"text": 0})
    assert len(headless.examples.validation) == len(TEXTS)


def test_a_bag_of_words_is_what_a_model_must_beat(load):
    rows = [("the good movie", "the good movie", "5.0"), ("a cat runs", "a cat sleeps", "3.0")]
    rows += [("the good movie", "very bad", "0.5"), ("john lives", "a dog", "1.0")]
    points = load(tsv(SCORE, SCORED), tsv(SCORE, rows)).reference_points()
    assert points["bag_of_words"] > 0.9


def test_class_numbers_are_no_scores(load):
    rows = [(*pair, str(n % 3)) for n, pair in enumerate(PAIRS)]
    table = tsv("premise\thypothesis\tlabel", rows)
    assert load(table, table).primary == "cosine"


def test_what_is_missing_is_said(load):
    with pytest.raises(UserError, match=r"dev\.tsv: no column with the similarity of two texts"):
        load(tsv(PAIR, PAIRS), tsv(PAIR, PAIRS), metric="spearman")
    with pytest.raises(UserError, match=r"no column with the text: name it in task\.columns"):
        load(tsv("a\tb", PAIRS), tsv("a\tb", PAIRS))
    with pytest.raises(UserError, match=r"dev\.tsv: no column 'sin'.*its columns are"):
        load(tsv(SCORE, SCORED), tsv(SCORE, SCORED), columns={"text": "sentence1", "pair": "sin"})
    with pytest.raises(UserError, match="a score is of two texts"):
        load(tsv(SCORE, SCORED), tsv(SCORE, SCORED), columns={"text": "sentence1", "score": "score"})
    bad = tsv(SCORE, [*SCORED, ("a", "b", "much")])
    with pytest.raises(UserError, match=r"dev\.tsv line 42: 'score' holds 'much', not a number"):
        load(tsv(SCORE, SCORED), bad)


def test_how_vectors_are_made_is_in_the_model_s_config():
    keys = TaskKeys(type="feature-extraction", dataset="some/texts", pooling="cls", normalize=False)
    config = get_task(keys.type)(keys, None).model_config()
    assert config == {"sentence_embedding": {"pooling": "cls", "normalize": False}}
    usual = TaskKeys(type="feature-extraction", dataset="some/texts", pooling=None)
    assert (usual.pooling, usual.normalize, usual.max_length) == ("mean", True, 128)

"""What a model must beat to have learned anything: the largest class, and a bag of words."""

from contextlib import suppress

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from compressor.tasks.base import Examples
from compressor.tasks.metrics import correlation

TRAINING_ROWS = 20_000


def classification(examples: Examples) -> dict[str, float]:
    """Accuracies on validation of train's largest class and of logistic regression on TF-IDF of words.

    At most 20,000 rows of train are fitted, drawn at random but always the same ones.
    """
    train, validation = examples.train, examples.validation
    largest = np.bincount(train["label"]).argmax()
    if len(train) > TRAINING_ROWS:
        train = train.iloc[np.random.default_rng(0).permutation(len(train))[:TRAINING_ROWS]]
    points = {"largest_class": float((validation["label"] == largest).mean())}
    if train["label"].nunique() > 1:
        model = make_pipeline(TfidfVectorizer(token_pattern=r"\b\w+\b"), LogisticRegression(max_iter=1000))
        with suppress(ValueError):  # no text has a word: then there is no such classifier
            model.fit(_texts(train), train["label"])
            points["bag_of_words"] = float(model.score(_texts(validation), validation["label"]))
    return points


def similarity(examples: Examples) -> dict[str, float]:
    """Spearman's correlation on validation of the cosines of TF-IDF vectors, fitted to train's texts."""
    validation = examples.validation
    vectors = TfidfVectorizer(token_pattern=r"\b\w+\b")
    with suppress(ValueError):  # no text has a word
        vectors.fit(_texts(examples.train))
        one, other = (vectors.transform(validation[side]) for side in ("text", "pair"))
        cosines = np.asarray(one.multiply(other).sum(axis=1)).ravel()
        score = correlation("spearman", validation["score"].to_numpy(), cosines)
        return {"bag_of_words": score(np.arange(len(validation)))}
    return {}


def _texts(frame: pd.DataFrame) -> pd.Series:
    return frame["text"] + " " + frame["pair"] if "pair" in frame else frame["text"]

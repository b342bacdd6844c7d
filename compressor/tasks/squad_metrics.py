"""Exact match and F1 of SQuAD, from the published definition (Rajpurkar et al. 2016 and 2018).

Texts are compared without case, ASCII punctuation, English articles and surplus white space. F1 is that of
the bags of words. The best of a question's answers counts. A question without an answer is right when nothing
is predicted, else wrong.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """What is left of an answer for the comparison."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of a prediction, each against the answer that suits it best; no answers: ("")."""
    predicted = normalized(prediction)
    expected = [text for text in map(normalized, answers) if text] or [""]
    return float(predicted in expected), max(_f1(predicted, text) for text in expected)


def _f1(predicted: str, expected: str) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    words, answer = predicted.split(), expected.split()
    common = sum((Counter(words) & Counter(answer)).values())
    return 2 * common / (len(words) + len(answer))

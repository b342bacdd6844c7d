"""Between characters of a context and tokens of a window over it, in both directions.

A window's `starts` and `ends` hold the first character of each token's text and the one after its last,
counted in the context; -1 at tokens that are not of the context.
"""

from collections.abc import Sequence

import numpy as np

N_BEST = 20  # starts, and ends, that are combined
MAX_ANSWER_LENGTH = 30  # tokens


def token_span(starts: np.ndarray, ends: np.ndarray, first: int, last: int) -> tuple[int, int] | None:
    """The tokens (both inclusive) that cover characters [first, last), None where the window lacks some."""
    inside = np.flatnonzero((starts >= 0) & (starts < last) & (ends > first))
    context = np.flatnonzero(starts >= 0)
    if not len(inside) or starts[context[0]] > first or ends[context[-1]] < last:
        return None
    return int(inside[0]), int(inside[-1])


def best_span(start_logits: np.ndarray, end_logits: np.ndarray, starts: np.ndarray) -> tuple[float, int, int]:
    """(score, first token, last token) of the best answer in a window's context.

    The score is the sum of both logits, over the N_BEST starts and ends, for answers of up to
    MAX_ANSWER_LENGTH tokens; minus infinity where no combination is an answer.
    """
    context = np.flatnonzero(starts >= 0)
    if not len(context):
        return -np.inf, 0, 0
    first = context[_largest(start_logits[context])][:, None]
    last = context[_largest(end_logits[context])][None, :]
    allowed = (last >= first) & (last - first < MAX_ANSWER_LENGTH)
    scores = np.where(allowed, start_logits[first] + end_logits[last], -np.inf)
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[row, column]), int(first[row, 0]), int(last[0, column])


def context_offsets(
    offsets: Sequence[tuple[int, int]], sequence_ids: Sequence[int | None]
) -> tuple[np.ndarray, np.ndarray]:
    """`starts` and `ends` of a window whose second sequence is the context."""
    pairs = np.array(offsets, dtype=np.int32)
    of_context = np.array([number == 1 for number in sequence_ids])
    pairs[~of_context] = -1
    return pairs[:, 0], pairs[:, 1]


def _largest(logits: np.ndarray) -> np.ndarray:
    return np.argsort(-logits, kind="stable")[:N_BEST]

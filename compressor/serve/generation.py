"""Text from a model that makes it token by token: the loop around its graphs, greedy or with beams.

Needs onnxruntime and numpy, nothing else: what serves an artifact is also what scores it and what is timed.

The names of inputs and outputs say how the graphs fit together: what the encoder makes, the decoder reads under the
same name; `present.*` becomes `past.*` of the next step; `positions` counts the tokens so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime

State = dict[str, Any]
"""What a step leaves to the next one; the first axis of every array is the batch."""
PAST, PRESENT = "past.", "present."
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Steps(Protocol):
    """A model that makes tokens one after the other, whatever runs it."""

    def start(self, inputs: Mapping[str, Any]) -> State:
        """Read the text: `input_ids` and `attention_mask`, (batch, length)."""

    def step(self, ids: np.ndarray, position: int, state: State) -> tuple[np.ndarray, State]:
        """Read the last tokens (batch, n), the first of them at `position`; logits (batch, words) of the next."""


class Generator:
    """The graphs of an exported model on onnxruntime: a decoder, and an encoder where there is one."""

    def __init__(self, sessions: Mapping[str, onnxruntime.InferenceSession], decoder: str) -> None:
        """`sessions` by the names of their files; `decoder` is the file whose graph makes tokens."""
        self.decoder = sessions[decoder]
        self.encoder = next((session for name, session in sessions.items() if name != decoder), None)
        self.inputs = {node.name: node for node in self.decoder.get_inputs()}
        self.outputs = [node.name for node in self.decoder.get_outputs()]

    @property
    def reader(self) -> onnxruntime.InferenceSession:
        """The session that reads the text."""
        return self.encoder or self.decoder

    def start(self, inputs: Mapping[str, Any]) -> State:
        """What the encoder makes of the text, and a past without tokens."""
        state: State = {name: inputs[name] for name in self.inputs if name in inputs and name != "input_ids"}
        if self.encoder is not None:
            feed = {node.name: np.asarray(inputs[node.name]) for node in self.encoder.get_inputs()}
            names = [node.name for node in self.encoder.get_outputs()]
            state |= dict(zip(names, self.encoder.run(None, feed), strict=True))
        batch = len(inputs["input_ids"])
        for name, node in self.inputs.items():
            if name.startswith(PAST):
                _, heads, _, size = node.shape
                state[name] = np.zeros((batch, heads, 0, size), FLOATS[node.type])
        return state

    def step(self, ids: np.ndarray, position: int, state: State) -> tuple[np.ndarray, State]:
        """One run of the decoder."""
        logits, state = self.read(ids, position, state)
        return logits[:, -1], state

    def read(self, ids: np.ndarray, position: int, state: State) -> tuple[np.ndarray, State]:
        """The same, with the logits after every token, (batch, n, words)."""
        places = np.arange(position, position + ids.shape[1], dtype=np.int64)
        every = state | {"input_ids": ids, "positions": places}
        feed = {name: np.asarray(every[name]) for name in self.inputs}
        made = dict(zip(self.outputs, self.decoder.run(None, feed), strict=True))
        past = {
            PAST + name.removeprefix(PRESENT): value
            for name, value in made.items()
            if name.startswith(PRESENT)
        }
        return made["logits"], state | past

    def run_fixed(self, inputs: Mapping[str, Any], tokens: int) -> np.ndarray:
        """Greedy, exactly so many tokens whatever they are, (batch, tokens): the same work for every model."""
        state = self.start(inputs)
        ids = np.zeros((len(inputs["input_ids"]), 1), np.int64)
        made = []
        for position in range(tokens):
            logits, state = self.step(ids, position, state)
            ids = logits.argmax(axis=1)[:, None].astype(np.int64)
            made.append(ids)
        return np.concatenate(made, axis=1)


@dataclass(frozen=True)
class Settings:
    """How text is made. Lengths are in tokens that are made, the end's included.

    `first` is read before anything is made, `forced` the token that then must come first, if any.
    """

    first: int
    end: int
    pad: int
    max_tokens: int
    min_tokens: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    forced: int | None = None


def generate(model: Steps, inputs: Mapping[str, Any], settings: Settings) -> np.ndarray:
    """The tokens of every text of a batch, padded behind their end: (batch, tokens)."""
    rows = greedy(model, inputs, settings) if settings.beams == 1 else beam_search(model, inputs, settings)
    longest = max(map(len, rows))
    return np.array([[*row, *[settings.pad] * (longest - len(row))] for row in rows], dtype=np.int64)


def greedy(model: Steps, inputs: Mapping[str, Any], settings: Settings) -> list[list[int]]:
    """The likeliest token each time; texts that ended leave the batch."""
    state = model.start(inputs)
    rows: list[list[int]] = [[] for _ in inputs["input_ids"]]
    going = list(range(len(rows)))
    ids = np.full((len(rows), 1), settings.first, np.int64)
    for position in range(settings.max_tokens):
        logits, state = model.step(ids, position, state)
        scores = allowed(logits, [rows[row] for row in going], settings)
        chosen = scores.argmax(axis=1)
        for row, token in zip(going, chosen, strict=True):
            rows[row].append(int(token))
        left = np.flatnonzero(chosen != settings.end)
        if not len(left):
            break
        going = [going[at] for at in left]
        ids = chosen[left, None].astype(np.int64)
        if len(left) < len(chosen):
            state = _select(state, left)
    return rows


def beam_search(model: Steps, inputs: Mapping[str, Any], settings: Settings) -> list[list[int]]:
    """The best of several candidates a text, by the sum of their tokens' log-probabilities over length ** penalty.

    A text is done when as many candidates have ended as there are beams, or at the longest (Wu et al. 2016, section
    7, without coverage).
    """
    count, beams = len(inputs["input_ids"]), settings.beams
    state = _select(model.start(inputs), np.repeat(np.arange(count), beams))
    rows: list[list[int]] = [[] for _ in range(count * beams)]
    totals = np.tile(
        np.array([0.0] + [-np.inf] * (beams - 1)), (count, 1)
    )  # all beams of a text are one at first
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
    ids = np.full((count * beams, 1), settings.first, np.int64)
    for position in range(settings.max_tokens):
        logits, state = model.step(ids, position, state)
        scores = allowed(log_softmax(logits), rows, settings)
        longest = position + 1 == settings.max_tokens
        places: list[int] = []
        made: list[list[int]] = []
        for text in range(count):
            own = slice(text * beams, (text + 1) * beams)
            best = _best(totals[text][:, None] + scores[own], 2 * beams)
            candidates = [
                (total, text * beams + beam, [*rows[text * beams + beam], t]) for total, beam, t in best
            ]
            stops = [longest or row[-1] == settings.end for _, _, row in candidates]
            if len(ended[text]) < beams:
                every = [
                    (total / len(row) ** settings.length_penalty, row)
                    for (total, _, row), stop in zip(candidates[:beams], stops, strict=False)
                    if stop and np.isfinite(total)
                ]
                ended[text] = sorted(ended[text] + every, key=lambda pair: -pair[0])[:beams]
            goes_on = [one for one in candidates if one[2][-1] != settings.end][:beams]
            totals[text] = [total for total, _, _ in goes_on]
            places += [place for _, place, _ in goes_on]
            made += [row for _, _, row in goes_on]
        if longest or all(len(found) == beams for found in ended):
            break
        rows, state = made, _select(state, np.array(places))
        ids = np.array([row[-1] for row in rows], dtype=np.int64)[:, None]
    return [found[0][1] for found in ended]


def _best(totals: np.ndarray, count: int) -> list[tuple[float, int, int]]:
    """The highest of `totals` (beams, words): value, beam and word, falling."""
    places = np.argsort(-totals, axis=None, kind="stable")[:count]
    found = zip(*np.unravel_index(places, totals.shape), strict=True)
    return [(float(totals[beam, word]), int(beam), int(word)) for beam, word in found]


def allowed(scores: np.ndarray, rows: Sequence[list[int]], settings: Settings) -> np.ndarray:
    """Scores (batch, words) of the next token, minus infinity where the settings rule a token out."""
    scores = scores.astype(np.float64)
    made = len(rows[0])
    if settings.forced is not None and made == 0:
        others = np.arange(scores.shape[1]) != settings.forced
        scores[:, others], scores[:, settings.forced] = -np.inf, 0.0
        return scores
    if made < settings.min_tokens:
        scores[:, settings.end] = -np.inf
    if settings.no_repeat_ngram:
        for row, tokens in enumerate(rows):
            scores[row, repeating([settings.first, *tokens], settings.no_repeat_ngram)] = -np.inf
    return scores


def repeating(tokens: Sequence[int], length: int) -> list[int]:
    """The tokens that would make an n-gram of that length a second time."""
    last = tuple(tokens[len(tokens) - length + 1 :])
    grams = range(len(tokens) - length + 1)
    return [tokens[at + length - 1] for at in grams if tuple(tokens[at : at + length - 1]) == last]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _select(state: State, rows: np.ndarray) -> State:
    return {name: value[rows] for name, value in state.items()}

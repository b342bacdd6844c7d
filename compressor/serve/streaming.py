"""A text read piece by piece by an exported language model: scored, or continued.

Needs numpy and a session of onnxruntime, nothing else. A graph gives what it remembers as `NAME_out`, which is its
input NAME when it reads the next piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

State = dict[str, np.ndarray]
"""What is remembered, by name of the graph's input: (.., batch, tokens, width)."""
Choose = Callable[[np.ndarray], int]
"""Of logits (vocabulary,) the number of the next token."""


class Reader:
    """A graph that reads texts piece by piece."""

    def __init__(self, session: Any, state: Mapping[str, Mapping[str, Any]]) -> None:
        """`state`: by name of an input how it begins, as the manifest has it; those of other graphs are ignored."""
        self.session = session
        self.nodes = {node.name: node for node in session.get_inputs()}
        self.names = [node.name for node in session.get_outputs()]
        self.state = {name: about for name, about in state.items() if name in self.nodes}

    @property
    def limit(self) -> int | None:
        """How many tokens can be remembered, where more are an error; `None` where older ones are forgotten."""
        limits = [about["limit"] for about in self.state.values()]
        return limits[0] if limits else None

    def begin(self, batch: int = 1) -> State:
        """What is remembered before a text."""
        return {name: beginning(about, self.nodes[name].shape, batch) for name, about in self.state.items()}

    def read(self, inputs: Mapping[str, Any], state: State) -> tuple[dict[str, np.ndarray], State]:
        """The graph's outputs for a piece of text, and what is remembered after it."""
        feed = {name: np.asarray(value) for name, value in {**inputs, **state}.items() if name in self.nodes}
        found = dict(zip(self.names, self.session.run(None, feed), strict=True))
        return found, {name: found.pop(f"{name}_out") for name in self.state}


def beginning(about: Mapping[str, Any], shape: Sequence[Any], batch: int) -> np.ndarray:
    """A tensor of the state before a text: `length` tokens of `value`, a number or a list that is spread out."""
    value = np.asarray(about["value"], dtype=np.float32)
    return np.broadcast_to(value, (shape[0], batch, about["length"], shape[-1])).copy()


def score(reader: Reader, tokens: Sequence[int], length: int) -> np.ndarray:
    """-log p in nats of every token but the first, read in pieces of `length`, (tokens - 1,)."""
    stream = np.asarray(tokens, dtype=np.int64)[None]
    state, losses = reader.begin(), []
    for at in range(0, stream.shape[1] - 1, length):
        labels = stream[:, at + 1 : at + 1 + length]
        piece = {"input_ids": stream[:, at : at + labels.shape[1]], "labels": labels}
        found, state = reader.read(piece, state)
        losses.append(found["losses"][0])
    return np.concatenate(losses) if losses else np.zeros(0)


def extend(
    reader: Reader, tokens: Sequence[int], count: int, length: int, choose: Choose, end: int | None = None
) -> list[int]:
    """At most `count` further tokens of a text that begins with `tokens`; none after `end`.

    A text is read in pieces of `length`; a graph that remembers nothing reads the last `length` tokens every time.
    One whose positions end begins again, from the last half, after `length` tokens: it was trained no further.
    """
    text, made = list(tokens), 0
    longest = None if reader.limit is None else min(reader.limit, length)
    state, logits = _read(reader, text, length)
    remembered = len(text)
    while made < count:
        text.append(choose(logits))
        made += 1
        if text[-1] == end or made == count:
            break
        if not reader.state or (longest and remembered + 1 > longest):
            kept = max(1, longest // 2) if longest else length
            state, logits = _read(reader, text[-kept:], length)
            remembered = min(kept, len(text))
        else:
            found, state = reader.read({"input_ids": np.array([text[-1:]], dtype=np.int64)}, state)
            logits, remembered = found["logits"][0, -1], remembered + 1
    return text[len(tokens) :]


def _read(reader: Reader, tokens: Sequence[int], length: int) -> tuple[State, np.ndarray]:
    """What is remembered after a text, and the logits of the token that follows."""
    state = reader.begin()
    most = len(tokens) if reader.limit is None else min(reader.limit, length)
    pieces = np.asarray(tokens[-most:] if reader.state else tokens[-length:], dtype=np.int64)[None]
    for at in range(0, pieces.shape[1], length):
        found, state = reader.read({"input_ids": pieces[:, at : at + length]}, state)
    return state, found["logits"][0, -1]


def chooser(temperature: float, seed: int) -> Choose:
    """The likeliest token (temperature 0), or one drawn with probabilities softened by the temperature.

    Raises:
        ValueError: the temperature is below 0.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature}: 0 takes the likeliest token, more than 0 draws one")
    dice = np.random.default_rng(seed)

    def choose(logits: np.ndarray) -> int:
        if not temperature:
            return int(logits.argmax())
        powers = np.exp((logits - logits.max()).astype(float) / temperature)
        return int(dice.choice(len(logits), p=powers / powers.sum()))

    return choose

"""Predictions from this artifact, with its own pre- and post-processing.

Needs onnxruntime, tokenizers and numpy, nothing else.

    echo '{"text": "a fine film"}' | python serve/client.py        # a JSON object a line in, one a line out

or in Python:

    from client import Model
    model = Model("path/to/artifact")
    model([{"text": "a fine film"}])          # text-classification; {"text": ..., "pair": ...} for pairs
    model([{"tokens": ["Ada", "Lovelace"]}])  # token-classification
    model([{"question": "Who?", "context": "Ada wrote it."}])      # question-answering
    model([{"text": "a fine film"}])          # feature-extraction; {"text": ..., "pair": ...} to compare two
    model([{"text": "a fine film"}])          # language-modeling; {"text": ..., "tokens": 20} to continue it
    model([{"text": "a long text"}])          # summarization
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

Row = dict[str, Any]
Outputs = list[dict[str, np.ndarray]]
"""Of every encoding, its outputs by name; those that have a row a token without those of padding."""


class Model:
    """An artifact, loaded. Call it with rows; it gives a prediction a row, in order."""

    def __init__(
        self, artifact: str | Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        """`threads`: of one inference; 0 lets onnxruntime choose.

        Raises:
            ValueError: the artifact is of a task this client does not know.
        """
        folder = Path(artifact)
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.task = self.manifest["task"]
        if self.task not in TASKS:
            raise ValueError(f"this client knows {', '.join(TASKS)}, not {self.task}")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {
            name: onnxruntime.InferenceSession(str(folder / name), options, providers=list(providers))
            for name in self.manifest.get("graphs", ["model.onnx"])
        }
        self.session = next(iter(self.sessions.values()))
        if "generation" in self.manifest:
            self.writer, self.session = writer_of(self)
        self.inputs = [node.name for node in self.session.get_inputs()]
        # A length that varies has a name in the graph, a number of labels is a number.
        self.outputs: dict[str, bool] = {
            node.name: isinstance(node.shape[1], str) if len(node.shape) > 1 else False
            for node in self.session.get_outputs()
        }

    def __call__(self, rows: Iterable[Row], batch_size: int = 1) -> list[Row]:
        """Predictions of rows; a batch is padded to its longest text.

        Raises:
            KeyError: a row lacks what the task reads.
        """
        return TASKS[self.task](self, list(rows), batch_size)

    def encode(self, texts: Sequence[Any], **keys: Any) -> list[Encoding]:
        """Tokenize; `strategy`, `stride` and `is_pretokenized` are the tokenizer's."""
        pretokenized = keys.pop("is_pretokenized", False)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(
            self.manifest["max_length"], direction=self.manifest["tokenizer"]["truncation_side"], **keys
        )
        encoded: list[Encoding] = self.tokenizer.encode_batch(list(texts), is_pretokenized=pretokenized)
        return encoded

    def run(self, encodings: Sequence[Encoding], batch_size: int) -> Outputs:
        """Outputs of every encoding."""
        found: Outputs = []
        for start in range(0, len(encodings), batch_size):
            batch = encodings[start : start + batch_size]
            feed = self.pad(batch)
            arrays = dict(zip(self.outputs, self.session.run(None, feed), strict=True))
            for row, mask in enumerate(self.mask(batch) == 1):
                found.append(
                    {
                        name: arrays[name][row][mask] if per_token else arrays[name][row]
                        for name, per_token in self.outputs.items()
                    }
                )
        return found

    def pad(self, batch: Sequence[Encoding]) -> dict[str, np.ndarray]:
        """Model inputs (batch, longest), int64, padded on the side the model was trained with."""
        about = self.manifest["tokenizer"]
        columns = {
            "input_ids": ([e.ids for e in batch], about["pad_token_id"]),
            "attention_mask": ([e.attention_mask for e in batch], 0),
            "token_type_ids": ([e.type_ids for e in batch], about["pad_token_type_id"]),
        }
        return {name: self.join(*columns[name]) for name in self.inputs}

    def mask(self, batch: Sequence[Encoding]) -> np.ndarray:
        """1 at real tokens, (batch, longest)."""
        return self.join([e.attention_mask for e in batch], 0)

    def join(self, rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
        """Rows of different lengths as one array."""
        longest = max(len(row) for row in rows)
        left = self.manifest["padding_side"] == "left"
        filled = [[filler] * (longest - len(row)) for row in rows]
        joined = [[*f, *row] if left else [*row, *f] for f, row in zip(filled, rows, strict=True)]
        return np.array(joined, dtype=np.int64)


def classify(model: Model, rows: list[Row], batch_size: int) -> list[Row]:
    """`label` and `scores` (a probability a label), or the `score` of a regression."""
    texts = [(row["text"], row["pair"]) if "pair" in row else row["text"] for row in rows]
    labels = model.manifest["labels"]
    logits = [out["logits"] for out in model.run(model.encode(texts), batch_size)]
    if not labels:
        return [{"score": float(row[0])} for row in logits]
    return [
        {
            "label": labels[int(row.argmax())],
            "scores": dict(zip(labels, map(float, softmax(row)), strict=True)),
        }
        for row in logits
    ]


def tag(model: Model, rows: list[Row], batch_size: int) -> list[Row]:
    """`labels`: one for every word of `tokens`, that of its first token."""
    labels = model.manifest["labels"]
    missing = model.manifest["post_processing"]["missing_word_label"]
    encodings = model.encode([row["tokens"] for row in rows], is_pretokenized=True)
    found = []
    for row, encoding, out in zip(rows, encodings, model.run(encodings, batch_size), strict=True):
        names = [missing] * len(row["tokens"])  # of words that were cut off
        before = None
        for word, logits in zip(encoding.word_ids, out["logits"], strict=True):
            if word is not None and word != before:
                names[word] = labels[int(logits.argmax())]
            before = word
        found.append({"labels": names})
    return found


def answer(model: Model, rows: list[Row], batch_size: int) -> list[Row]:
    """`answer`, the text of the best span ("" for none, where the model may say so), and its `score`."""
    keys = model.manifest["post_processing"]
    pairs = [(short_question(model, row["question"]), row["context"]) for row in rows]
    windows: list[Encoding] = []
    owners: list[int] = []
    for number, first in enumerate(model.encode(pairs, strategy="only_second", stride=keys["stride"])):
        windows += [first, *first.overflowing]
        owners += [number] * (1 + len(first.overflowing))
    best = [(-np.inf, "")] * len(rows)
    null = [np.inf] * len(rows)
    for owner, window, out in zip(owners, windows, model.run(windows, batch_size), strict=True):
        start, end = out["start_logits"], out["end_logits"]
        ids, cls = window.ids, model.manifest["tokenizer"]["cls_token_id"]
        at = ids.index(cls) if cls in ids else 0
        null[owner] = min(null[owner], float(start[at] + end[at]))
        score, first_token, last_token = best_span(start, end, window, keys)
        if score > best[owner][0]:
            text = rows[owner]["context"][window.offsets[first_token][0] : window.offsets[last_token][1]]
            best[owner] = (score, text.strip())
    none = [keys["null_answer"] and nothing > score for nothing, (score, _) in zip(null, best, strict=True)]
    return [
        {"answer": "" if empty else text, "score": float(nothing if empty else score)}
        for empty, nothing, (score, text) in zip(none, null, best, strict=True)
    ]


def embed(model: Model, rows: list[Row], batch_size: int) -> list[Row]:
    """`embedding` of the text; with a `pair` also its `pair_embedding`, and the cosine of both as `similarity`."""
    sides = [(row, side) for row in rows for side in ("text", "pair") if side in row or side == "text"]
    vectors = model.run(model.encode([row[side] for row, side in sides]), batch_size)
    found: list[Row] = []
    for (_, side), out in zip(sides, vectors, strict=True):
        vector = out["sentence_embedding"]
        if side == "text":
            found.append({"embedding": vector.tolist()})
        else:
            found[-1] |= {
                "pair_embedding": vector.tolist(),
                "similarity": cosine(found[-1]["embedding"], vector),
            }
    return found


@cache
def beside(name: str) -> Any:
    """The module in the file of that name beside this one, wherever it is run from."""
    spec = spec_from_file_location(f"compressor_serve_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_text(model: Model, rows: list[Row], batch_size: int) -> list[Row]:
    """Of a text `loss` (nats), `tokens` and `perplexity`; asked for more `tokens`, its `continuation`.

    `temperature` and `seed` draw the latter; without them it is the likeliest token every time.
    """
    streaming = beside("streaming")
    keys, parts = model.manifest["post_processing"], model.manifest["parts"]
    graphs = {part["name"]: model.sessions[part["graph"]] for part in parts}
    scorer, writer = (streaming.Reader(graphs[name], model.manifest["state"]) for name in ("segment", "step"))
    model.tokenizer.no_truncation()
    found: list[Row] = []
    for row in rows:
        ids = model.tokenizer.encode(row["text"], add_special_tokens=False).ids
        stream, length = [keys["start_token_id"], *ids], keys["segment_length"]
        if "tokens" in row:
            if not isinstance(row["tokens"], int) or row["tokens"] < 1:
                raise ValueError(f"`tokens` is how many more to write, 1 or more, not {row['tokens']!r}")
            choose = streaming.chooser(row.get("temperature", 0), row.get("seed", 0))
            more = streaming.extend(writer, stream, row["tokens"], length, choose, keys["end_token_id"])
            text = more[:-1] if more[-1:] == [keys["end_token_id"]] else more
            found.append({"continuation": written(model, text)})
        else:
            loss = float(streaming.score(scorer, stream, length).sum())
            perplexity = float(np.exp(loss / len(ids))) if ids else None
            found.append({"loss": loss, "tokens": len(ids), "perplexity": perplexity})
    return found


def written(model: Model, ids: Sequence[int]) -> str:
    """The text of tokens; a token that ends lines is one's end."""
    text = str(model.tokenizer.decode(list(ids), skip_special_tokens=False))
    line_end = model.manifest["post_processing"]["line_end"]
    return "\n".join(line.strip() for line in text.split(line_end)) if line_end else text


def writer_of(model: Model) -> tuple[Any, onnxruntime.InferenceSession]:
    """What writes tokens for a batch of inputs, and the session that reads those."""
    generation = beside("generation")
    manifest = model.manifest
    decoder = next(part["graph"] for part in manifest["parts"] if part["tokens"])
    generator = generation.Generator(model.sessions, decoder)
    settings = generation.Settings(**manifest["generation"])
    return lambda inputs: generation.generate(generator, inputs, settings), generator.reader


def summarize(model: Model, rows: list[Row], batch_size: int) -> list[Row]:
    """`summary` of the text."""
    encodings = model.encode([model.manifest["post_processing"]["prefix"] + row["text"] for row in rows])
    found: list[Row] = []
    for start in range(0, len(encodings), batch_size):
        for ids in model.writer(model.pad(encodings[start : start + batch_size])):
            text = model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
            found.append({"summary": text.strip()})
    return found


def cosine(one: Any, other: Any) -> float:
    """Of the angle between two vectors; 0 where one has no length."""
    x, y = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / lengths) if lengths else 0.0


def short_question(model: Model, question: str) -> str:
    """The question without leading space, cut where it would leave its context no room."""
    question = question.lstrip()
    model.tokenizer.no_truncation()
    encoding = model.tokenizer.encode(question, add_special_tokens=False)
    room = model.manifest["post_processing"]["question_tokens"]
    return question[: encoding.offsets[room - 1][1]] if len(encoding.ids) > room else question


def best_span(
    start: np.ndarray, end: np.ndarray, window: Encoding, keys: dict[str, Any]
) -> tuple[float, int, int]:
    """(score, first token, last token) of the best answer in a window's context."""
    context = np.flatnonzero([number == 1 for number in window.sequence_ids])
    if not len(context):
        return -np.inf, 0, 0
    first = context[np.argsort(-start[context], kind="stable")[: keys["n_best"]]][:, None]
    last = context[np.argsort(-end[context], kind="stable")[: keys["n_best"]]][None, :]
    allowed = (last >= first) & (last - first < keys["max_answer_length"])
    scores = np.where(allowed, start[first] + end[last], -np.inf)
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[row, column]), int(first[row, 0]), int(last[0, column])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


TASKS = {
    "text-classification": classify,
    "token-classification": tag,
    "question-answering": answer,
    "feature-extraction": embed,
    "language-modeling": read_text,
    "summarization": summarize,
}


def lines(stream: Iterable[str]) -> Iterator[Row]:
    """A row a line that is not empty."""
    for line in stream:
        if line.strip():
            yield json.loads(line)


def main() -> None:
    """Rows from standard input, predictions to standard output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    model = Model(options.artifact, options.threads)
    try:
        for row in model(lines(sys.stdin), options.batch):
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

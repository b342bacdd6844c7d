"""Models of several graphs, and graphs that are run in more than one way."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compressor.benchmark.harness import measure
from compressor.benchmark.inputs import random_inputs
from compressor.benchmark.sessions import open_session
from compressor.cell import DATA, Cell
from compressor.errors import UserError
from compressor.files import sha256
from compressor.parts import WHOLE, Part, content_of, graphs_of, has_graphs, part_of, parts_of, write_parts
from compressor.serve.generation import Generator, Settings, generate
from tests.benchmark.graphs import VOCABULARY, WIDTH, encoder, passes_through, writer

PARTS = [
    Part("generation", "decoder.onnx", tokens=5),
    Part("encoder", "encoder.onnx"),
    Part("first_token", "decoder.onnx", {"length": 1, "past_length": 0}),
    Part("next_token", "decoder.onnx", {"length": 1, "past_length": 3}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    for name, graph in writer().items():
        onnx.save(graph, made / name)
    write_parts(made, PARTS)
    return made


def generator(folder: Path) -> Generator:
    sessions = {name: open_session(folder / name, "cpu", 1) for name in graphs_of(folder)}
    return Generator(sessions, "decoder.onnx")


def test_a_folder_of_one_graph_has_one_part_and_is_known_by_that_graphs_hash(saved) -> None:
    file = saved(encoder(["batch", "sequence"]))
    for model in (file, file.parent):
        assert parts_of(model) == [WHOLE]
        assert content_of(model) == sha256(file)
    assert has_graphs(file.parent)


def test_parts_are_read_as_they_were_written(folder: Path) -> None:
    assert parts_of(folder) == PARTS
    assert graphs_of(folder) == ["decoder.onnx", "encoder.onnx"]
    before = content_of(folder)
    (folder / "encoder.onnx").unlink()
    assert not has_graphs(folder)
    (folder / "encoder.onnx").write_bytes(b"other")
    assert content_of(folder) != before
    with pytest.raises(UserError, match="no part 'next_tokens'; did you mean 'next_token'"):
        part_of(folder, "next_tokens")


def test_every_part_is_timed_and_a_generation_takes_longer_than_its_steps(
    folder: Path, tmp_path: Path
) -> None:
    cells = [Cell("cpu", 1, 2, 8, part.name) for part in PARTS] + [Cell("cpu", 1, 1, DATA, "encoder")]
    found = measure(
        {"one": folder, "two": folder}, cells, reference="one", seconds=0.05, processes=2, lengths=[4, 9]
    )
    rows = {row["part"]: row for row in found.latency["one"][: len(PARTS)]}
    assert list(rows) == [part.name for part in PARTS]
    assert rows["generation"]["p50_ms"] > rows["next_token"]["p50_ms"]
    assert [row["part"] for row in found.speedup["two"]] == [cell.part for cell in cells]
    json.dumps(found.latency)
    with pytest.raises(UserError, match="no part 'forward'"):
        measure({"one": folder}, [Cell("cpu", 1, 1, 8)], reference="one")


def test_sizes_say_how_long_named_dimensions_are(folder: Path) -> None:
    session = open_session(folder / "decoder.onnx", "cpu", 1)
    arrays = random_inputs(session, 3, 7, 0, part=PARTS[3])
    assert {name: array.shape for name, array in arrays.items()} == {
        "input_ids": (3, 1),
        "past.0": (3, 1, 3, WIDTH),
        "cross.0": (3, 1, 7, WIDTH),
    }


def test_a_batch_need_not_come_first_and_lengths_may_be_sums(saved) -> None:
    memory = saved(passes_through("memory", TensorProto.FLOAT, [2, "batch", 4, 8]))
    assert random_inputs(open_session(memory, "cpu", 1), 3, 5, 0)["memory"].shape == (2, 3, 4, 8)
    mask = saved(passes_through("attention_mask", TensorProto.INT64, ["batch", "past_length + length"]))
    sums = Part("step", "mask.onnx", {"past_length": "sequence", "length": 1})
    arrays = random_inputs(open_session(mask, "cpu", 1), 1, 5, 0, part=sums)
    assert arrays["attention_mask"].tolist() == [[1] * 6]


def test_where_numbers_tell_what_is_computed_they_are_as_frequent_as_words(saved) -> None:
    ids = saved(passes_through("labels", TensorProto.INT64, ["batch", "sequence"]))
    part = Part("segment", "scores.onnx", vocabulary=10_000)
    found = random_inputs(open_session(ids, "cpu", 1), 100, 200, 0, part=part)["labels"]
    assert (found.min(), found.max() > 9000, found.max() < 10_000) == (0, True, True)
    assert (found < 100).mean() == pytest.approx(
        0.5, abs=0.02
    )  # half of a text are its hundred commonest words


def next_tokens(folder: Path, ids: np.ndarray, first: int, count: int, end: int) -> list[int]:
    """Greedy by arithmetic: all tokens so far, averaged."""
    tables = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(folder / "decoder.onnx").graph.initializer
    }
    made = [first]
    for _ in range(count):
        mean = tables["words"][made].mean(axis=0) + tables["words"][ids].mean(axis=0)
        made.append(int((mean @ tables["back"]).argmax()))
        if made[-1] == end:
            break
    return made[1:]


def test_greedy_generation_carries_its_past_and_stops_each_text_at_its_end(folder: Path) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (6, 9))
    free = [next_tokens(folder, row, 2, 12, -1) for row in ids]
    end = free[0][4]
    expected = [next_tokens(folder, row, 2, 12, end) for row in ids]
    assert len({len(row) for row in expected}) > 1
    settings = Settings(first=2, end=end, pad=0, max_tokens=12)
    rows = generate(generator(folder), {"input_ids": ids}, settings)
    for row, wanted in zip(rows, expected, strict=True):
        assert row[: len(wanted)].tolist() == wanted
        assert not row[len(wanted) :].any()


def test_a_fixed_number_of_tokens_is_made_whatever_they_are(folder: Path) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 9))
    made = generator(folder).run_fixed({"input_ids": ids}, 6)
    assert made.tolist() == [next_tokens(folder, row, 0, 6, -1) for row in ids]


def test_beams_find_what_is_likelier_than_the_greedy_choice(folder: Path) -> None:
    """Three tokens with as many beams as words squared: the search is exhaustive."""
    ids = np.random.default_rng(3).integers(0, VOCABULARY, (2, 5))
    settings = Settings(first=2, end=VOCABULARY + 1, pad=0, max_tokens=2, beams=VOCABULARY)
    rows = generate(generator(folder), {"input_ids": ids}, settings)
    tables = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(folder / "decoder.onnx").graph.initializer
    }

    def scores(row: np.ndarray, made: list[int]) -> np.ndarray:
        mean = tables["words"][made].mean(axis=0) + tables["words"][row].mean(axis=0)
        logits = (mean @ tables["back"]).astype(float)
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    for row, found in zip(ids, rows, strict=True):
        first = scores(row, [2])
        total = np.stack([first[one] + scores(row, [2, one]) for one in range(VOCABULARY)])
        assert tuple(found) == np.unravel_index(total.argmax(), total.shape)

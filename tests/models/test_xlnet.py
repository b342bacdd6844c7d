"""XLNet's attention made of linear maps computes, learns and stores what transformers' does."""

import copy
from pathlib import Path

import pytest
import torch
import transformers

from compressor.benchmark.inputs import random_inputs
from compressor.benchmark.sessions import open_session
from compressor.models.architecture import prepared
from compressor.models.xlnet import XLNetAttention
from compressor.onnx.export import export_onnx
from tests.zoo import HEAD_CLASSES, VOCABULARY, logits, padded_batch, tiny_config, tiny_model


def pair(task: str = "text-classification", **extra: object) -> tuple[transformers.PreTrainedModel, ...]:
    """transformers' own model and the one made of it."""
    torch.manual_seed(0)
    theirs = getattr(transformers, HEAD_CLASSES[task]).from_config(tiny_config("xlnet", **extra)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return theirs, prepared(copy.deepcopy(theirs))


@pytest.mark.parametrize("task", [task for task in HEAD_CLASSES if task != "feature-extraction"])
@pytest.mark.parametrize("segments", [True, False])
def test_it_computes_the_same(task: str, segments: bool) -> None:
    theirs, ours = pair(task)
    inputs = padded_batch("xlnet")
    if not segments:
        del inputs["token_type_ids"]
    torch.testing.assert_close(logits(ours, inputs), logits(theirs, inputs), atol=1e-6, rtol=0)
    assert sum(isinstance(module, XLNetAttention) for module in ours.modules()) == 3


def test_it_learns_the_same() -> None:
    theirs, ours = pair(dropout=0.0, summary_last_dropout=0.0)
    before = copy.deepcopy(theirs.state_dict())
    inputs = padded_batch("xlnet") | {"labels": torch.tensor([0, 1, 0])}
    found = []
    for model in (theirs, ours):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        model(**inputs).loss.backward()
        optimizer.step()
        found.append(model.state_dict())
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, atol=1e-6, rtol=0)
    moved = {name for name, values in found[1].items() if not torch.equal(values, before[name])}
    assert moved == set(before) - {"transformer.mask_emb"}  # only pretraining reads that one


def test_it_stores_the_same_and_loads_it() -> None:
    theirs, ours = pair()
    stored = theirs.state_dict()
    assert set(ours.state_dict()) == set(stored)
    assert all(torch.equal(values, stored[name]) for name, values in ours.state_dict().items())
    other = tiny_model("xlnet", seed=5)
    found = other.load_state_dict(stored, strict=True)
    assert not [*found.missing_keys, *found.unexpected_keys]
    inputs = padded_batch("xlnet")
    assert torch.equal(logits(other, inputs), logits(ours, inputs))


def test_padding_on_the_left_changes_nothing() -> None:
    model, inputs = tiny_model("xlnet"), padded_batch("xlnet")
    longer = {name: torch.nn.functional.pad(values, (5, 0)) for name, values in inputs.items()}
    torch.testing.assert_close(logits(model, longer), logits(model, inputs), atol=1e-6, rtol=0)
    right = {name: torch.nn.functional.pad(values, (0, 5)) for name, values in inputs.items()}
    assert (
        logits(model, right) - logits(model, inputs)
    ).abs().max() > 1e-3  # the last token would be padding


def test_ids_made_up_for_timing_fill_its_vocabulary(tmp_path: Path) -> None:
    export_onnx(tiny_model("xlnet"), "text-classification", 18, tmp_path / "model.onnx")
    inputs = random_inputs(open_session(tmp_path / "model.onnx", "cpu", 1), 2, 32, seed=0)
    assert VOCABULARY / 2 < inputs["input_ids"].max() < VOCABULARY


def test_it_gives_no_memories() -> None:
    model = tiny_model("xlnet")
    assert list(model(**padded_batch("xlnet"))) == ["logits"]
    assert list(pair()[0](**padded_batch("xlnet"))) == ["logits", "mems"]

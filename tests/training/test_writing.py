"""Distilling models that write: the same tokens read by both, padding left out, a mean over tokens."""

import torch

from compressor.training.distillation import IGNORED, distillation_loss, divergence, teacher_forced
from tests.zoo import VOCABULARY, padded_batch, tiny_model


def batch() -> dict[str, torch.Tensor]:
    inputs = padded_batch("bart", batch=2)
    del inputs["decoder_input_ids"]
    torch.manual_seed(1)
    labels = torch.randint(3, VOCABULARY, (2, 6))
    labels[1, 3:] = IGNORED
    return inputs | {"labels": labels}


def test_the_teacher_reads_the_reference_and_not_the_text() -> None:
    teacher, inputs = tiny_model("bart", seed=1), batch()
    kept = {name: values.clone() for name, values in inputs.items()}
    logits = teacher_forced(teacher, inputs)["logits"]
    assert logits.shape == (2, 6, VOCABULARY)
    assert all(torch.equal(inputs[name], values) for name, values in kept.items())
    shifted = torch.cat([torch.full((2, 1), 2), inputs["labels"][:, :-1]], dim=1)
    shifted = shifted.masked_fill(shifted == IGNORED, 1)
    ids = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with torch.no_grad():
        torch.testing.assert_close(logits, teacher(**ids, decoder_input_ids=shifted).logits)


def test_the_loss_is_a_mean_over_tokens_without_padding() -> None:
    """By hand, token by token: nine of twelve places hold one."""
    teacher, student, inputs = tiny_model("bart", seed=1), tiny_model("bart"), batch()
    theirs, ours = teacher_forced(teacher, inputs), student(**inputs)
    mask = inputs["labels"] != IGNORED
    loss = distillation_loss(ours, theirs, mask, temperature=2.0)
    places = [(0, at) for at in range(6)] + [(1, at) for at in range(3)]
    each = [divergence(ours.logits[p][None], theirs["logits"][p][None], 2.0) for p in places]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    changed = {"logits": theirs["logits"].clone()}
    changed["logits"][1, 3:] += 5 * torch.randn(3, VOCABULARY)
    torch.testing.assert_close(distillation_loss(ours, changed, mask, 2.0), loss)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    model, inputs = tiny_model("bart"), batch()
    theirs, ours = teacher_forced(model, inputs), model(**inputs)
    loss = distillation_loss(ours, theirs, inputs["labels"] != IGNORED, temperature=2.0)
    assert abs(loss.item()) < 1e-6

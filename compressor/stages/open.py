"""`model`: the recipe's model as a folder of the run, with the task's head; every chain begins with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.models.source import HubModel, ModelSource, NewModel, TrainTokenizer, describe, folder_of
from compressor.schema import Progress
from compressor.stages.base import Data, Stage, Work, open_tokenizer
from compressor.stages.vocabulary import train_vocabulary

if TYPE_CHECKING:
    import pandas as pd

    from compressor.tasks.base import Task

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MOST_LETTERS = 1000
"""Rarer ones become [UNK]."""


class OpenModel(Stage):
    """Opens a hub model, a folder, or makes a new model and tokenizer; not written in recipes."""

    verb: ClassVar[str] = "model"
    version: ClassVar[int] = 3

    def run(self, work: Work) -> dict[str, Any]:
        """Write the model folder, its tokenizer as the task and the model need it."""
        from transformers import set_seed

        from compressor.models import checkpoint
        from compressor.models.all_attention.vocabulary import check_sorted
        from compressor.models.architecture import ARCHITECTURES

        work.progress("open model", 0.0)
        set_seed(work.seed)
        tokenizer = make_tokenizer(work)
        config = work.data.task.model_config()
        source = work.model
        if isinstance(source, NewModel):
            decoder = ARCHITECTURES[source.config["model_type"]].decoder
            special = ("pad", "bos", "eos") if decoder else ("pad",)
            ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in special}
            sizes = {"vocab_size": len(tokenizer)} | ids | _ends(source, tokenizer)
            if source.config.get("cutoffs"):  # a small text has fewer words than were asked for
                sizes["cutoffs"] = [cut for cut in source.config["cutoffs"] if cut < len(tokenizer)]
            source = source.model_copy(update={"config": source.config | sizes})
            if source.config.get("cutoffs") and not isinstance(source.tokenizer, TrainTokenizer):
                check_sorted(_counts(work, tokenizer), source.config["cutoffs"])
        model, _ = checkpoint.open_source(source, work.data.kind.auto_class, config)
        checkpoint.save(model, work.folder, tokenizer)
        open_tokenizer(work.folder, work.data.kind).save_pretrained(work.folder)  # as its model needs it
        return {"name": describe(work.model), "parameters": model.num_parameters()}


def _counts(work: Work, tokenizer: Any) -> list[int]:
    """How often each id occurs in the training text."""
    import numpy as np

    counts = np.zeros(len(tokenizer), dtype=int)
    for row in work.data.task.features(work.data.task.examples.train, tokenizer):
        counts += np.bincount(row["input_ids"], minlength=len(counts))
    found: list[int] = counts.tolist()
    return found


def _ends(source: NewModel, tokenizer: Any) -> dict[str, Any]:
    """Of a model that writes: the tokens by which a text begins and ends."""
    from compressor.models.architecture import ARCHITECTURES

    if not ARCHITECTURES[source.config["model_type"]].writes_text:
        return {}
    begin, end = tokenizer.cls_token_id, tokenizer.eos_token_id
    end = tokenizer.sep_token_id if end is None else end
    return {
        "bos_token_id": begin,
        "eos_token_id": end,
        "decoder_start_token_id": end,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
    }


def make_tokenizer(work: Work) -> Any:
    """The model's own tokenizer, or one trained on the task's training text."""
    from compressor.models.architecture import ARCHITECTURES

    source = work.model
    if isinstance(source, NewModel) and isinstance(source.tokenizer, TrainTokenizer):
        if source.tokenizer.train != "wordpiece":
            return train_vocabulary(source.tokenizer, list(_texts(work.data.task.examples.train)))
        made = _train_wordpiece(source.tokenizer, work)
        return _with_cls_last(made) if ARCHITECTURES[source.config["model_type"]].cls == -1 else made
    return tokenizer_of(work.model, work.data.kind)


def tokenizer_of(source: ModelSource, kind: type[Task]) -> Any:
    """The tokenizer that comes with a model, loaded as the task needs it; `None` where it is to be trained.

    Raises:
        UserError: it cannot be had.
    """
    from transformers import AutoTokenizer

    from compressor.models.refusals import hub_errors

    wanted = source.tokenizer if isinstance(source, NewModel) else source
    if isinstance(wanted, TrainTokenizer):
        return None
    folder = folder_of(wanted)
    revision = wanted.revision if isinstance(wanted, HubModel) else None
    with hub_errors(wanted, "tokenizer"):
        return AutoTokenizer.from_pretrained(
            folder or describe(wanted), revision=revision, trust_remote_code=False, **kind.tokenizer_arguments
        )


def beside_own_model(data: Data, split: str, progress: Progress) -> pd.DataFrame:
    """The examples of a split beside what the recipe's model, as it came, answers to them."""
    from compressor.models import checkpoint
    from compressor.models.architecture import architecture_of
    from compressor.models.outputs import collect_outputs, torch_runner

    task, source = data.task, data.model
    assert source is not None
    model, _ = checkpoint.open_source(source, data.kind.auto_class, task.model_config())
    tokenizer = tokenizer_of(source, data.kind)
    tokenizer.model_input_names = list(architecture_of(model.config).inputs)
    tokenizer.padding_side = "right"
    frame = getattr(task.examples, split)
    features, collate = task.features(frame, tokenizer), task.collate(tokenizer)
    outputs = collect_outputs(
        torch_runner(model),
        features,
        collate,
        task.output_names,
        progress,
        title=f"{split} by the dense model",
    )
    return task.beside(frame, outputs, features)


def _train_wordpiece(keys: TrainTokenizer, work: Work) -> Any:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trainer = BertWordPieceTokenizer(lowercase=keys.lowercase)
    texts = list(_texts(work.data.task.examples.train))
    first, inner = _letters(trainer, texts)
    trainer.train_from_iterator(
        texts,
        vocab_size=keys.vocab_size,
        initial_alphabet=first,
        limit_alphabet=len(first),
        special_tokens=[*SPECIAL, *inner],
        show_progress=False,
    )
    vocabulary = Path(work.scratch) / "vocab.txt"
    vocabulary.parent.mkdir(parents=True, exist_ok=True)
    words = sorted(trainer.get_vocab().items(), key=lambda item: item[1])
    vocabulary.write_text("\n".join(word for word, _ in words), encoding="utf-8")
    length = work.data.keys.max_length
    return BertTokenizerFast(str(vocabulary), do_lower_case=keys.lowercase, model_max_length=length)


def _with_cls_last(tokenizer: Any) -> Any:
    """The same tokenizer, `[CLS]` behind the text, in a segment of its own (Yang et al. 2019, XLNet)."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2",
        pair="$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[SEP]", "[CLS]")],
    )
    return tokenizer


def _letters(tokenizer: Any, texts: list[str]) -> tuple[list[str], list[str]]:
    """The most frequent letters, and those of them that go on a word, as tokens; both in order.

    The trainer would number the latter in another order each time, and break ties between merges by number.
    """
    counts: Counter[str] = Counter()
    inner: set[str] = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            counts.update(word)
            inner.update(word[1:])
    kept = sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:MOST_LETTERS])
    return kept, [f"##{letter}" for letter in kept if letter in inner]


def _texts(frame: Any) -> Iterator[str]:
    """Every text of a split, whatever the task."""
    for column in ("text", "pair", "question", "context"):
        if column in frame:
            yield from frame[column]
    if "references" in frame:
        yield from (reference for references in frame["references"] for reference in references)
    if "tokens" in frame:
        yield from (" ".join(tokens) for tokens in frame["tokens"])

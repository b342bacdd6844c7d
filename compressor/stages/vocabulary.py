"""Vocabularies of running text, made of the training text: whole words, byte pairs, or characters.

Numbers rise as tokens get rarer, as adaptive softmax wants them. All are plain `tokenizer.json` files, which say for
themselves what becomes of a line's end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from compressor.models.source import TrainTokenizer

UNKNOWN, LINE_END = "<unk>", "</s>"
UNKNOWN_CHARACTER = "\ufffd"
BATCH = 1000
"""Texts that are tokenized at once to count their tokens."""
ANY_CHARACTER = r"[\s\S]"


def train_vocabulary(keys: TrainTokenizer, texts: Sequence[str]) -> Any:
    """A transformers tokenizer made of `texts`; the same texts give the same numbers."""
    from transformers import PreTrainedTokenizerFast

    make = {"word": _words, "bpe": _byte_pairs, "character": _characters}[keys.train]
    tokenizer, special = make(keys, texts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _words(keys: TrainTokenizer, texts: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """What white space separates; a line ends with a token of its own."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel

    lines = [_lowered(text, keys).replace("\n", f" {LINE_END} ") for text in texts]
    counts = Counter(word for line in lines for word in line.split())
    ends = [normalizers.Replace("\n", f" {LINE_END} ")]
    made = Tokenizer(WordLevel(_numbered(counts, keys.vocab_size, (UNKNOWN, LINE_END)), UNKNOWN))
    made.normalizer = normalizers.Sequence([*_lowering(keys), *ends])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made, {"unk_token": UNKNOWN, "eos_token": LINE_END}


def _characters(keys: TrainTokenizer, texts: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Every character, ends of lines too."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_lowered(text, keys))
    vocabulary = _numbered(counts, keys.vocab_size, (UNKNOWN_CHARACTER, "\n"))
    made = Tokenizer(WordLevel(vocabulary, UNKNOWN_CHARACTER))
    made.normalizer = normalizers.Sequence(_lowering(keys))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
    made.decoder = decoders.Fuse()
    return made, {"unk_token": UNKNOWN_CHARACTER}


def _byte_pairs(keys: TrainTokenizer, texts: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Pairs of bytes merged by frequency, as GPT-2 has them; nothing is unknown (Sennrich et al. 2016)."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers.models import BPE

    made = Tokenizer(BPE())
    made.normalizer = normalizers.Sequence(_lowering(keys))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=keys.vocab_size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    counts: Counter[str] = Counter(dict.fromkeys(made.get_vocab(), 0))
    for start in range(0, len(texts), BATCH):
        for encoding in made.encode_batch(list(texts[start : start + BATCH])):
            counts.update(encoding.tokens)
    merges = [tuple(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    made.model = BPE(vocab=_numbered(counts, len(counts)), merges=merges)
    return made, {}


def _numbered(counts: Counter[str], most: int, needed: Sequence[str] = ()) -> dict[str, int]:
    """Numbers of at most `most` tokens, `needed` among them, by falling count, equal ones by name.

    What is left out counts for the first of `needed`, which stands for it.
    """
    ranked = _by_count(counts)
    kept = [*needed, *(token for token in ranked if token not in needed)][:most]
    used = Counter({token: counts[token] for token in kept})
    if needed:
        used[needed[0]] += counts.total() - used.total()
    return {token: number for number, token in enumerate(_by_count(used))}


def _by_count(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda token: (-counts[token], token))


def _lowered(text: str, keys: TrainTokenizer) -> str:
    return text.lower() if keys.lowercase else text


def _lowering(keys: TrainTokenizer) -> list[Any]:
    from tokenizers import normalizers

    return [normalizers.Lowercase()] if keys.lowercase else []

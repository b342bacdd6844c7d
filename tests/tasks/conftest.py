import os
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

SHARED = Path(__file__).parents[3] / "shared"
WORDS = "the a cat dog runs sleeps in paris london john lives bad good very movie where does live ##s ? , ."


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A WordPiece tokenizer that knows a few words and all letters."""
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for prefix in ("", "##")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split() + letters)]
    inner = BertWordPieceTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
    return BertTokenizerFast(tokenizer_object=inner._tokenizer, model_max_length=512)


@pytest.fixture(scope="session")
def data():
    """The folder of real data sets."""
    folder = Path(os.environ.get("COMPRESSOR_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (set COMPRESSOR_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_tokenizer():
    """The tokenizer of a pretrained BERT."""
    folder = Path(os.environ.get("COMPRESSOR_MODELS", SHARED / "models")) / "minilm-l6-h384"
    if not folder.is_dir():
        pytest.skip(f"no real model: {folder} is missing (set COMPRESSOR_MODELS)")
    return BertTokenizerFast.from_pretrained(folder)


@pytest.fixture
def write(tmp_path):
    """Write a file and get its path as text."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write

"""What a user may mean by MODEL: a checkpoint folder, a folder with an exported model, or an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import UserError
from compressor.parts import MODEL_FILE, graphs_of, has_graphs
from compressor.stages.base import RESULTS, open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compressor.tasks.base import Task

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def has_graph(folder: Path) -> bool:
    """Whether this is an artifact, or the folder of an export or quantize stage."""
    return has_graphs(folder)


def has_config(folder: Path) -> bool:
    """Whether this is a model folder as transformers writes it."""
    return (folder / "config.json").is_file()


def onnx_file(path: Path) -> Path:
    """The ONNX file that `path` is or, as a folder, holds; of several graphs the folder itself.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    if has_graph(path):
        return path / MODEL_FILE if graphs_of(path) == [MODEL_FILE] else path
    raise not_a_model(path, f"an .onnx file or a folder with a {MODEL_FILE}")


def not_a_model(path: Path, wanted: str) -> UserError:
    """What to say of a path that is none of the things `wanted`."""
    if not path.exists():
        return UserError(f"there is nothing at {path}; give {wanted}")
    if path.is_file():
        return UserError(f"{path} is a file; give {wanted}")
    if (path / RESULTS).is_file():
        return UserError(f"{path} is the folder of a run; its released model is in {path / 'artifact'}")
    return UserError(f"{path} is not {wanted}")


def tokenizer_beside(folder: Path, kind: type[Task]) -> PreTrainedTokenizerBase:
    """The tokenizer that lies in a model's folder.

    Raises:
        UserError: there is none, or it does not open.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{folder} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}); text cannot be read without one"
        )
    try:
        return open_tokenizer(folder, kind)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the tokenizer in {folder} does not open: {first}") from error

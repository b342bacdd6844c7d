"""What transformers and torch stumble over, in one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compressor.errors import CompressorError, UserError
from compressor.files import disk_is_full
from compressor.models.source import describe, folder_of
from compressor.schema import refuse_namesake


@contextmanager
def fitting(problem: str) -> Iterator[None]:
    """Say what is the matter with a file or config that transformers or torch stumble over."""
    try:
        yield
    except CompressorError:
        raise
    except Exception as error:  # of any kind: what stumbles is somewhere in their depths
        reason = (str(error).strip() or type(error).__name__).splitlines()
        raise UserError(f"{problem}: {' '.join(line.strip() for line in reason[:2])}") from error


@contextmanager
def hub_errors(source: Any, what: str = "model") -> Iterator[None]:
    """Turn transformers' many ways to fail into one sentence."""
    name = describe(source)
    refuse_namesake(name, what)
    try:
        yield
    except CompressorError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        if disk_is_full(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = " (a hub id needs a network or a cached copy; a folder starts with ./ ../ / or ~)"
        raise UserError(
            f"cannot open the {what} '{name}': {first}{'' if folder_of(source) else hint}"
        ) from error

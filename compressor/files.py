"""Files that appear whole or not at all, and their hashes."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_SIGNS = (
    "No space left",
    "os error 28",
    "File too large",
    "os error 27",
    "inline_container",
    "iostream error",
)
"""How libraries say so that raise errors of their own."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error means that there was no room to write."""
    return getattr(error, "errno", None) in FULL or any(sign in str(error) for sign in FULL_SIGNS)


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that is renamed onto it on success and removed on failure.

    Works for a file or a folder; an existing folder is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        remove(temporary)


def write_text(target: Path, text: str) -> None:
    """Write `text` (UTF-8) to `target` atomically."""
    with appearing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically. NaN is refused: readers of other languages choke on it."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def stored_under(path: Path, key: str) -> dict[str, Any] | None:
    """The JSON mapping in `path` if it is there, whole, and was stored under this `key`."""
    try:
        stored: dict[str, Any] = read_json(path)
        return stored if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def cache_folder() -> Path:
    """Where what belongs to no run is kept: `$COMPRESSOR_CACHE`, else `compressor` in the user's cache folder."""
    own, users = os.environ.get("COMPRESSOR_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(users or Path.home() / ".cache") / "compressor"


def sha256(path: Path) -> str:
    """Hex digest of a file's content; of a folder, of the sorted names and digests of what it holds."""
    if path.is_dir():
        lines = [f"{p.relative_to(path)} {sha256(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex digest of any JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

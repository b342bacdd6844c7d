"""compressor: makes a transformer several times faster on the server that really runs it, and proves it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.models.checkpoint import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Opening a model needs torch; `import compressor` must not.
    if name == "load":
        from compressor.models.checkpoint import load

        return load
    raise AttributeError(name)

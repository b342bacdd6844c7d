"""Where the libraries' own chatter goes: into the run's log, not between the user and the progress bar."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import BufferingHandler
from pathlib import Path

log = logging.getLogger(__name__)


def quiet_libraries() -> None:
    """Silence progress bars, advice and telemetry of the libraries; errors still come through."""
    # Idle threads that spin at a barrier take the core from whoever could make progress: on a busy machine
    # training ran four times slower. Read by OpenMP when torch is imported, so set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore")
    for name in ("transformers", "optimum", "datasets", "torch.onnx", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Keep what is logged in the meantime: calling what is yielded logs it again, when there is a log to write."""
    handler = BufferingHandler(capacity=10_000)

    def again() -> None:
        for record in handler.buffer:
            logging.getLogger(record.name).handle(record)

    logging.getLogger("compressor").setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield again
    finally:
        logging.getLogger().removeHandler(handler)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write everything that is logged in the meantime to `path` too, last of all what ended it early."""
    logging.raiseExceptions = False  # a full disk is said once, not by a traceback a line
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("compressor").setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        log.error("ended by %s", type(error).__name__, exc_info=True)
        raise
    finally:
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()

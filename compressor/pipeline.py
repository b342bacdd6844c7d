"""Runs a recipe: stages in order, each resumed or reused where it can be, then measures, gates and packages."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compressor.errors import GateError, RunError, UserError
from compressor.files import appearing, disk_is_full, write_json
from compressor.log import held_back
from compressor.preflight import check_everything
from compressor.project import RECORD, SCRATCH, Project
from compressor.results import finish, withdraw
from compressor.schema import suggest
from compressor.stages.base import LOCK, Work
from compressor.stages.chain import Node
from compressor.worker import launch

LEAST_FREE = 1 << 20
"""Bytes: with fewer, a stage that fails stumbled over the full disk, whatever the library says that it used."""


def run_recipe(
    project: Project,
    start: str | None = None,
    fresh: bool = False,
    started: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Run everything and return the results.

    `start`: the stage from which on nothing is reused; `fresh`: nothing is reused at all; `started` is called
    when all checks have passed and the folder is there.

    Raises:
        UserError: something in the recipe cannot be met here; found before the first stage, nothing is left.
        RunError: the output folder is in use, or the disk is full.
        GateError: a verification failed on the way (gates are judged in the results, not raised).
    """
    if start and start not in (names := project.stage_names()):
        raise UserError(
            f"--from {start}: no such stage{suggest(start, names)} (there are: {', '.join(names)})"
        )
    with held_back() as log_again:
        check_everything(project)
    with nothing_left(project.output), locked(project.output):
        started()
        log_again()
        _clean(project, start, fresh)
        stages = [run_stage(project, node) for node in project.chain.nodes]
        return finish(project, stages)


def run_stage(project: Project, node: Node) -> dict[str, Any]:
    """Run one node, or take what it made before; returns its record."""
    stored = project.cached(node)
    if stored:
        project.display.line(f"[dim]{node.name}: done before, kept[/]")
        return stored | {"cached": True}
    withdraw(project.output)
    began = time.monotonic()
    target = project.output / node.name
    with peak_memory() as peak, project.display.stage(node.name) as progress, appearing(target) as folder:
        work = project.work(node, folder, progress)
        info = _run_stage(project, node, work)
        files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        record = {
            "id": node.name,
            "verb": node.stage.verb,
            "key": project.keys[node.name],
            "seconds": time.monotonic() - began,
            "peak_rss_bytes": peak(),
            "info": info,
            "files": files,
        }
        write_json(folder / RECORD, record)
    project.forget(node)
    project.display.line(f"{node.name}: {record['seconds']:.0f} s{_news(info)}")
    return record | {"cached": False}


def _run_stage(project: Project, node: Node, work: Work) -> dict[str, Any]:
    work.folder.mkdir(parents=True, exist_ok=True)
    try:
        if project.processes == 1 or not node.stage.trains:
            return node.stage.run(work)
        return launch(project, node, work)
    except (UserError, GateError):
        raise
    except Exception as error:
        if disk_is_full(error) or shutil.disk_usage(work.folder).free < LEAST_FREE:
            raise RunError(
                f"no space left in {project.output}; make room and run the same command again"
            ) from error
        if isinstance(error, RunError):
            raise RunError(f"{node.name}: {error}") from error
        raise


def _clean(project: Project, start: str | None, fresh: bool) -> None:
    """Remove what a killed run left half-written, and what is not to be reused."""
    for left in project.output.glob("**/.*.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    names = project.stage_names()
    stale = names if fresh else names[names.index(start) :] if start else []
    for name in stale:
        shutil.rmtree(project.output / name, ignore_errors=True)
    if stale:
        shutil.rmtree(project.output / SCRATCH, ignore_errors=True)


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Remove a run's folder if this run made it and bad input was found before it finished a stage."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except UserError:
        if new and not any(folder.glob(f"*/{RECORD}")):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another run may have come into a folder around it
                for path in new[1:]:
                    path.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; a killed process leaves no stale lock.

    Raises:
        RunError: another run holds it, or it cannot be written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("w")
    except OSError as error:
        raise RunError(f"cannot write to the output folder {folder}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another run is using {folder}; wait for it, or give another --output") from error
        yield


@contextmanager
def peak_memory() -> Iterator[Any]:
    """Yields a function that tells the highest resident memory (bytes) of this process since the start."""
    with suppress(OSError):  # no such file outside Linux: then the figure is the whole process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak() -> int:
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return next(int(row.split()[1]) * 1024 for row in lines if row.startswith("VmHWM"))
        except (OSError, StopIteration):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    yield peak


def _news(info: dict[str, Any]) -> str:
    """The one figure of a stage that a user waits for."""
    if "selection_metric" in info:
        return f", selection metric {info['selection_metric']:.4f}"
    if "members" in info:
        kept = [f"{row['sliced_density']:.1%}" for row in info["members"].values()]
        return f", keeps {', '.join(kept)} of the layers' weights"
    return ""

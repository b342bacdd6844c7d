"""Runs a recipe: stages in order, each resumed or reused where it can be, then measures, gates and packages."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from compressor.display import Display
from compressor.errors import CompressorError, GateError, RunError, UserError
from compressor.files import appearing, digest, disk_is_full, read_json, sha256, write_json
from compressor.models.source import HubModel, NewModel, folder_of
from compressor.recipe import Loaded
from compressor.schema import Progress, json_of, suggest
from compressor.stages.base import LOCK, Data, Work
from compressor.stages.chain import Chain, Node, build_chain
from compressor.stages.open import OpenModel

RECORD = "stage.json"
SCRATCH = "work"
SHARED = "shared"
LEAST_FREE = 1 << 20
"""Bytes: with fewer, a stage that fails stumbled over the full disk, whatever the library says that it used."""


@dataclass
class Pipeline:
    """A recipe and the folder of its run."""

    loaded: Loaded
    output: Path
    display: Display = field(default_factory=Display)
    processes: int = 1

    @property
    def recipe(self) -> Any:
        """The validated recipe."""
        return self.loaded.recipe

    @cached_property
    def data(self) -> Data:
        """The task and its data, read once."""
        return Data(self.recipe.task, self.recipe.seed)

    @cached_property
    def chain(self) -> Chain:
        """The nodes to run."""
        return build_chain(self.recipe.stages, self.recipe.baseline)

    @cached_property
    def keys(self) -> dict[str, str]:
        """Per node a hash of all its result depends on: its keys, its inputs, data, model and code version."""
        keys: dict[str, str] = {}
        for node in self.chain.nodes:
            own = json_of(node.stage)
            own = {k: v for k, v in own.items() if k not in ("id", "source")}
            inputs = [keys[self.chain.node(name).name] + name for name in node.inputs]
            parts: list[Any] = [node.stage.verb, node.stage.version, own, inputs, node.stage.machine()]
            if node.stage.uses_data or isinstance(node.stage, OpenModel):
                parts += [self.recipe.seed, self.training_data]
            if isinstance(node.stage, OpenModel):
                parts.append(model_content(self.recipe.model))
            keys[node.name] = digest(parts)
        return keys

    @cached_property
    def training_data(self) -> Any:
        """What training depends on in the task: all of it but how validation is scored."""
        task = json_of(self.recipe.task)
        task["limit"] = {"train": task["limit"]["train"]}
        task.pop("metric")
        return [task, self.data.kind.fingerprint(self.recipe.task)]

    def run(
        self, start: str | None = None, fresh: bool = False, started: Callable[[], Any] = lambda: None
    ) -> dict[str, Any]:
        """Run everything and return the results.

        `start`: the stage from which on nothing is reused; `fresh`: nothing is reused at all; `started` is called
        when all checks have passed and the folder is there.

        Raises:
            UserError: something in the recipe cannot be met here; found before the first stage, nothing is left.
            RunError: the output folder is in use, or the disk is full.
            GateError: a verification failed on the way (gates are judged in the results, not raised).
        """
        from compressor.preflight import check_everything

        if start and start not in (names := self.stage_names()):
            raise UserError(
                f"--from {start}: no such stage{suggest(start, names)} (there are: {', '.join(names)})"
            )
        check_everything(self)
        with nothing_left(self.output), locked(self.output):
            started()
            self._clean(start, fresh)
            stages = [self._stage(node) for node in self.chain.nodes]
            from compressor.results import finish

            return finish(self, stages)

    def stage_names(self) -> list[str]:
        """Ids of the chain's stages, in order."""
        return list(dict.fromkeys(n.name.split("/")[0] for n in self.chain.nodes))

    def cached(self, node: Node) -> dict[str, Any] | None:
        """The record of a finished node whose key still holds and whose files are all there."""
        record = self.output / node.name / RECORD
        try:
            stored = read_json(record)
            whole = all((record.parent / f).stat().st_size == size for f, size in stored["files"].items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return stored if stored["key"] == self.keys[node.name] and whole else None

    def folder_of(self, name: str) -> Path:
        """The folder of a node, or of a family's member."""
        return self.output / name

    def work(self, node: Node, folder: Path, progress: Progress, rank: int = 0) -> Work:
        """Everything `node` needs to run into `folder`."""
        scratch = self.output / SCRATCH / f"{node.name.replace('/', '.')}-{self.keys[node.name][:12]}"
        scratch.mkdir(parents=True, exist_ok=True)
        (self.output / SHARED).mkdir(exist_ok=True)
        return Work(
            model=self.recipe.model,
            data=self.data,
            seed=self.recipe.seed,
            source=self.output / node.inputs[0] if node.inputs else folder,
            folder=folder,
            scratch=scratch,
            shared=self.output / SHARED,
            folder_of=self.folder_of,
            progress=progress,
            max_parity_error=self.recipe.gates.max_parity_error,
            processes=self.processes if node.stage.trains else 1,
            rank=rank,
        )

    def _stage(self, node: Node) -> dict[str, Any]:
        stored = self.cached(node)
        if stored:
            self.display.line(f"[dim]{node.name}: done before, kept[/]")
            return stored | {"cached": True}
        began = time.monotonic()
        target = self.output / node.name
        with peak_memory() as peak, self.display.stage(node.name) as progress, appearing(target) as folder:
            work = self.work(node, folder, progress)
            info = self._run_stage(node, work)
            files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
            record = {
                "id": node.name,
                "verb": node.stage.verb,
                "key": self.keys[node.name],
                "seconds": time.monotonic() - began,
                "peak_rss_bytes": peak(),
                "info": info,
                "files": files,
            }
            write_json(folder / RECORD, record)
        shutil.rmtree(work.scratch, ignore_errors=True)
        self.display.line(f"{node.name}: {record['seconds']:.0f} s{_news(info)}")
        return record | {"cached": False}

    def _run_stage(self, node: Node, work: Work) -> dict[str, Any]:
        work.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.processes == 1 or not node.stage.trains:
                return node.stage.run(work)
            return launch(self, node, work)
        except (UserError, GateError):
            raise
        except Exception as error:
            if disk_is_full(error) or shutil.disk_usage(work.folder).free < LEAST_FREE:
                raise RunError(
                    f"no space left in {self.output}; make room and run the same command again"
                ) from error
            raise

    def _clean(self, start: str | None, fresh: bool) -> None:
        """Remove what a killed run left half-written, and what is not to be reused."""
        for left in self.output.glob("**/.*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        names = self.stage_names()
        stale = names if fresh else names[names.index(start) :] if start else []
        for name in stale:
            shutil.rmtree(self.output / name, ignore_errors=True)
        if stale:
            shutil.rmtree(self.output / SCRATCH, ignore_errors=True)


def model_content(source: Any) -> Any:
    """What identifies a model's content: hashes of a folder's files, a hub id with its commit, or the config."""
    folder = folder_of(source) if not isinstance(source, NewModel) else None
    if folder is not None:
        return {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}
    if isinstance(source, NewModel):
        return json_of(source)
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    name, revision = (source.id, source.revision) if isinstance(source, HubModel) else (source, None)
    try:
        config = cached_file(name, "config.json", revision=revision, local_files_only=True)
        return [name, extract_commit_hash(config, revision)]
    except OSError:
        return [name, revision]


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


def launch(pipeline: Pipeline, node: Node, work: Work) -> dict[str, Any]:
    """Run one training stage under torchrun with `processes` processes; everything else stays in this one.

    Raises:
        CompressorError: what the first process failed with.
    """
    job = work.scratch / "job.json"
    result = work.scratch / "result.json"
    result.unlink(missing_ok=True)
    write_json(
        job,
        {
            "recipe": pipeline.loaded.data,
            "path": str(pipeline.loaded.path),
            "output": str(pipeline.output.resolve()),
            "node": node.name,
            "folder": str(work.folder.resolve()),
            "result": str(result),
            "processes": pipeline.processes,
        },
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={pipeline.processes}", "-m", "compressor.worker", str(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // pipeline.processes))}
    with (work.scratch / "torchrun.log").open("w") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith('{"progress"'):
                    work.progress(*json.loads(line)["progress"])
        finally:
            if child.poll() is None:
                child.terminate()
            child.wait()
    answer = read_json(result) if result.is_file() else {}
    kinds: dict[str, type[CompressorError]] = {k.__name__: k for k in (UserError, GateError, RunError)}
    if answer.get("kind") in kinds:
        raise kinds[answer["kind"]](answer["error"])
    if "info" not in answer:
        first = next(iter(str(answer.get("error", "")).splitlines()), "")
        reason = f"{answer['kind']}: {first}" if answer else f"exit code {child.returncode}"
        raise RunError(
            f"training on {pipeline.processes} processes failed ({reason}); {errors.name} says more"
        )
    return dict(answer["info"])


def _news(info: dict[str, Any]) -> str:
    """The one figure of a stage that a user waits for."""
    if "selection_metric" in info:
        return f", selection metric {info['selection_metric']:.4f}"
    if "members" in info:
        kept = [f"{row['sliced_density']:.1%}" for row in info["members"].values()]
        return f", keeps {', '.join(kept)} of the layers' weights"
    return ""

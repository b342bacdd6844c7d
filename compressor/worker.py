"""Several processes that train a stage together: started here through torchrun, and what each of them does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, GateError, RunError, UserError
from compressor.files import read_json, write_json
from compressor.log import quiet_libraries
from compressor.project import Project
from compressor.recipe import Loaded, parse
from compressor.stages.base import Work
from compressor.stages.chain import Node
from compressor.yamlfile import Document


def launch(project: Project, node: Node, work: Work) -> dict[str, Any]:
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
            "recipe": project.loaded.data,
            "path": str(project.loaded.path),
            "output": str(project.output.resolve()),
            "node": node.name,
            "folder": str(work.folder.resolve()),
            "result": str(result),
            "processes": project.processes,
        },
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={project.processes}", "-m", "compressor.worker", str(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // project.processes))}
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
            f"training on {project.processes} processes failed ({reason}); {errors.name} says more"
        )
    return dict(answer["info"])


def main() -> int:
    """Run the stage named in the job file given as argument; rank 0 writes its outputs and the result."""

    quiet_libraries()
    job = read_json(Path(sys.argv[1]))
    path, rank = Path(job["path"]), int(os.environ["RANK"])
    loaded = Loaded(parse(Document(path, job["recipe"])), job["recipe"], path)
    project = Project(loaded, Path(job["output"]), processes=job["processes"])

    def progress(what: str, share: float) -> None:
        if rank == 0:
            sys.stdout.write(json.dumps({"progress": [what, share]}) + "\n")
            sys.stdout.flush()

    node = project.chain.node(job["node"])
    try:
        info = node.stage.run(project.work(node, Path(job["folder"]), progress, rank))
    except Exception as error:
        if rank == 0:
            write_json(Path(job["result"]), {"error": str(error), "kind": type(error).__name__})
        raise
    if rank == 0:
        write_json(Path(job["result"]), {"info": info})
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One of several processes that train a stage together; started by the pipeline through torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from compressor.files import read_json, write_json


def main() -> int:
    """Run the stage named in the job file given as argument; rank 0 writes its outputs and the result."""
    from compressor.log import quiet_libraries
    from compressor.pipeline import Pipeline
    from compressor.recipe import Loaded, parse
    from compressor.yamlfile import Document

    quiet_libraries()
    job = read_json(Path(sys.argv[1]))
    path, rank = Path(job["path"]), int(os.environ["RANK"])
    loaded = Loaded(parse(Document(path, job["recipe"])), job["recipe"], path)
    pipeline = Pipeline(loaded, Path(job["output"]), processes=job["processes"])

    def progress(what: str, share: float) -> None:
        if rank == 0:
            sys.stdout.write(json.dumps({"progress": [what, share]}) + "\n")
            sys.stdout.flush()

    node = pipeline.chain.node(job["node"])
    try:
        info = node.stage.run(pipeline.work(node, Path(job["folder"]), progress, rank))
    except Exception as error:
        if rank == 0:
            write_json(Path(job["result"]), {"error": str(error), "kind": type(error).__name__})
        raise
    if rank == 0:
        write_json(Path(job["result"]), {"info": info})
    return 0


if __name__ == "__main__":
    sys.exit(main())

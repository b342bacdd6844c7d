"""`export`: the sliced (or never pruned) model as an ONNX file that computes the same."""

from __future__ import annotations

import shutil
from typing import Annotated, Any, ClassVar

from pydantic import Field

from compressor.parts import MODEL_FILE as MODEL_FILE
from compressor.parts import Kind, graphs_of
from compressor.stages.base import Stage, Work


class Export(Stage):
    """Exports and checks parity with PyTorch; a difference above `gates.max_parity_error` fails the run.

    `memory` is what the graphs of a language model hand on from run to run: `hidden` states (of a model that was
    trained with them, by default), keys and values (`cache`), or nothing (`none`, by default of all others).
    """

    verb: ClassVar[str] = "export"
    version: ClassVar[int] = 2

    opset: Annotated[int, Field(ge=14, le=21)] = 18
    # Left out of what identifies the stage where it says nothing: what was exported without it stays.
    memory: Annotated[Kind | None, Field(exclude_if=lambda kind: kind is None)] = None

    def run(self, work: Work) -> dict[str, Any]:
        """Write the graphs beside config and tokenizer."""
        from compressor.models import checkpoint
        from compressor.models.architecture import structure_of
        from compressor.models.measures import measures
        from compressor.onnx.export import check_parity, export_model

        work.progress("export", 0.0)
        model = checkpoint.load(work.source)
        work.folder.mkdir(parents=True, exist_ok=True)
        task, tokens = work.data.kind.optimum_task, work.data.keys.tokens
        export_model(model, task, self.opset, work.folder, memory=self.memory, tokens=tokens)
        work.progress("parity", 0.5)
        parity = check_parity(model, work.folder, work.gates.max_parity_error, self.memory)
        model.config.save_pretrained(work.folder)
        work.tokenizer().save_pretrained(work.folder)
        return {
            "precision": "fp32",
            "parity": parity,
            "structure": structure_of(model).to_json(),
            **measures(model),
        }


def copy_companions(source: Any, target: Any) -> None:
    """Everything but the graphs: config and tokenizer files."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith((*graphs_of(source), "stage.json")):
            shutil.copyfile(file, target / file.name)

"""`slice`: cut the model down to its structure; masks and gates end here."""

from __future__ import annotations

import shutil
from typing import Any, ClassVar

from compressor.stages.base import Stage, Work, write_outputs


class Slice(Stage):
    """Makes a pruned checkpoint really smaller, without changing its function."""

    verb: ClassVar[str] = "slice"

    def run(self, work: Work) -> dict[str, Any]:
        """Cut, save, reload and compare."""
        from compressor.models import checkpoint
        from compressor.models.parity import same_function
        from compressor.models.slicing import slice_model
        from compressor.training.layers import FILE

        work.progress("slice", 0.0)
        model = checkpoint.load(work.source)
        gates = model.compressor_gates
        structure = gates.structure
        gates.remove()
        model.compressor_gates = None
        small = slice_model(model, structure)
        write_outputs(work, small)
        if (learned := work.source / FILE).exists():
            shutil.copyfile(learned, work.folder / FILE)
        checkpoint.hold(model)
        error = same_function(model, checkpoint.load(work.folder))
        return {
            "structure": structure.to_json(),
            "max_error": error,
            "parameters": small.num_parameters(),
            "sliced_density": structure.density(),
        }

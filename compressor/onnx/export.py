"""Export to ONNX: the one place that knows which exporter is used, and the parity check it must pass.

optimum's exporter (TorchScript) gives the faster graphs on CPU; its own validation only warns when outputs
differ, so it is not used.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from optimum.exporters.onnx import export as optimum_export
from optimum.exporters.onnx.model_configs import BertOnnxConfig
from optimum.exporters.tasks import TasksManager
from transformers import PreTrainedModel

from compressor.errors import GateError
from compressor.models.architecture import architecture_of
from compressor.models.embedding import EMBEDDING, Embedder
from compressor.models.language import is_language_model
from compressor.models.parity import largest_difference, real_positions, torch_outputs, varied_inputs
from compressor.onnx.graph import read_weights_directly
from compressor.onnx.runtime import open_model
from compressor.onnx.streaming import export_language_model, stream_parity
from compressor.onnx.writer import export_writer
from compressor.parts import MODEL_FILE, Kind


@TasksManager.create_register("onnx", overwrite_existing=True)(
    "xlnet", "text-classification", "token-classification", "question-answering", "feature-extraction"
)
class XLNetOnnxConfig(BertOnnxConfig):
    """XLNet, which optimum does not know: it reads what BERT reads, and gives no memories."""


def export_model(
    model: PreTrainedModel, task: str, opset: int, folder: Path, memory: Kind | None = None, tokens: int = 0
) -> None:
    """Write the graph of `model` to `folder` or, of a language model or an encoder-decoder, its graphs.

    `task` is optimum's name of the task, such as "text-classification". `memory` is what the graphs of a language
    model remember; an encoder-decoder is timed writing `tokens`.
    """
    if is_language_model(model):
        export_language_model(model, opset, folder, memory)
    elif architecture_of(model.config).writes_text:
        export_writer(model, opset, folder, tokens)
    else:
        export_onnx(model, task, opset, folder / MODEL_FILE)


def export_onnx(model: PreTrainedModel, task: str, opset: int, target: Path) -> None:
    """Write `model` to the ONNX file `target` with dynamic batch size and length.

    `task` is optimum's name of the task, such as "text-classification".
    """
    model.eval()
    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model_type=model.config.model_type, task=task, library_name="transformers"
    )
    config = constructor(model.config, task=task)
    if isinstance(model, Embedder):
        config = _pooled(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("optimum").setLevel(logging.ERROR)
        optimum_export(model, config, target, opset=opset)
    read_weights_directly(target)


def _pooled(config: Any) -> Any:
    """The same export with one output, a vector a text, where optimum expects a state a token."""
    kind = type(config)
    outputs = property(lambda self: {EMBEDDING: {0: "batch_size"}})
    config.__class__ = type(kind.__name__, (kind,), {"outputs": outputs})
    return config


def parity(model: PreTrainedModel, path: Path, memory: Kind | None = None) -> dict[str, Any]:
    """How far the ONNX file's logits are from PyTorch's, over varied batch sizes, lengths and padding.

    `path` may also be the folder of a model's graphs, `memory` is what these hand on. Returns `max_abs_error` (over
    real tokens), `inputs` (sequences compared).
    """
    if is_language_model(model):
        return stream_parity(model, path, memory)
    onnx_model = open_model(path)
    worst, count = 0.0, 0
    for inputs in varied_inputs(model.config):
        theirs = onnx_model(inputs)
        mask = inputs.get("attention_mask")
        for name, values in torch_outputs(model, inputs).items():
            if name == "encoder_last_hidden_state":  # what its graph keeps to itself
                continue
            error = largest_difference(*(real_positions(name, one, mask) for one in (values, theirs[name])))
            worst = max(worst, error)
        count += len(inputs["input_ids"])
    return {"max_abs_error": worst, "inputs": count}


def check_parity(
    model: PreTrainedModel, path: Path, limit: float, memory: Kind | None = None
) -> dict[str, Any]:
    """`parity`, which must hold.

    Raises:
        GateError: the largest difference is above `limit`.
    """
    figures = parity(model, path, memory)
    if not figures["max_abs_error"] <= limit:
        raise GateError(
            f"the exported graph differs from PyTorch by {figures['max_abs_error']:.2e} "
            f"(gates.max_parity_error allows {limit:.0e}); it is not released"
        )
    return figures

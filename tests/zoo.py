"""Tiny random models of every family, and random structures for them."""

import random

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from compressor.benchmark.encoder_graph import PATTERNS
from compressor.models.architecture import architecture_of, prepared
from compressor.models.heads import class_named
from compressor.models.outputs import has_tokens
from compressor.models.structure import Structure, SubLayer

HIDDEN, HEADS, FFN, LAYERS, VOCABULARY = 48, 4, 40, 3, 100

CONFIGS = {
    "bert": {},
    "roberta": {"max_position_embeddings": 66, "pad_token_id": 1},
    "electra": {"embedding_size": 16},
    "electra-wide": {"embedding_size": HIDDEN},
    "distilbert": {},
    "xlm-roberta": {"max_position_embeddings": 66, "pad_token_id": 1},
    "camembert": {"max_position_embeddings": 66, "pad_token_id": 1},
    "xlnet": {"pad_token_id": 0},
    "albert": {"embedding_size": 16},
}
WRITERS = {
    "bart": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
    "t5": {"pad_token_id": 0, "decoder_start_token_id": 0},
    "t5-gated": {"pad_token_id": 0, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"},
}
"""Encoder-decoders; T5's heads together are wider than its hidden states."""
CUTTABLE = [family for family in CONFIGS if family != "albert"]
"""Those whose layers have weights of their own, so that parts of them can go."""
TIMED = [family for family in CONFIGS if family.removesuffix("-wide") in PATTERNS]
"""Those that have latency tables."""
HEAD_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "feature-extraction": "AutoModelForSentenceEmbedding",
}
WRITER_CLASS = "AutoModelForSeq2SeqLM"
MEAN = {"pooling": "mean", "normalize": True}


def tiny_config(family: str, **extra: object) -> PretrainedConfig:
    if family in WRITERS:
        return _writer_config(family, extra)
    model_type = family.removesuffix("-wide")
    sizes: dict[str, object] = {"vocab_size": VOCABULARY}
    if model_type == "distilbert":
        sizes |= {"dim": HIDDEN, "n_heads": HEADS, "hidden_dim": FFN, "n_layers": LAYERS}
    elif model_type == "xlnet":
        sizes |= {"d_model": HIDDEN, "n_head": HEADS, "d_inner": FFN, "n_layer": LAYERS}
    else:
        sizes |= {
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
        }
    if model_type != "xlnet":  # it has no limit, and its config refuses one
        sizes["max_position_embeddings"] = 64
    return transformers.AutoConfig.for_model(model_type, **(sizes | CONFIGS[family] | extra))


def _writer_config(family: str, extra: dict[str, object]) -> PretrainedConfig:
    layers = {"encoder": LAYERS, "decoder": LAYERS}
    if family == "bart":
        sizes = {f"{stack}_{name}": value for stack in layers for name, value in
                 {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": FFN}.items()}  # fmt: skip
        sizes |= {"max_position_embeddings": 64, "forced_eos_token_id": None}
    else:
        sizes = {"num_layers": LAYERS, "num_heads": HEADS, "d_ff": FFN, "d_kv": 16}
        sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
    every = {"vocab_size": VOCABULARY, "d_model": HIDDEN} | sizes | WRITERS[family] | extra
    return transformers.AutoConfig.for_model(family.partition("-")[0], **every)


def tiny_model(
    family: str, task: str = "text-classification", seed: int = 0, **extra: object
) -> PreTrainedModel:
    """A random model in eval mode; biases and norms are random too, so that nothing hides in zeros."""
    torch.manual_seed(seed)
    extra = ({"sentence_embedding": MEAN} if task == "feature-extraction" else {}) | extra
    model = prepared(
        class_named(WRITER_CLASS if family in WRITERS else HEAD_CLASSES[task]).from_config(
            tiny_config(family, **extra)
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        elif parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def plain_encoder(family: str) -> PreTrainedModel:
    """The encoder of a random embedding model, which knows nothing of pooling."""
    model = tiny_model(family, "feature-extraction").base_model
    del model.config.sentence_embedding
    return model


def padded_batch(family: str, batch: int = 3, length: int = 11, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids with every row but the first padded, on the family's side."""
    torch.manual_seed(seed)
    config = tiny_config(family)
    architecture = architecture_of(config)
    ids = torch.randint(5, VOCABULARY, (batch, length))
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, length - 2 * row :] = 0
    if architecture.padding_side == "left":
        mask = mask.flip(1)
    every = {
        "input_ids": ids * mask + (1 - mask) * config.pad_token_id,
        "attention_mask": mask,
        "token_type_ids": (torch.arange(length) > length // 2).long().expand(batch, -1) * mask,
    }
    every["decoder_input_ids"] = torch.randint(0, VOCABULARY, (batch, length - 4))
    return {name: every[name] for name in architecture.read}


def random_structure(dense: Structure, seed: int, hidden: bool = False) -> Structure:
    """A random part of `dense`: some sub-layers whole, some constant, some absent, some dropped layers.

    Where all layers are one, only their number is random.
    """
    rng = random.Random(seed)
    if dense.sizes.shared:
        return Structure(dense.sizes, dense.layers[: rng.randint(1, len(dense.layers) - 1)])
    kept = {}
    for layer, name, sub in dense.each():
        kind = rng.choice(["part", "part", "part", "whole", "constant", "absent"])
        if kind == "part":
            units = rng.sample(sub.kept, rng.randint(1, len(sub.kept)))
            kept[layer.stack, layer.index, name] = SubLayer(tuple(sorted(units)))
        elif kind != "whole":
            kept[layer.stack, layer.index, name] = SubLayer(absent=kind == "absent")
    structure = dense.keeping(kept)
    if hidden:
        dims = sorted(rng.sample(range(dense.sizes.hidden), dense.sizes.hidden // 2))
        structure = Structure(structure.sizes, structure.layers, tuple(dims))
    return structure


def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """All logits of the real tokens (or embeddings of texts), stacked."""
    with torch.no_grad():
        output = model(**inputs)
    flat = []
    for name, part in output.items():
        if not isinstance(part, torch.Tensor):
            continue  # memories
        per_token = has_tokens(name, part[0]) and part.shape[:2] == inputs["attention_mask"].shape
        flat.append(part[inputs["attention_mask"].bool()] if per_token else part)
    return torch.cat([f.flatten() for f in flat])

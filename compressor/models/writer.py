"""An encoder-decoder as it writes: the text is read once, then the decoder runs token by token on what it remembers.

`Reader` and `Writer` are what is exported; `TorchSteps` runs them in PyTorch. So both make text by the same loop (see
`serve.generation`). What is remembered goes by the names `past.<layer>.key` and `cross.<layer>.key` (and `.value`),
each (batch, heads of that layer, tokens, head size); sub-layers that are gone remember nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from compressor.models.architecture import architecture_of, structure_of
from compressor.serve.generation import PAST, PRESENT, State

CROSS = "cross."
STATES = "states"
"""What the encoder gives where no cross-attention is left to read it."""
SIDES = ("key", "value")


def remembered(model: PreTrainedModel, sublayer: str) -> list[int]:
    """Decoder layers, by their place in the model, whose attention of that name has heads left."""
    layers = [layer for layer in structure_of(model).layers if layer.stack == "decoder"]
    return [place for place, layer in enumerate(layers) if layer.sublayers[sublayer].active]


def names_of(prefix: str, places: Sequence[int]) -> list[str]:
    """The names of keys and values of these layers, in order."""
    return [f"{prefix}{place}.{side}" for place in places for side in SIDES]


class Reader(nn.Module):
    """The encoder, with the keys and values that the decoder's cross-attentions make of its states."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        self.places = remembered(model, "cross_attention")
        self.outputs = names_of(CROSS, self.places) or [STATES]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Ids and mask (batch, length) -> keys and values of every cross-attention."""
        states = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)[0]
        family = architecture_of(self.model.config)
        stack = family.stack("decoder")
        table = next(table for table in stack.sublayers if table.name == "cross_attention")
        size = structure_of(self.model).sizes.head_size
        layers = family.layers(self.model, stack)
        made = [
            layers[place].get_submodule(path)(states).unflatten(-1, (-1, size)).transpose(1, 2)
            for place in self.places
            for path in table.inputs[1:]
        ]
        return tuple(made) or (states,)


class Writer(nn.Module):
    """The decoder with the head: the logits of the next tokens, and what is remembered of all so far."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        self.own, self.cross = (remembered(model, name) for name in ("attention", "cross_attention"))
        self.inputs = names_of(PAST, self.own) + names_of(CROSS, self.cross)
        self.outputs = ["logits", *names_of(PRESENT, self.own)]

    def forward(
        self, input_ids: Tensor, positions: Tensor, attention_mask: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits (batch, length, words) and the present keys and values.

        Args:
            input_ids: the tokens to read, (batch, length).
            positions: their places in what is written, (length,).
            attention_mask: of the text that was read, (batch, its length).
            state: keys and values in the order of `inputs`.
        """
        cache = _cache(dict(zip(self.inputs, state, strict=True)), len(self._layers))
        lowest = torch.finfo(self.model.dtype).min
        end: Any = positions[-1] + 1  # a tensor still, so that its value is not traced into the graph
        places = torch.arange(end, device=positions.device)
        ahead = (places[None, :] > positions[:, None]).to(self.model.dtype)[None, None] * lowest
        hidden_text = (1 - attention_mask[:, None, None, :].to(self.model.dtype)) * lowest
        states = self._through_layers(input_ids, positions, ahead, hidden_text, cache)
        layers = cache.self_attention_cache.layers
        present = [tensor for place in self.own for tensor in (layers[place].keys, layers[place].values)]
        return (self._logits(states), *present)

    @property
    def _layers(self) -> nn.ModuleList:
        family = architecture_of(self.model.config)
        return family.layers(self.model, family.stack("decoder"))

    def _through_layers(
        self, ids: Tensor, positions: Tensor, ahead: Tensor, hidden_text: Tensor, cache: EncoderDecoderCache
    ) -> Tensor:
        decoder = self.model.get_decoder()
        x = decoder.embed_tokens(ids)
        if hasattr(decoder, "embed_positions"):
            x = x + decoder.embed_positions(ids, position_ids=positions)
            x = decoder.layernorm_embedding(x)
        handed_on: dict[str, Tensor] = {}
        for layer in self._layers:
            x, *more = layer(
                x,
                attention_mask=ahead,
                encoder_hidden_states=hidden_text[:, 0, 0, :, None],  # only its length is asked for
                encoder_attention_mask=hidden_text,
                past_key_values=cache,
                cache_position=positions,
                **handed_on,
            )
            if self.model.config.model_type == "t5":
                handed_on = {"position_bias": more[0], "encoder_decoder_position_bias": more[1]}
        return decoder.final_layer_norm(x) if hasattr(decoder, "final_layer_norm") else x

    def _logits(self, states: Tensor) -> Tensor:
        config = self.model.config
        if config.model_type == "t5" and config.tie_word_embeddings:
            states = states * config.d_model**-0.5
        bias = getattr(self.model, "final_logits_bias", None)
        logits: Tensor = self.model.lm_head(states)
        return logits if bias is None else logits + bias


def _cache(state: Mapping[str, Tensor], layers: int) -> EncoderDecoderCache:
    """transformers' cache with these tensors in it."""
    made = {}
    for prefix in (PAST, CROSS):
        made[prefix] = DynamicCache()
        for place in range(layers):
            layer = DynamicLayer()
            if (name := f"{prefix}{place}.{SIDES[0]}") in state:
                layer.lazy_initialization(state[name])
                layer.keys, layer.values = state[name], state[f"{prefix}{place}.{SIDES[1]}"]
            made[prefix].layers.append(layer)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache.self_attention_cache, cache.cross_attention_cache = made[PAST], made[CROSS]
    cache.is_updated = {place: f"{CROSS}{place}.{SIDES[0]}" in state for place in range(layers)}
    return cache


class TorchSteps:
    """A PyTorch model for `generate`, on the GPU if there is one."""

    def __init__(self, model: PreTrainedModel) -> None:
        model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model
        self.reader, self.writer = Reader(model).eval(), Writer(model).eval()

    @torch.inference_mode()
    def start(self, inputs: Mapping[str, Any]) -> State:
        """Read the text."""
        ids, mask = (
            torch.as_tensor(inputs[n]).to(self.model.device) for n in ("input_ids", "attention_mask")
        )
        state: State = dict(zip(self.reader.outputs, self.reader(ids, mask), strict=True))
        heads = [layer for layer in structure_of(self.model).layers if layer.stack == "decoder"]
        size = structure_of(self.model).sizes.head_size
        for place in self.writer.own:
            empty = torch.zeros(
                len(ids), len(heads[place].sublayers["attention"].kept), 0, size, device=ids.device
            )
            state |= dict.fromkeys(names_of(PAST, [place]), empty)
        return state | {"attention_mask": mask}

    @torch.inference_mode()
    def step(self, ids: np.ndarray, position: int, state: State) -> tuple[np.ndarray, State]:
        """One run of the decoder."""
        device = self.model.device
        places = torch.arange(position, position + ids.shape[1], device=device)
        remembered = [state[name] for name in self.writer.inputs]
        logits, *present = self.writer(
            torch.from_numpy(ids).to(device), places, state["attention_mask"], *remembered
        )
        past = zip(names_of(PAST, self.writer.own), present, strict=True)
        return logits[:, -1].float().cpu().numpy(), state | dict(past)

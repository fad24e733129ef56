"""The modules of the text decoder that methods run by themselves, outside its own pass."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmfix.errors import UnsupportedError
from vlmfix.models.profiles import find_profile
from vlmfix.models.structure import text_decoder

# Logits of one row and of several, in half precision, differ by less than this share of the largest.
_HEAD_TOLERANCE = 0.02

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


class DecoderModules:
    """Parts of the text decoder of a model, by what they do.

    Args:
        model: the whole model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._decoder = text_decoder(model)

    def check_final_norm(self) -> None:
        """Refuse a decoder whose final norm is not known.

        Raises:
            UnsupportedError: with the remedy.
        """
        if not isinstance(self._final_norm, nn.Module):
            raise UnsupportedError(
                f"{type(self._decoder).__name__} has no final norm called 'norm'; give its name as "
                "final_norm in a profile of the model, or pass normed=False"
            )

    def check_output_head(self) -> None:
        """Refuse a model whose output head is not known.

        Raises:
            UnsupportedError: with the reason.
        """
        if not isinstance(self._model.get_output_embeddings(), nn.Module):
            raise UnsupportedError(
                f"{type(self._model).__name__} does not say what turns hidden states into logits "
                "(get_output_embeddings), so that methods cannot do it by themselves; use another method"
            )

    def check_output_logits(self, name: str, hidden_states: Tensor, logits: Tensor) -> None:
        """Refuse a model that makes something else of what its output head gives. Reads the device.

        Args:
            name: of the method that relies on it.
            hidden_states: after the final norm, `(batch, hidden)`.
            logits: what the model made of them, `(batch, vocabulary)` float32.

        Raises:
            UnsupportedError: with the reason.
        """
        own = self.output_logits(hidden_states).to(logits.device)
        if not bool((own - logits).abs().max() <= _HEAD_TOLERANCE * logits.abs().max()):
            raise UnsupportedError(
                f"{type(self._model).__name__} caps or scales what its output head gives, and {name} reads "
                "hidden states through the head alone; use another method"
            )

    def check_layers(self) -> None:
        """Refuse a decoder whose layers are not a norm and attention, then a norm and a feed-forward part.

        Raises:
            UnsupportedError: with the reason.
        """
        for layer in self._decoder.layers:
            parts = {name for name, _ in layer.named_children()}
            scaled = getattr(layer, "residual_multiplier", 1.0) != 1.0
            if parts != _PARTS or scaled or not hasattr(layer.self_attn, "o_proj"):
                raise UnsupportedError(
                    f"{type(layer).__name__} is not a plain layer of {', '.join(sorted(_PARTS))}, parts that "
                    "methods could run by themselves; use a method that does not"
                )

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        """What stands after the last layer, on `(batch, tokens, hidden)`."""
        return _context(self._final_norm, hidden_states)

    def output_logits(self, hidden_states: Tensor) -> Tensor:
        """What the output head makes of `(..., hidden)` states after the final norm, `(..., vocabulary)`
        float32."""
        return _context(self._model.get_output_embeddings(), hidden_states).float()

    def input_norm(self, layer: int, hidden_states: Tensor) -> Tensor:
        """The norm before the attention of a layer, on `(batch, tokens, hidden)`."""
        return _context(self._decoder.layers[layer].input_layernorm, hidden_states)

    def feed_forward(self, layer: int, hidden_states: Tensor) -> Tensor:
        """The second half of a layer: `(batch, tokens, hidden)` and what the feed-forward part adds to it."""
        parts = self._decoder.layers[layer]
        added = _context(parts.mlp, _context(parts.post_attention_layernorm, hidden_states))
        return hidden_states.to(added.device) + added

    @cached_property
    def _final_norm(self) -> nn.Module | None:
        norm = getattr(self._decoder, "norm", None)
        if norm is None:
            profile = find_profile(self._model)
            name = None if profile is None else profile.get("final_norm")
            norm = None if name is None else getattr(self._decoder, name, None)
        return norm


def _context(module: nn.Module | None, hidden_states: Tensor) -> Tensor:
    """What a module makes of hidden states, on the device where it lies."""
    assert module is not None
    output = module(hidden_states.to(device_of(module, hidden_states)))
    states: Tensor = output[0] if isinstance(output, tuple) else output  # experts say who was asked, too
    return states


def device_of(module: nn.Module, states: Tensor) -> torch.device:
    """Where a module wants `states`; quantised layers may keep their weights in buffers, or in neither."""
    for weight in chain(module.parameters(), module.buffers()):
        if weight.device.type != "meta":  # accelerate brings offloaded weights, and the input to them
            return weight.device
    return states.device


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model wants its inputs, also when accelerate has put its weights elsewhere."""
    if model.device.type != "meta":
        return model.device
    hooks = (vars(module).get("_hf_hook") for module in model.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    found = next((device for device in devices if device is not None), model.device)
    return torch.device(found)


Offsets = dict[nn.Module, Any]


def offsets(model: nn.Module) -> Offsets:
    """What Qwen-VL models keep of the prompt read last, for the positions of its next tokens, by module."""
    return {each: vars(each)["rope_deltas"] for each in model.modules() if "rope_deltas" in vars(each)}


def swap_offsets(others: Offsets) -> Offsets:
    """Put other offsets in place of those that there are, which come back."""
    found = {module: vars(module)["rope_deltas"] for module in others}
    for module, offset in others.items():
        vars(module)["rope_deltas"] = offset
    return found

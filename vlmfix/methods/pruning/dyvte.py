"""DyVTE: all image tokens leave after the layer from which the text needs them no more."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import TokenPruning
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_whole
from vlmfix.models.profiles import Profile


class ExitGate(NamedTuple):
    """The gate of one layer.

    Args:
        first: `(gate_hidden, 2 hidden)`.
        second: `(2, gate_hidden)`: keep, exit.
    """

    first: Tensor
    second: Tensor


@register_method("dyvte")
@dataclass(frozen=True, kw_only=True)
class DyVTE(TokenPruning):
    """Dynamic visual-token exit (arXiv 2411.19628): after some layer no image token is left.

    Decided once, in the prefill: later layers, and their caches, hold text alone. After which layer says a
    gate that looks at the text after the image, layer by layer, for each prompt by itself; the published
    gates are not released, `training/train_gates.py` trains them for a checkpoint. Or it is one layer for all
    prompts, a reconstruction that needs no training: the first after which the answers of this checkpoint
    hardly change, which `vlmfix calibrate --method dyvte` finds. A method for speed.

    Args:
        exit_layer: the last layer that sees image tokens, 0-based; -1, the last of all, leaves the model as it
            is. None: from the gates, or else the profile.
        gate_weights: safetensors file of gates, `training/train_gates.py` says how they lie in it.
    """

    exit_layer: int | None = None
    gate_weights: str | None = None
    _gates: dict[int, ExitGate] = field(default_factory=dict, init=False, repr=False, compare=False)

    info = MethodInfo(
        stage="pruning",
        changes="all image tokens leave after one layer",
        where="prefill, after the layer of the profile, or of a gate",
        forwards=1.0,
        provenance="reconstruction",
        paper="2411.19628",
    )
    identity_parameters: ClassVar = {"exit_layer": -1}
    prunes_after: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exit_layer is not None:
            check_whole("exit_layer", self.exit_layer, -1)
        if self.gate_weights is not None:
            if not isinstance(self.gate_weights, str | Path):
                raise ValueError(f"gate_weights is {self.gate_weights!r}; it must be the path of a file")
            object.__setattr__(self, "gate_weights", str(self.gate_weights))
            if self.exit_layer is not None:
                raise ValueError(
                    f"exit_layer is {self.exit_layer} and there are gate_weights, which choose it; pass one"
                )

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        resolved = super().resolve(config, profile)
        text = config.get_text_config()
        last = text.num_hidden_layers - 1
        if self.gate_weights is not None:
            resolved = dataclasses.replace(resolved)
            gates = read_gates(Path(self.gate_weights), last, text.hidden_size)
            object.__setattr__(resolved, "_gates", gates)
            return resolved
        layer = self.exit_layer
        if layer is None and profile is not None:
            layer = profile.get("dyvte_exit_layer")
        if layer is None:
            raise ValueError(
                "no exit_layer is known for this checkpoint; find it with 'vlmfix calibrate --model MODEL "
                "--images DIR --method dyvte', or pass exit_layer or gate_weights"
            )
        if type(layer) is not int or not -1 <= layer < last:
            raise ValueError(
                f"exit_layer is {layer!r}; image tokens of this model can leave after layers 0 to {last - 1}, "
                "and -1 keeps them"
            )
        return dataclasses.replace(resolved, exit_layer=layer)

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer == 0:
            return None
        layout = context.layout_at(layer)
        if not self._gates:
            if self.exit_layer != layer - 1:
                return None
            return ~layout.image_tokens
        left = layout.image_tokens.any(dim=1) & self.takes(context)
        gate = self._gate(layer - 1, hidden_states)
        features = text_features(hidden_states, layout.after_last_image.to(hidden_states.device))
        keep, leave = exit_logits(features, gate).unbind(dim=-1)
        exits = (leave > keep).to(left.device) & left
        if not bool(exits.any()):
            return None
        return ~(layout.image_tokens & exits[:, None])

    def inactive_reason(self, context: DecodeContext) -> str:
        return "no gate let the image tokens go; train the gates on prompts like these, or pass exit_layer"

    def _gate(self, layer: int, like: Tensor) -> ExitGate:
        """The gate of a layer on the device of its input, where it then stays."""
        gate = self._gates[layer]
        if gate.first.device != like.device:
            gate = self._gates[layer] = ExitGate(*(each.to(like.device) for each in gate))
        return gate


def text_features(hidden_states: Tensor, after_image: Tensor) -> Tensor:
    """What a gate sees of a layer: the mean of the text after the image, and its last token.

    Args:
        hidden_states: of the prompt, `(batch, tokens, hidden)`.
        after_image: text after the image, the last token of the prompt included, `(batch, tokens)` bool.

    Returns:
        `(batch, 2 hidden)` float32; the last token twice where it is the only one.
    """
    last = hidden_states[:, -1].float()
    words = after_image.clone()
    words[:, -1] = False
    total = torch.einsum("bth,bt->bh", hidden_states.float(), words.float())
    count = words.sum(dim=1, keepdim=True)
    mean = torch.where(count > 0, total / count.clamp_min(1), last)
    return torch.cat([mean, last], dim=1)


def exit_logits(features: Tensor, gate: ExitGate) -> Tensor:
    """Logits of keeping the image tokens and of letting them go, `(batch, 2)` (arXiv 2411.19628).

    Args:
        features: `(batch, 2 hidden)`.
        gate: of the layer; its weights are of any floating-point dtype.
    """
    first, second = (each.float() for each in gate)
    return nn.functional.gelu(features @ first.T) @ second.T


def read_gates(path: Path, layers: int, hidden: int) -> dict[int, ExitGate]:
    """Gates of the first `layers` layers of a model from a file, by layer.

    Raises:
        ValueError: there is no such file, or it holds no gates for such a model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"gate_weights {str(path)!r} cannot be read ({error}); train gates first") from error
    gates = {}
    for layer in range(layers):
        first, second = (tensors.get(f"{layer}.{name}") for name in ("first", "second"))
        if first is None or second is None:
            raise ValueError(f"gate_weights {str(path)!r} have no gate for layer {layer}; train them anew")
        gate_hidden = first.shape[0]
        if first.shape != (gate_hidden, 2 * hidden) or second.shape != (2, gate_hidden):
            raise ValueError(
                f"gate_weights {str(path)!r} have {tuple(first.shape)} and {tuple(second.shape)} in layer "
                f"{layer}; a model of width {hidden} needs (size, {2 * hidden}) and (2, size)"
            )
        gates[layer] = ExitGate(first, second)
    return gates

"""DyVTE: all image tokens leave after the layer from which the text needs them no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import TokenPruning
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_whole, shown
from vlmfix.models.directions import read_directions
from vlmfix.models.profiles import Profile

MADE_BY = "python -m training.train_gates MODEL --images FOLDER --output FILE"
"""The command that trains gates, in a checkout of vlmfix."""


class ExitGate(NamedTuple):
    """The gate of one layer; stacked, `(layers, ...)`, those of all layers but the last.

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
    gates are not released, `training/train_gates.py` trains some for a checkpoint. Or it is one layer for all
    prompts, a reconstruction that needs no training: the first after which the answers of this checkpoint
    hardly change, which `vlmfix calibrate --method dyvte` finds. A method for speed.

    Args:
        exit_layer: the last layer that sees image tokens, 0-based; -1 leaves the model as it is. None: from
            the gates, or else the profile.
        gate_weights: safetensors file of gates, which stay in memory: 2.1 GB in the published size for
            LLaVA-1.5-7B.
    """

    exit_layer: int | None = None
    gate_weights: str | None = None
    _gates: dict[int, ExitGate] = field(default_factory=dict, init=False, repr=False, compare=False)

    info: ClassVar = MethodInfo(
        stage="pruning",
        changes="all image tokens leave after one layer",
        where="prefill, after the layer of the profile, or of a gate",
        forwards=1.0,
        provenance="reconstruction",
        paper="2411.19628",
    )
    identity_parameters: ClassVar = {"exit_layer": -1}
    parameter_files: ClassVar[Sequence[str]] = ("gate_weights",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exit_layer is not None:
            check_whole("exit_layer", self.exit_layer, -1)
        if self.gate_weights is not None:
            if not isinstance(self.gate_weights, str) or not self.gate_weights:
                raise ValueError(
                    f"gate_weights is {shown(self.gate_weights)}; it must be the name of a safetensors file"
                )
            if self.exit_layer is not None:
                raise ValueError(
                    f"exit_layer is {self.exit_layer} and there are gate_weights, which choose it; pass one"
                )

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        resolved = super().resolve(config, profile)
        if self.gate_weights is not None:
            resolved = dataclasses.replace(resolved)
            resolved._gates.update(enumerate(read_gates(self.gate_weights, config)))
            return resolved
        last = config.get_text_config().num_hidden_layers - 1
        layer = self.exit_layer
        if layer is None and profile is not None:
            layer = profile.get("dyvte_exit_layer")
        if layer is None:
            raise ValueError(
                "no exit_layer is known for this checkpoint; find it with 'vlmfix calibrate --model MODEL "
                "--images DIR --method dyvte', or pass exit_layer or gate_weights"
            )
        if layer >= last:
            raise ValueError(
                f"exit_layer is {layer}; image tokens of this model can leave after layers 0 to {last - 1}, "
                "and -1 keeps them"
            )
        return dataclasses.replace(resolved, exit_layer=layer)

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer == 0:
            return None
        layout = context.layout_at(layer)
        if self.exit_layer is not None:
            return ~layout.image_tokens if layer == self.exit_layer + 1 else None
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
    """What a gate sees of a layer: the mean of the text after the image, and the last token (arXiv
    2411.19628).

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
    """Logits of keeping the image tokens and of letting them go (arXiv 2411.19628).

    Args:
        features: `(..., batch, 2 hidden)` float32.
        gate: of the layer, or of several, stacked.

    Returns:
        `(..., batch, 2)`.
    """
    return nn.functional.gelu(features @ gate.first.mT) @ gate.second.mT


def read_gates(path: str, config: PreTrainedConfig) -> list[ExitGate]:
    """Gates of all layers but the last of a model, from a file with the tensors of an `ExitGate`, stacked.

    Raises:
        ValueError: there is no such file, or it holds no gates for such a model.
    """
    tensors = read_directions(path, DyVTE.name, config, what="gates", made_by=MADE_BY)
    text = config.get_text_config()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layers, gate_hidden, width = shapes.get("first", (0, 0, 0))
    if (layers, width) != (text.num_hidden_layers - 1, 2 * text.hidden_size) or shapes.get("second") != (
        layers,
        2,
        gate_hidden,
    ):
        raise ValueError(
            f"{path!r} has {shapes}, and gates of this model are first ({text.num_hidden_layers - 1}, size, "
            f"{2 * text.hidden_size}) and second ({text.num_hidden_layers - 1}, 2, size); make it by "
            f"'{MADE_BY}'"
        )
    first, second = (tensors[name].float() for name in ExitGate._fields)
    return [ExitGate(*each) for each in zip(first, second, strict=True)]

"""Test-time registers: outlier patches of the vision encoder, moved to one extra token."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import EditsVisionEncoder
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.engine.vision_encoder import VisionEncoder, not_plain
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_choice, sequence, shown
from vlmfix.models.profiles import Profile

RULES = ("paper", "signed_extreme")
_ENCODERS = ("clip_vision_model", "siglip_vision_model")
_PAIRS = "pairs of layer and neuron, both 0 or more"


@register_method("registers")
@dataclass(frozen=True, kw_only=True)
class Registers(Method, EditsVisionEncoder):
    """Test-time registers (arXiv 2506.08010), of a CLIP or SigLIP encoder with a projector (LLaVA).

    A few neurons of the encoder's feed-forward parts fire at the patches that become outliers of high norm.
    One token of zeros is added to the patches of each picture; what these neurons have at any other token
    goes to it, and it is dropped before the projector. Maps of attention to the image become cleaner by it;
    the paper finds no change of accuracy. The neurons belong to a checkpoint: `vlmfix calibrate --method
    registers` finds them, or says that there are none. An encoder without a class token is this library's
    own extension.

    Args:
        neurons: pairs of encoder layer and neuron, 0-based; none leaves the model as it is; None: those of
            the checkpoint's profile.
        register_rule: what the register gets and others lose: "paper" its largest activation at any other
            token, neuron by neuron; "signed_extreme" one value for all neurons of a layer, the activation of
            largest size at any other token, while the class token keeps its own, as in the released code.
    """

    neurons: tuple[tuple[int, int], ...] | None = None
    register_rule: str = "paper"

    info: ClassVar = MethodInfo(
        stage="vision",
        changes="activations that make outlier patches, moved to an extra token",
        where="vision encoder, in the layers with register neurons",
        forwards=1.0,
        provenance="paper",
        paper="2506.08010",
        families="with a CLIP or SigLIP encoder and a projector",
    )
    identity_parameters: ClassVar = {"neurons": ()}

    def __post_init__(self) -> None:
        if self.neurons is not None:
            object.__setattr__(self, "neurons", _pairs(self.neurons))
        check_choice("register_rule", self.register_rule, RULES)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        check_encoder(config)
        neurons = self.neurons
        if neurons is None and profile is not None:
            neurons = profile.get("register_neurons")
        if neurons is None:
            raise ValueError(
                "no register neurons are known for this checkpoint; find them with 'vlmfix calibrate --model "
                "MODEL --images DIR --method registers', or pass neurons"
            )
        return dataclasses.replace(self, neurons=_pairs(neurons))

    def begin(self, context: DecodeContext) -> None:
        context.count(self, None, context.layout.image_tokens.any(dim=1).long(), 1)

    def hook_encoder(self, encoder: VisionEncoder) -> Sequence[RemovableHandle]:
        by_layer = self._by_layer(encoder)
        move = functools.partial(
            move_to_register, rule=self.register_rule, class_token=encoder.has_class_token
        )
        return [
            encoder.embeddings.register_forward_hook(_append),
            *(
                part.register_forward_pre_hook(functools.partial(_move, move, torch.tensor(neurons)))
                for part, neurons in ((encoder.down_projections[each], by_layer[each]) for each in by_layer)
            ),
            encoder.projector.register_forward_pre_hook(_drop, with_kwargs=True),
        ]

    def report(self, context: DecodeContext, sums: Sums) -> None:
        assert self.neurons is not None
        layers = sorted({layer for layer, _ in self.neurons})
        sums.details = {"register neurons": len(self.neurons), "encoder layers": layers}

    def _by_layer(self, encoder: VisionEncoder) -> dict[int, list[int]]:
        """The neurons of each layer that runs for the projector.

        Raises:
            ValueError: the encoder does not have them, or none of them runs for the projector.
        """
        assert self.neurons is not None
        found: dict[int, list[int]] = {}
        late = []
        for layer, neuron in self.neurons:
            if layer >= len(encoder.layers):
                raise ValueError(
                    f"neurons has {(layer, neuron)}; the layers of this vision encoder go from 0 to "
                    f"{len(encoder.layers) - 1}"
                )
            width = encoder.down_projections[layer].in_features
            if neuron >= width:
                raise ValueError(
                    f"neurons has {(layer, neuron)}; the neurons of this layer go from 0 to {width - 1}"
                )
            if layer > encoder.last_layer:
                late.append((layer, neuron))
            else:
                found.setdefault(layer, []).append(neuron)
        if not found:
            raise ValueError(
                f"neurons has none up to layer {encoder.last_layer}, the last that the projector reads; name "
                "some, or run 'vlmfix calibrate --method registers'"
            )
        if late:
            warnings.warn(
                f"Registers leaves out {len(late)} neurons after layer {encoder.last_layer} of the vision "
                "encoder, which the projector does not read; leave them out of neurons",
                stacklevel=2,
            )
        return found


def check_encoder(config: PreTrainedConfig) -> None:
    """Refuse a vision encoder of another kind, such as one that packs or pads its patches.

    Raises:
        UnsupportedError: with the remedy.
    """
    if getattr(getattr(config, "vision_config", None), "model_type", None) not in _ENCODERS:
        raise not_plain(config)


def move_to_register(activations: Tensor, neurons: Tensor, *, rule: str, class_token: bool) -> Tensor:
    """Activations with those of the register neurons moved to the last token (arXiv 2506.08010).

    Args:
        activations: of the hidden units of a feed-forward part, `(pictures, tokens, units)`; the first token
            is the class token, if there is one, and the last one the register.
        neurons: `(neurons,)` int64.
        rule: see `Registers`.
        class_token: whether there is one.

    Returns:
        Another tensor of the same shape and dtype, equal at all other units.
    """
    found = activations[..., neurons]
    others = found[..., :-1, :]
    moved = torch.zeros_like(found)
    if rule == "paper":
        moved[..., -1, :] = others.amax(dim=-2)
    else:
        values = others.flatten(-2)
        moved[..., -1, :] = values.gather(-1, values.abs().argmax(dim=-1, keepdim=True))
        if class_token:
            moved[..., 0, :] = found[..., 0, :]
    return activations.index_copy(-1, neurons, moved)


def _append(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook that adds a token of zeros to what enters the encoder, `(pictures, tokens, width)`."""
    return torch.cat([output, torch.zeros_like(output[:, :1])], dim=1)


def _move(move: Any, neurons: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook that moves what enters the second projection of a feed-forward part."""
    return move(args[0], neurons.to(args[0].device)), *args[1:]


def _drop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """A hook that drops the register from what enters the projector, `(pictures, tokens, width)`."""
    if args:
        return (args[0][:, :-1], *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: kwargs[name][:, :-1]}


def _pairs(values: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of layer and neuron, sorted.

    Raises:
        ValueError: they are something else.
    """
    several = [
        tuple(pair) if isinstance(pair, list | tuple) else () for pair in sequence("neurons", values, _PAIRS)
    ]
    if any(len(pair) != 2 or any(type(each) is not int or each < 0 for each in pair) for pair in several):
        raise ValueError(f"neurons is {shown(values)}; it must hold {_PAIRS}")
    return tuple(sorted({(layer, neuron) for layer, neuron in several}))

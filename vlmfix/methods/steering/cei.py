"""CEI: the state of the last prompt token, mixed into the newest one in a middle layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import Edit
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import at_depth
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.sid import check_layer
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.steering.base import NewRowEdit, StreamFormula
from vlmfix.methods.validation import check_flag, check_range, check_whole
from vlmfix.models.profiles import Profile
from vlmfix.models.structure import StreamSite


@register_method("cei")
@dataclass(frozen=True, kw_only=True)
class CEI(StreamFormula, NewRowEdit):
    """Context Embedding Injection (arXiv 2601.05939), the static form.

    The final state of the last prompt token, after the final norm, sums up image and question. A share of it
    takes the place of the same share of the stream that leaves one layer, at the last prompt token and at new
    ones. The prompt is read without it first. The defaults are published, but not together: 0.1 is the static
    setting of the code for LLaVA, there after layer 15, and layer 10 that of its dynamic form. That form,
    which reads each token twice, is not here.

    Args:
        alpha: the share, in [0, 1]; 0 leaves the model as it is.
        layer: after which it is mixed in, 0-based; None: layer 10 of 32, at the same depth.
        match_norm: give the state the length of the one that it is mixed into; released code does not.
    """

    alpha: float = 0.1
    layer: int | None = None
    match_norm: bool = False

    info: ClassVar = MethodInfo(
        stage="steering",
        changes="the stream, mixed with the final state of the prompt",
        where="last prompt row and new rows; after layer 10 of 32",
        forwards=1.0,
        provenance="released code",
        paper="2601.05939",
    )
    identity_parameters: ClassVar = {"alpha": 0}
    stream_sites: ClassVar = ("layer",)
    search_space: ClassVar = {"alpha": Between(0.02, 0.4)}

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)
        check_flag("match_norm", self.match_norm)
        if self.layer is not None:
            check_whole("layer", self.layer, 0)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        layer = at_depth((10, 11), depth)[0] if self.layer is None else self.layer
        check_layer(layer, config)
        return dataclasses.replace(self, layer=layer)

    def begin(self, context: DecodeContext) -> None:
        assert context.modules is not None
        context.modules.check_final_norm()

    def edits_layer(self, layer: int) -> bool:
        return layer == self.layer

    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        reads = context.is_prefill and layer == context.num_layers - 1 and context.layout.has_image
        return reads or super().acts_in_layer(context, layer)

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        if context.is_prefill:
            assert context.modules is not None
            context.state[self, "prompt"] = context.modules.final_norm(states[:, -1:])
            return states
        return super().edit_stream(context, layer, site, states)

    def formula(self, context: DecodeContext, layer: int, device: torch.device) -> Edit:
        prompt = context.state[self, "prompt"].to(device)
        return Edit(_injected, (prompt,), {"alpha": self.alpha, "match_norm": self.match_norm})

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "change of the stream after the layer, as a share of its length"}


def _injected(
    states: Tensor, prompt: Tensor, *, alpha: float, match_norm: bool
) -> tuple[Tensor, tuple[Tensor]]:
    """States with a share of that of the prompt, and how far the newest changed, as a share of its length."""
    mixed = inject(states, prompt, alpha=alpha, match_norm=match_norm)
    before, after = states[:, -1:].float(), mixed[:, -1:].float()
    return mixed, ((after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12),)


def inject(states: Tensor, prompt: Tensor, *, alpha: float, match_norm: bool = False) -> Tensor:
    """States with a share of that of the prompt mixed in (arXiv 2601.05939).

    Args:
        states: `(..., tokens, hidden)`.
        prompt: `(..., 1, hidden)`.
        alpha: the share, in [0, 1].
        match_norm: scale `prompt` to the length of each state.

    Returns:
        Float32, of the shape of `states`.
    """
    states, prompt = states.float(), prompt.float()
    if match_norm:
        lengths = states.norm(dim=-1, keepdim=True)
        prompt = prompt * lengths / prompt.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return (1 - alpha) * states + alpha * prompt

"""MemVR: a feed-forward part looks at the image again where a layer is unsure of the next token
(arXiv 2410.03577)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import UsesOutputHead
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import fitted_layers, layer_range
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.image_states import gathered
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.steering.base import StreamEdit
from vlmfix.methods.validation import check_flag, check_range
from vlmfix.models.profiles import Profile
from vlmfix.models.structure import StreamSite

_CANDIDATES = 10


@register_method("memvr")
@dataclass(frozen=True, kw_only=True)
class MemVR(StreamEdit, UsesOutputHead):
    """Memory-Space Visual Retracing (arXiv 2410.03577): in the first layer that is entered by a state whose
    next token is open, what the feed-forward part adds is mixed with the image, looked up by what it reads.

    How open the next token is, is told by the entropy of the ten likeliest tokens that the final norm and the
    output head make of the state. One layer at most is edited for each token that is read; for the prompt,
    whose last token decides, in the rows of all its tokens. The released code adds entropies over the batch
    and takes means over it; here every sequence is on its own. Users report that it never acts on their
    models: look at the share of edited sites, and lower the threshold where it is 0. For other depths than 32
    the layers are scaled, and the threshold is not published. Where the model caps or scales its logits it
    is refused, since entropies would be others.

    Args:
        ratio: share of what is looked up, in [0, 1]; 0 leaves the model as it is.
        threshold: entropy, of 1 at most, above which a layer is edited, in [0, 1].
        layers: first layer that may be edited and the one after the last, 0-based; None: 7 to 16 of 32, at
            the same depth. They are tested by what enters them, which is what leaves layers 6 to 15.
        normed: whether the final norm comes before the output head.
    """

    ratio: float = 0.12
    threshold: float = 0.75
    layers: tuple[int, int] | None = None
    normed: bool = True

    info: ClassVar = MethodInfo(
        stage="steering",
        changes="what a feed-forward part adds, mixed with the image",
        where="all rows of a pass; the first of layers 7 to 16 of 32 that is unsure",
        forwards=1.0,
        provenance="released code",
        paper="2410.03577",
    )
    identity_parameters: ClassVar = {"ratio": 0}
    stream_sites: ClassVar = ("enter", "feed_forward_input", "feed_forward")
    search_space: ClassVar = {"ratio": Between(0.03, 0.4), "threshold": Between(0.3, 0.95)}

    def __post_init__(self) -> None:
        check_range("ratio", self.ratio, 0, 1)
        check_range("threshold", self.threshold, 0, 1)
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_range(self.layers, "layers"))
        check_flag("normed", self.normed)

    @property
    def needs_final_norm(self) -> bool:
        return self.normed

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        return dataclasses.replace(self, layers=fitted_layers(self.layers, (7, 17), config))

    def edits_layer(self, layer: int) -> bool:
        assert self.layers is not None
        return self.layers[0] <= layer < self.layers[1]

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> None:
        if layer != 0 or not context.layout.has_image:
            return
        image, _ = gathered(hidden_states, context.layout_at(0).image_tokens)
        context.state[self, "image"] = image.float()

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        if site == "enter":
            self._test(context, layer, states)
        elif site == "feed_forward_input":
            image = context.state[self, "image"].to(states.device)
            context.state[self, "found"] = look_up(states, image)
        else:
            return self._mixed(context, layer, states)
        return states

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "entropy of the likeliest tokens in the layers that were tested"}

    def inactive_reason(self, context: DecodeContext) -> str:
        assert self.layers is not None
        largest = context.state.get((self, "largest"))
        known = "" if largest is None else f" (the largest was {float(largest.max()):.3f})"
        return (
            f"no entropy before layers {self.layers[0]} to {self.layers[1] - 1} was above "
            f"threshold={self.threshold:g}{known}; lower it"
        )

    def _test(self, context: DecodeContext, layer: int, states: Tensor) -> None:
        """Note which new rows, the last prompt token among them, fire in this layer."""
        assert context.modules is not None
        assert self.layers is not None
        new = states[:, context.first_new_row(layer, states.shape[1]) :]
        normed = context.modules.final_norm(new) if self.normed else new
        entropy = top_entropy(context.modules.output_logits(normed)).to(states.device)
        fires = (entropy > self.threshold) & self.takes(context).to(states.device)[:, None]
        if layer > self.layers[0]:
            had = context.state[self, "had"].to(states.device)
            fires, had = fires & ~had, fires | had
        else:
            had = fires
        context.state[self, "fires"], context.state[self, "had"] = fires, had
        before = context.state.get((self, "largest"), entropy[:, -1])
        context.state[self, "largest"] = torch.maximum(before.to(states.device), entropy[:, -1])
        context.count(self, layer, fires[:, -1].long(), 1)
        context.measure(self, size=entropy[:, -1:])

    def _mixed(self, context: DecodeContext, layer: int, added: Tensor) -> Tensor:
        """What the feed-forward part adds, mixed with what was looked up in the rows that fire."""
        found: Tensor = context.state.pop((self, "found"))
        fires: Tensor = context.state.pop((self, "fires"))
        rows = added.shape[1]
        sizes = torch.stack([each.float().abs().sum(dim=-1) for each in (added, found)], dim=-1)
        first = context.first_new_row(layer, rows)
        if context.is_prefill:
            real = context.layout_at(layer).real_tokens[:, :first, None].to(sizes.device)
            earlier = (sizes[:, :first] * real).sum(dim=1)
            context.state[self, layer] = _Prompt(fires[:, 0], earlier, earlier + sizes[:, first])
        own = sizes[:, first:]
        is_read_again = context.step == 0 and context.engine.candidates is None
        if is_read_again or not context.reads_on(rows):  # the last prompt token is in the pass
            prompt = _Prompt(*(each.to(sizes.device) for each in context.state[self, layer]))
            own = torch.cat([own[:, :1] + prompt.earlier[:, None], own[:, 1:]], dim=1)
            own = torch.cat([prompt.whole[:, None].expand(-1, first, -1), own], dim=1)
            fires = torch.cat([prompt.fires[:, None].expand(-1, first), fires], dim=1)
        return mix(added, found, own, fires, ratio=self.ratio)


class _Prompt(NamedTuple):
    """What is kept of a prompt for a layer, whose rows before the last stay as they were in the prefill.

    Args:
        fires: whether it fired, `(batch,)` bool.
        earlier: sums of the absolute values of what the feed-forward part adds and of what was looked up, in
            all rows but the last, `(batch, 2)`.
        whole: the same with the last row.
    """

    fires: Tensor
    earlier: Tensor
    whole: Tensor


def top_entropy(logits: Tensor) -> Tensor:
    """Entropy of the ten likeliest tokens, over its greatest value (arXiv 2410.03577).

    Args:
        logits: `(..., vocabulary)`.

    Returns:
        `(...)` in [0, 1].
    """
    shares = logits.topk(_CANDIDATES, dim=-1).values.log_softmax(dim=-1)
    entropy: Tensor = -(shares.exp() * shares).sum(dim=-1) / math.log(_CANDIDATES)
    return entropy


def look_up(states: Tensor, image: Tensor) -> Tensor:
    """Image tokens weighted by their products with states (arXiv 2410.03577).

    Args:
        states: `(batch, rows, hidden)`.
        image: `(batch, tokens, hidden)` float32; zeros where a sample has fewer tokens.

    Returns:
        `(batch, rows, hidden)` float32.
    """
    return states.float() @ image.mT @ image


def mix(added: Tensor, found: Tensor, sizes: Tensor, fires: Tensor, *, ratio: float) -> Tensor:
    """What a feed-forward part adds, with a share of what was looked up at the same size (arXiv 2410.03577).

    Args:
        added: `(batch, rows, hidden)`.
        found: in the same form, float32.
        sizes: sums of the absolute values of the two, in rows that are taken together, `(batch, rows, 2)`.
        fires: rows that are edited, `(batch, rows)` bool; those in which nothing was found are not.
        ratio: the share.

    Returns:
        In the form and dtype of `added`.
    """
    edited = fires & (sizes[..., 1] > 0)
    scale = sizes[..., 0] / torch.where(edited, sizes[..., 1], 1.0)
    mixed = (1 - ratio) * added.float() + ratio * scale[..., None] * found
    return torch.where(edited[..., None], mixed.to(added.dtype), added)

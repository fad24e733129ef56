"""EAH: the head that looks at most image tokens of a shallow layer, in the place of all of its heads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import PreviewsWeights, ReplacesWeights
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import fitted_layers, layer_range
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile

_SECOND_LAYER = (1, 2)


@register_method("eah")
@dataclass(frozen=True, kw_only=True)
class EAH(Method, PreviewsWeights, ReplacesWeights):
    """Enhancing Attention Heads (arXiv 2411.09968): in a shallow layer, all heads attend to the prompt as the
    head does in which most image tokens get much attention.

    The attention that a token gets is the mean over the rows of the prompt after it. The readme of the code
    has the second layer and a threshold of 0.002. The code has 0.0008, `EAH.released()`, in all layers by a
    slip; it also leaves a layer as it is whose best head is the first, and divides by a constant in the place
    of the number of rows, which is not repeated here. New rows are left as they are.

    Args:
        threshold: mean attention that an image token must exceed to count, in [0, 1]; 1 leaves the model as
            it is.
        layers: first edited layer and the one after the last, 0-based, or "all"; None: the second of 32
            layers, at the same depth.
    """

    threshold: float = 0.002
    layers: tuple[int, int] | str | None = None

    info: ClassVar = MethodInfo(
        stage="attention",
        changes="weights of all heads: those of the head that sees most image tokens",
        where="rows of the prompt; layer 1 of 32",
        forwards=1.0,
        provenance="released code",
        paper="2411.09968",
    )
    identity_parameters: ClassVar = {"threshold": 1}
    search_space: ClassVar = {"threshold": Between(0.0005, 0.02, log=True)}

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, 0, 1)
        if self.layers not in (None, "all"):
            object.__setattr__(self, "layers", layer_range(self.layers, "layers"))

    @classmethod
    def released(cls, **parameters: Any) -> Self:
        """What the released code does when it runs; `parameters` go before it."""
        released: dict[str, Any] = {"threshold": 0.0008, "layers": "all"}
        return cls(**released | parameters)

    @classmethod
    def takes_gate(cls) -> bool:
        return False  # of new rows nothing is edited

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        if isinstance(self.layers, str):
            layers = (0, config.get_text_config().num_hidden_layers)
        else:
            layers = fitted_layers(self.layers, _SECOND_LAYER, config)
        return dataclasses.replace(self, layers=layers)

    def begin(self, context: DecodeContext) -> None:
        assert isinstance(self.layers, tuple)
        context.check_attention(type(self).__name__, range(*self.layers))

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        assert isinstance(self.layers, tuple)
        layout, (first, end) = context.layout_at(layer), self.layers
        acts = first <= layer < end and layout.has_image and context.reads_prompt
        return layout.all_rows if acts else None

    def preview(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        assert context.row_positions is not None
        keys = torch.arange(weights.shape[-1], device=weights.device)
        later = keys < context.row_positions[:, None]
        key = (self, layer, "received")
        context.state[key] = context.state.get(key, 0) + torch.where(later, weights, 0.0).sum(dim=2)

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        layout = context.layout_at(layer)
        if (self, layer) not in context.state:
            context.state[self, layer] = self._find(context, layer, layout)
        best, count = context.state[self, layer]
        if context.has_newest_row:
            tokens = layout.image_tokens.to(count.device).sum(dim=1, keepdim=True)
            context.measure(self, size=count / tokens.clamp_min(1))
        edited = spread_head(weights, best, count > 0)
        if context.row_positions is None:  # the last row of the prompt is read again
            return edited
        return torch.where((context.row_positions < layout.length)[:, None], edited, weights)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "share of the image tokens that the chosen head sees"}

    def inactive_reason(self, context: DecodeContext) -> str:
        assert isinstance(self.layers, tuple)
        if not any(context.layout_at(layer).has_image for layer in range(*self.layers)):
            return "no image token is left in the edited layers; choose earlier layers"
        return (
            f"in the edited layers no image token gets a mean attention above {self.threshold:g}; lower "
            "threshold, or choose other layers"
        )

    def _find(self, context: DecodeContext, layer: int, layout: PromptLayout) -> tuple[Tensor, Tensor]:
        """The head that is chosen in a layer, and how many image tokens it sees, `(batch, 1)` each."""
        received: Tensor = context.state.pop((self, layer, "received"))
        rows_after = layout.real_tokens.sum(dim=1, keepdim=True) - 1 - layout.counted_positions
        image = layout.image_tokens & self.takes(context)[:, None]
        device = received.device
        return best_head(received, rows_after.to(device), image.to(device), threshold=self.threshold)


def best_head(
    received: Tensor, rows_after: Tensor, image_tokens: Tensor, *, threshold: float
) -> tuple[Tensor, Tensor]:
    """The head in which most image tokens get much attention, the first of equals (arXiv 2411.09968).

    Args:
        received: sum of the weights in the rows after each token, `(batch, heads, tokens)`.
        rows_after: number of these rows, `(batch, tokens)`.
        image_tokens: `(batch, tokens)` bool.
        threshold: mean that a token has to exceed.

    Returns:
        The head and its number of such tokens, `(batch, 1)` each.
    """
    means = received / rows_after.clamp_min(1)[:, None]
    counts = ((means > threshold) & image_tokens[:, None]).sum(dim=-1)
    best = counts.argmax(dim=1, keepdim=True)
    return best, counts.gather(1, best)


def spread_head(weights: Tensor, head: Tensor, acts: Tensor) -> Tensor:
    """Weights of one head in the place of all.

    Args:
        weights: `(batch, heads, rows, keys)`.
        head: which, `(batch, 1)`.
        acts: whether in this sample, `(batch, 1)` bool.
    """
    index = head[:, :, None, None].expand(-1, -1, *weights.shape[2:])
    return torch.where(acts[:, :, None, None], weights.gather(1, index), weights)

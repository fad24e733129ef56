"""Head Pursuit: heads that write the words of a concept, made louder or turned round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ActsInStaticSteps
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import Edit, StaticEdits
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import check_heads, head_pairs
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range, check_whole
from vlmfix.models.profiles import Profile

# The paper's middle choice: 16 of the 1,024 heads of LLaVA-1.6.
_DEFAULT_SHARE = 16 / 1024


@register_method("head_pursuit")
@dataclass(frozen=True, kw_only=True)
class HeadPursuit(Method, ActsInStaticSteps):
    """Scaling of the heads that write the words of a concept (Head Pursuit, arXiv 2510.21518).

    Steering, and no cure of hallucination: heads that write a concept can be silenced, and made to say it
    where it is not in the image. In all rows of the prompt and all new ones, the outputs of the first heads
    of a ranking are multiplied before the output projection. `vlmfix calibrate --method head_pursuit --words
    WORDS` makes the ranking: for each head, how much of what it writes at the image tokens, over pictures,
    lies in the span of the words' rows of the unembedding. How that share is taken is reconstructed: the
    paper gives no formula.

    Args:
        head_scale: factor of the outputs, in [-10, 10]: the paper's -1 inhibits the concept, 5 enhances it; 1
            leaves the model as it is.
        concept: whose ranking of the checkpoint's profile is used, such as "colours"; None: the only one.
        num_heads: heads from the start of that ranking, 1 or more; None: 1 of 64 of the heads of the model,
            the paper's 16 of 1,024.
        heads: pairs of layer and head, 0-based, instead of a ranking.
    """

    head_scale: float = -1.0
    concept: str | None = None
    num_heads: int | None = None
    heads: tuple[tuple[int, int], ...] | None = None

    info = MethodInfo(
        stage="attention",
        changes="outputs of the heads that write the words of a concept, scaled",
        where="all rows; heads of the profile",
        forwards=1.0,
        provenance="reconstruction",
        paper="2510.21518",
    )
    identity_parameters: ClassVar = {"head_scale": 1}
    search_space: ClassVar = {"head_scale": Between(-1, 5)}
    needs_image: ClassVar = False

    def __post_init__(self) -> None:
        check_range("head_scale", self.head_scale, -10, 10)
        if self.num_heads is not None:
            check_whole("num_heads", self.num_heads, 1)
        if self.concept is not None and (not isinstance(self.concept, str) or not self.concept):
            raise ValueError(f"concept is {self.concept!r}; it must be the name of a ranking of the profile")
        if self.heads is not None:
            object.__setattr__(self, "heads", head_pairs(self.heads))
            for name in ("concept", "num_heads"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{name} is {value!r} and heads says which heads; pass one of them")

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        heads = self.heads
        if heads is None:
            text = config.get_text_config()
            all_heads = text.num_hidden_layers * text.num_attention_heads
            count = self.num_heads or max(1, round(_DEFAULT_SHARE * all_heads))
            ranking = self._ranking(None if profile is None else profile.get("head_pursuit_heads"))
            if len(ranking) < count:
                raise ValueError(
                    f"num_heads is {count}, and the ranking of the profile has {len(ranking)}; it must be 1 "
                    f"to {len(ranking)}"
                )
            heads = head_pairs(ranking[:count])
        check_heads(heads, config)
        return dataclasses.replace(self, heads=heads, concept=None, num_heads=None)

    def _ranking(self, rankings: dict[str, Any] | None) -> list[Any]:
        """Pairs of layer and head of the concept, the first the best."""
        if not rankings:
            raise ValueError(
                "no heads of a concept are known for this checkpoint; find them with 'vlmfix calibrate "
                "--model MODEL --method head_pursuit --words WORDS --images FOLDER', or pass "
                "heads=((layer, head), ...)"
            )
        concept = next(iter(rankings)) if self.concept is None and len(rankings) == 1 else self.concept
        if concept not in rankings:
            raise ValueError(
                f"concept is {self.concept!r}; the profile of this checkpoint has "
                f"{', '.join(sorted(rankings))}"
            )
        return list(rankings[concept])

    def begin(self, context: DecodeContext) -> None:
        layers = [layer for layer in range(context.num_layers) if self._heads_of(layer)]
        context.check_attention(type(self).__name__, layers, all_of_them=True)

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        own = self._heads_of(layer)
        if not own:
            return heads
        key = self, layer, "factors"
        if key not in context.state:
            factors = torch.ones(heads.shape[2], dtype=heads.dtype)
            factors[own] = self.head_scale
            edited = torch.full((heads.shape[0],), len(own) if self.head_scale != 1 else 0)
            context.state[key] = factors[None, :, None].to(heads.device)  # the same in all sequences
            context.state[self, layer, "edited"] = edited.to(context.layout.image_tokens.device)
        context.count(self, layer, context.state[self, layer, "edited"], len(own))
        newest = heads.shape[1] - 1 - context.auxiliary_length
        scaled, (size,) = _scaled(heads, context.state[key].to(heads.device), own=own, newest=newest)
        context.measure(self, size=size)
        return scaled

    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> StaticEdits | None:
        own = self._heads_of(layer)
        if not own:
            return None
        factors, edited = (context.state[self, layer, name] for name in ("factors", "edited"))
        edit = Edit(_scaled, (factors,), {"own": own, "newest": 0})
        return StaticEdits(heads=edit, edited=edited, sites=len(own), sizes=("size",))

    def edit_sites(self, layer: int, heads: int) -> int:
        return len(self._heads_of(layer))

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "norm of a listed head's output, as a share of that of all heads"}

    def _heads_of(self, layer: int) -> list[int]:
        assert self.heads is not None
        return [head for each, head in self.heads if each == layer]


def _scaled(
    heads: Tensor, factors: Tensor, *, own: Sequence[int], newest: int
) -> tuple[Tensor, tuple[Tensor]]:
    """Outputs of heads by their factors, and what the norm of those of some heads has of that of all, in the
    newest row, `(batch, heads)`."""
    row = heads[:, newest].float()
    size = torch.linalg.vector_norm(row[:, own], dim=-1)
    whole = torch.linalg.vector_norm(row.flatten(1), dim=-1, keepdim=True)
    return heads * factors, (size / whole.clamp_min(1e-12),)

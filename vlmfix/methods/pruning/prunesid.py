"""PruneSID: image tokens grouped by principal components, without those that repeat others of their group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlmfix.engine.capabilities import ReadsVisionAttention
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import PruneResult
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import CountedPruning, proportional_shares
from vlmfix.methods.pruning.encoded_blocks import ShownBlock, shown_blocks
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_flag


@register_method("prunesid")
@dataclass(frozen=True, kw_only=True)
class PruneSID(CountedPruning, ReadsVisionAttention):
    """PruneSID (arXiv 2603.09480): every group of like image tokens keeps some, and no near-duplicates.

    Acts before the language model on each image, tile or frame; these share the budget in proportion to their
    tokens, and newline tokens leave. The features of the vision encoder are split into groups by the
    principal component on which a token loads most. In each group tokens follow each other by the attention
    of the class token, without those that are too like an earlier one, and the groups share the budget by
    what is left of them, one token at least. The class token takes the place of the first token that leaves.
    Encoders without a class token (Qwen-VL) are grouped by the tokens of the language model, and the size of
    the component takes the place of the attention.

    The released code draws its components at random; here they are exact. The budget is the number that is
    given, where the code scales it with the size of the image for Qwen-VL, and every token keeps its place,
    where the code moves tokens of LLaVA-NeXT to other places. There are two groups at least, so that budgets
    below 8 work. At larger budgets the threshold is above 1 and no duplicate leaves, as in the code;
    `nms_active` of the edit statistics tells.

    Args:
        kept_tokens: image tokens that stay, class tokens included, 1 or more; prompts with no more of them
            keep them all. None leaves the model as it is.
        keep_class_token: whether the class token of each image or tile with a budget of 2 or more counts and
            stays, where the encoder has one.
    """

    keep_class_token: bool = True

    info = MethodInfo(
        stage="pruning",
        changes="image tokens that repeat others of their group leave",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="released code",
        paper="2603.09480",
        families="with a CLIP encoder and a projector, or an encoder that merges patches (Qwen-VL, GLM-4V)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("keep_class_token", self.keep_class_token)

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> PruneResult | None:
        if layer != 0:
            return None
        assert self.kept_tokens is not None
        assert context.encoder is not None
        image_tokens = context.layout.image_tokens
        kept = self.kept_tokens
        whole = image_tokens.sum(dim=1, keepdim=True) <= kept
        mask = (~image_tokens | whole).to(hidden_states.device)
        states = hidden_states.clone()
        shares = []
        for block in shown_blocks(context, lambda _: kept):
            own = block.positions.to(hidden_states.device)
            picks, active = self._pick(block, hidden_states[block.sample, own])
            mask[block.sample, own[picks]] = True
            shares.append(active)
            feature = block.encoded.class_feature
            if self._takes_class_token(block):
                assert feature is not None
                leaves = torch.ones_like(own, dtype=torch.bool).index_fill(0, picks, False)
                place = own[leaves.int().argmax()]
                mask[block.sample, place] = True
                states[block.sample, place] = context.encoder.project(feature[None])[0].to(states)
        if shares:
            context.state[self, "active"] = sum(shares) / len(shares)
        return PruneResult(mask, states)

    def _takes_class_token(self, block: ShownBlock) -> bool:
        has_one = block.encoded.class_feature is not None
        return self.keep_class_token and has_one and 2 <= block.share < len(block.positions)

    def _pick(self, block: ShownBlock, tokens: Tensor) -> tuple[Tensor, float]:
        """Numbers of the tokens of a block that stay, and what share of its groups lost a duplicate."""
        count, size = block.share, len(tokens)
        if count in (0, size):
            return torch.arange(count, device=tokens.device), 0.0
        patches = count - self._takes_class_token(block)
        features = block.encoded.features
        if features is not None:
            groups = principal_groups(features, min(max(count // 4, 2), patches))
            scores = block.encoded.attention.sum(dim=0)
            threshold = count / 32 * mean_similarity(features)
        else:
            features = tokens
            groups = principal_groups(features, min(max(count // 4, 4), patches))
            scores = groups.loadings
            mean = mean_similarity(features) * (size - 1) / (2 * size) + 1 / size
            threshold = max(18 * count / size, 1.0) * mean
        labels = groups.labels.cpu()
        picked, orders = suppress(alike(features, threshold).cpu(), scores.cpu(), labels)
        taken = share_out(picked, list(map(len, orders)), patches, cap=5 * -(-count // 64))
        picks = torch.cat([order[:take] for order, take in zip(orders, taken, strict=True)])
        active = sum(own < len(order) for own, order in zip(picked, orders, strict=True))
        return picks.to(tokens.device), active / len(orders)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        super().report(context, sums)
        active = context.state.get((self, "active"))
        if active is not None:
            sums.details["nms_active"] = active


class Groups(NamedTuple):
    """Tokens by principal component.

    Args:
        labels: group of each token, `(tokens,)` int64.
        loadings: how much it loads on the component of its group, `(tokens,)` float32.
    """

    labels: Tensor
    loadings: Tensor


def principal_groups(features: Tensor, number: int) -> Groups:
    """Groups of tokens by the principal component on which they load most (arXiv 2603.09480).

    Args:
        features: `(tokens, features)`.
        number: of components; as many as there are tokens or features at most.
    """
    squashed = features.float().sigmoid().T
    components = torch.linalg.svd(squashed - squashed.mean(dim=0), full_matrices=False).Vh
    loadings, labels = components[:number].abs().max(dim=0)
    return Groups(labels, loadings)


def mean_similarity(features: Tensor) -> float:
    """Mean cosine of all pairs of tokens; 0 for a single one. Reads the device.

    Args:
        features: `(tokens, features)`.
    """
    directions = nn.functional.normalize(features.float(), dim=-1)
    size = len(directions)
    return float((directions @ directions.T).triu(1).sum()) / max(1, size * (size - 1) / 2)


def alike(features: Tensor, threshold: float) -> Tensor:
    """Which tokens have a larger cosine than `threshold`, `(tokens, tokens)` bool.

    Args:
        features: `(tokens, features)`.
    """
    directions = nn.functional.normalize(features.float(), dim=-1)
    return directions @ directions.T > threshold


def suppress(similar: Tensor, scores: Tensor, labels: Tensor) -> tuple[list[int], list[Tensor]]:
    """Find near-duplicates within groups, from the largest score on (arXiv 2603.09480).

    Args:
        similar: which tokens are near-duplicates, `(tokens, tokens)` bool; on the CPU, as the others.
        scores: higher is better, `(tokens,)`; of equal ones the first wins.
        labels: group of each token, `(tokens,)` int64.

    Returns:
        Of each group that has tokens: how many are no duplicates, and the numbers of all its tokens, these
        first, by score.
    """
    by_score = scores.argsort(descending=True, stable=True)
    rivals = (similar & (labels[:, None] == labels))[by_score][:, by_score].triu(1)
    picked = torch.ones_like(labels, dtype=torch.bool)
    for row, suppressed in enumerate(rivals):
        if picked[row]:
            picked &= ~suppressed
    sizes, orders = [], []
    for label in labels.unique():
        own = labels[by_score] == label
        sizes.append(int((own & picked).sum()))
        orders.append(torch.cat([by_score[own & picked], by_score[own & ~picked]]))
    return sizes, orders


def share_out(picked: Sequence[int], sizes: Sequence[int], count: int, *, cap: int) -> list[int]:
    """How many tokens each group keeps (arXiv 2603.09480): one, and a share by what was picked of it.

    Args:
        picked: tokens of each group that are no duplicates; of at most `count` groups.
        sizes: tokens of each group, 1 or more.
        count: the budget, below the number of tokens.
        cap: no group has more, unless the budget is not used up.
    """
    upper = [min(cap, own) for own in picked]
    while sum(upper) < count:
        upper = [min(limit + 1, size) for limit, size in zip(upper, sizes, strict=True)]
    shares = proportional_shares(picked, count - len(picked))
    taken = [min(share + 1, limit) for share, limit in zip(shares, upper, strict=True)]
    for group in sorted(range(len(picked)), key=lambda group: -picked[group]):
        taken[group] += min(count - sum(taken), upper[group] - taken[group])
    return taken

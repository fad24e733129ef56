"""Cluster-aggregate: image tokens are clustered, and the mean of each cluster stands for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import PruneResult
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import CountedPruning, select_each
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_whole

ITERATIONS = 20

# Relative difference below which distances to a mean are equal.
_TIE = 1e-4


@register_method("kmeans")
@dataclass(frozen=True, kw_only=True)
class KMeans(CountedPruning):
    """Cluster-aggregate (arXiv 2504.17892): image tokens become the means of their k-means clusters.

    Acts on the image features before the language model; all images of a prompt are one pool. The mean
    of a cluster takes the place and the position of its medoid. A reconstruction: there is no released code,
    and the paper leaves the algorithm open.

    Args:
        kept_tokens: number of clusters, 1 or more; prompts with no more image tokens keep them all. None
            leaves the model as it is.
        seed: of the draws that choose the first centres; the same for every prompt.
    """

    seed: int = 0

    info = MethodInfo(
        stage="pruning",
        changes="image tokens become the means of clusters",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="reconstruction",
        paper="2504.17892",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("seed", self.seed, 0, 2**63 - 1)

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> PruneResult | None:
        if layer != 0:
            return None
        merged = hidden_states.clone()
        image_tokens = context.layout.image_tokens.to(hidden_states.device)

        def select(sample: int, tokens: Tensor) -> Tensor:
            assert self.kept_tokens is not None
            if self.kept_tokens >= len(tokens):
                return torch.ones_like(tokens[:, 0], dtype=torch.bool)
            medoids, means = aggregate(tokens, k_means(tokens, self.kept_tokens, seed=self.seed))
            merged[sample, image_tokens[sample].nonzero().squeeze(1)[medoids]] = means
            return medoids

        return PruneResult(select_each(context.layout, hidden_states, select), merged)


def k_means(tokens: Tensor, clusters: int, *, seed: int) -> Tensor:
    """Cluster by Lloyd's iterations from k-means++ seeds under the Euclidean distance.

    Args:
        tokens: `(tokens, features)`.
        clusters: how many, from 1 to the number of tokens.
        seed: of the draws that choose the first centres; drawn on the CPU, so that devices agree.

    Returns:
        Cluster of each token, `(tokens,)` int64; a cluster can be empty where tokens coincide.
    """
    points = tokens.float()
    centres = _first_centres(points, clusters, seed)
    labels = torch.cdist(points, centres).argmin(dim=1)
    for _ in range(ITERATIONS):
        means, sizes = _means(points, labels, clusters)
        centres = torch.where(sizes > 0, means, centres)
        labels = torch.cdist(points, centres).argmin(dim=1)
    return labels


def aggregate(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each cluster in the place of its medoid, the first of the members nearest to the mean.

    Args:
        tokens: `(tokens, features)`.
        labels: cluster of each token, `(tokens,)` int64.

    Returns:
        Indices of the medoids, ascending, `(clusters,)` int64, and the means of their clusters,
        `(clusters, features)`, in the dtype of `tokens`; clusters without members are left out.
    """
    points = tokens.float()
    found, labels = labels.unique(return_inverse=True)
    means, _ = _means(points, labels, len(found))
    is_member = labels == torch.arange(len(found), device=points.device)[:, None]
    to_mean = (points - means[labels]).norm(dim=1).where(is_member, torch.inf)
    # The two members of a pair are as near as each other, but for rounding; the first one wins.
    is_nearest = to_mean <= to_mean.amin(dim=1, keepdim=True) * (1 + _TIE)
    medoids, order = is_nearest.int().argmax(dim=1).sort()
    return medoids, means[order].to(tokens.dtype)


def _first_centres(points: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means++: each next centre is drawn in proportion to its squared distance to the nearest one."""
    # An exponential race draws in proportion to the chances with the same numbers on every device.
    race = torch.empty(clusters, len(points)).exponential_(generator=torch.Generator().manual_seed(seed))
    centres = [points[race[0].argmin()]]
    chances = points.new_full((len(points),), torch.inf)
    for times in race[1:].to(points.device):
        chances = torch.minimum(chances, (points - centres[-1]).square().sum(dim=1))
        centres.append(points[(chances / times).argmax()])
    return torch.stack(centres)


def _means(points: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Means of the clusters, `(clusters, features)`, zero without members; and sizes, `(clusters, 1)`."""
    members = nn.functional.one_hot(labels, clusters).to(points.dtype)
    sizes = members.sum(dim=0)[:, None]
    return (members.T @ points) / sizes.clamp_min(1), sizes

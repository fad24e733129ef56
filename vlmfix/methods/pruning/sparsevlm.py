"""SparseVLM: words about the image rate its tokens; some of those dropped come back in clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.state import PruneResult
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import (
    TokenPruning,
    as_stages,
    check_stages,
    keep_top,
    stage_layers,
)
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_choice, check_range
from vlmfix.models.profiles import Profile

# Of the released code, for LLaVA-1.5-7B: image tokens kept at each stage, by version and budget.
_KEPT_TOKENS = {
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
# Version 1.0 works the counts out: scale and bias by budget.
_RANK_SCALES = {192: (13.5, 0.0), 128: (9.0, 6.0), 64: (0.8, 0.0)}
_PRUNE_LAYERS = {"1.0": (2, 6, 15, 19), "1.5": (2, 6, 15), "2.0": (2, 6, 15)}

# Share of the dropped tokens that is recycled, and how many of these make one cluster.
_RECYCLED_SHARE = 0.3
_TOKENS_PER_CLUSTER = 10


@register_method("sparsevlm")
@dataclass(frozen=True, kw_only=True)
class SparseVLM(TokenPruning):
    """SparseVLM and SparseVLM+ (arXiv 2410.04417): the words about the image decide which tokens of it stay.

    Words after the image (of a chat, in the last turn) that draw more of it than others, by their input
    embeddings, are raters. After each listed layer the image tokens to which the raters attend most go
    on. In versions 1.0 and 1.5 the best of the dropped tokens are merged in clusters; the mean takes the
    place of the cluster's centre, where the released code appends it after the kept tokens and numbers
    the positions anew. A prompt without a word after its image is left as it is.

    Args:
        version: "1.5", fixed counts with merging; "1.0", counts from the rank of the raters' attention, with
            merging, and all tokens stay where this rank is their number; "2.0", called SparseVLM+: fixed
            counts, no merging, the pull of nearness divided out, and only the heads that look most at the
            image.
        budget: mean image tokens per layer of a published schedule: 192, 128, 96 or 64 (version 1.0: 192, 128
            or 64). Unless `kept_tokens` is given.
        prune_layers: layers after which tokens leave, ascending, 0-based; None: the published ones, for
            LLaVA-1.5-7B only. An empty one leaves the model as it is.
        kept_tokens: image tokens that stay at each of these, without merged ones; None: of the budget, for
            LLaVA-1.5-7B only. A stage with no more image tokens keeps them all; the released code of
            version 2.0 drops one there.
        gravity_heads: heads that count in version 2.0.
        gravity_floor: lowest pull that divides in version 2.0, as a share of that at distance 0, in (0, 1].
    """

    version: str = "1.5"
    budget: int = 192
    prune_layers: tuple[int, ...] | None = None
    kept_tokens: tuple[int, ...] | None = None
    gravity_heads: int = 14
    gravity_floor: float = 0.05

    prunes_after = True

    info = MethodInfo(
        stage="pruning",
        changes="image tokens that words about the image ignore leave; some come back merged",
        where="prefill, after layers 2, 6, 15",
        forwards=1.0,
        provenance="released code",
        paper="2410.04417",
    )
    identity_parameters: ClassVar = {"prune_layers": ()}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("version", self.version, tuple(_PRUNE_LAYERS))
        budgets = _RANK_SCALES if self.version == "1.0" else _KEPT_TOKENS[self.version]
        if type(self.budget) is not int or self.budget not in budgets:
            raise ValueError(
                f"budget is {self.budget!r}; version {self.version} has schedules for "
                f"{', '.join(map(str, budgets))}"
            )
        if type(self.gravity_heads) is not int or self.gravity_heads < 1:
            raise ValueError(
                f"gravity_heads is {self.gravity_heads!r}; it must be a number of heads, 1 or more"
            )
        check_range("gravity_floor", self.gravity_floor, 1e-3, 1)
        if self.prune_layers is not None:
            object.__setattr__(self, "prune_layers", stage_layers(self.prune_layers))
        if self.kept_tokens is not None:
            object.__setattr__(self, "kept_tokens", as_stages(self.kept_tokens))
            self._check_kept_tokens(self.kept_tokens)

    def _check_kept_tokens(self, counts: tuple[int, ...]) -> None:
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"kept_tokens is {counts!r}; it must hold numbers of image tokens, 0 or more")
        if self.version == "1.0":
            raise ValueError(
                f"kept_tokens is {counts!r}, but version 1.0 works the counts out; set budget, or another "
                "version"
            )
        check_stages(self.layers, "kept_tokens", counts)

    @property
    def layers(self) -> tuple[int, ...]:
        """`prune_layers`, or the published ones."""
        return _PRUNE_LAYERS[self.version] if self.prune_layers is None else self.prune_layers

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        text = config.get_text_config()
        takes_counts = self.kept_tokens is None and self.version != "1.0"
        if (self.prune_layers is None or takes_counts) and not _is_llava_7b(config):
            raise ValueError(
                "the schedules of SparseVLM are for LLaVA-1.5-7B, with 576 image tokens and 32 layers; for "
                f"this {config.model_type} of {text.num_hidden_layers} layers pass prune_layers"
                + ("" if self.version == "1.0" else " and kept_tokens")
            )
        if takes_counts:
            check_stages(self.layers, "budget", _KEPT_TOKENS[self.version][self.budget])
        if self.layers and self.layers[-1] > text.num_hidden_layers - 2:
            raise ValueError(
                f"prune_layers has {self.layers[-1]}; tokens of this model can leave after layers 0 to "
                f"{text.num_hidden_layers - 2}"
            )
        if self.version == "2.0" and self.gravity_heads > text.num_attention_heads:
            raise ValueError(
                f"gravity_heads is {self.gravity_heads}, but this model has {text.num_attention_heads} heads"
                "; pass a smaller number"
            )
        return super().resolve(config, profile)

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> None:
        if layer != 0 or not context.layout.has_image:
            return
        text_tokens = self.asking_text(context, layer).to(hidden_states.device)
        image_tokens = context.layout.image_tokens.to(hidden_states.device)
        relevance = text_relevance(hidden_states, text_tokens, image_tokens)
        context.state[self, "raters"] = choose_raters(relevance, text_tokens)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        if not context.is_prefill or layer not in self.layers or not context.layout_at(layer).has_image:
            return None
        if (self, layer) not in context.state:
            context.state[self, layer] = Rows.where(
                context.layout_at(layer).gather(context.state[self, "raters"])
            )
        rows: Rows = context.state[self, layer]
        return rows

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        rows: Rows = context.state[self, layer].to(weights.device)
        image_tokens = context.layout_at(layer).image_tokens.to(weights.device)
        if self.version == "2.0":
            weights = self._gravity_free(context, weights, rows, image_tokens)
        context.state[self, "scores"] = rater_scores(weights, rows.mask)
        if self.version == "1.0":
            scale, bias = _RANK_SCALES[self.budget]
            samples = zip(weights.mean(dim=1), rows.mask, image_tokens, strict=True)
            counts = [
                adaptive_count(attention[raters][:, image], scale=scale, bias=bias)
                for attention, raters, image in samples
            ]
            context.state[self, "counts"] = torch.tensor(counts, device=weights.device)

    def _gravity_free(
        self, context: DecodeContext, weights: Tensor, rows: Rows, image_tokens: Tensor
    ) -> Tensor:
        assert context.position_embeddings is not None
        cos, sin = (
            each[:, : image_tokens.shape[1]].to(weights.device) for each in context.position_embeddings
        )
        pull = gravity(cos[:, rows.index], sin[:, rows.index], cos, sin)
        floor = self.gravity_floor * cos.shape[-1] ** 0.5
        return gravity_free(weights, pull, rows.mask, image_tokens, heads=self.gravity_heads, floor=floor)

    def choose(
        self, context: DecodeContext, layer: int, hidden_states: Tensor
    ) -> Tensor | PruneResult | None:
        if layer - 1 not in self.layers:
            return None
        scores: Tensor = context.state[self, "scores"]
        image_tokens = context.layout_at(layer).image_tokens.to(scores.device)
        mask = keep_top(scores, image_tokens, self._counts(context, layer - 1))
        if self.version == "2.0":
            return mask
        merged = hidden_states.clone()
        for sample, dropped in enumerate(image_tokens & ~mask):
            places = dropped.nonzero().squeeze(1)
            if len(places):
                slots, means = recycle(hidden_states[sample, places], scores[sample, places])
                mask[sample, places[slots]] = True
                merged[sample, places[slots]] = means
        return PruneResult(mask, merged)

    def _counts(self, context: DecodeContext, layer: int) -> Tensor | int:
        if self.version == "1.0":
            counts: Tensor = context.state[self, "counts"]
            return counts
        kept = _KEPT_TOKENS[self.version][self.budget] if self.kept_tokens is None else self.kept_tokens
        return kept[self.layers.index(layer)]


def text_relevance(embeddings: Tensor, text_tokens: Tensor, image_tokens: Tensor) -> Tensor:
    """How much of the image each text token draws (arXiv 2410.04417, section 3.2).

    Every image token is distributed over the text tokens by a softmax of plain dot products; a text token
    has the mean of what it gets.

    Args:
        embeddings: input embeddings with the image features in them, `(batch, tokens, hidden)`.
        text_tokens: candidates after the image, `(batch, tokens)` bool.
        image_tokens: `(batch, tokens)` bool.

    Returns:
        `(batch, tokens)` float32, summing to 1 over the text tokens of a sample; 0 elsewhere.
    """
    columns = text_tokens.any(dim=0).nonzero().squeeze(1)
    embeddings = embeddings.float()
    products = embeddings @ embeddings[:, columns].transpose(1, 2)
    lowest = torch.finfo(products.dtype).min
    shares = products.masked_fill(~text_tokens[:, None, columns], lowest).softmax(dim=-1)
    image = image_tokens[..., None].float()
    means = (shares * image).sum(dim=1) / image.sum(dim=1).clamp_min(1)
    relevance = means.new_zeros(text_tokens.shape).index_copy(1, columns, means)
    return relevance.masked_fill(~text_tokens, 0.0)


def choose_raters(relevance: Tensor, text_tokens: Tensor) -> Tensor:
    """Text tokens of more than average relevance; all of a sample where none stands out.

    Args:
        relevance: see `text_relevance`, `(batch, tokens)`.
        text_tokens: `(batch, tokens)` bool.

    Returns:
        `(batch, tokens)` bool.
    """
    average = relevance.sum(dim=1, keepdim=True) / text_tokens.sum(dim=1, keepdim=True).clamp_min(1)
    raters = text_tokens & (relevance > average)
    return torch.where(raters.any(dim=1, keepdim=True), raters, text_tokens)


def rater_scores(weights: Tensor, raters: Tensor) -> Tensor:
    """Attention of the raters to every key, averaged over heads and raters.

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.
        raters: which rows count, `(batch, rows)` bool.

    Returns:
        `(batch, keys)`.
    """
    rows = raters[:, :, None].to(weights.dtype)
    return (weights.mean(dim=1) * rows).sum(dim=1) / rows.sum(dim=1).clamp_min(1)


def adaptive_count(attention: Tensor, *, scale: float, bias: float) -> int:
    """Number of tokens that version 1.0 keeps: `int(rank * scale + bias)`.

    All of them where the rank is their number, as in the released code.

    Args:
        attention: head mean of one sample's raters on its image tokens, `(raters, image tokens)`.
        scale: kept tokens per rank.
        bias: kept tokens at rank zero.
    """
    rank, present = int(torch.linalg.matrix_rank(attention.float())), attention.shape[1]
    return present if rank == present else int(rank * scale + bias)


def gravity(query_cos: Tensor, query_sin: Tensor, key_cos: Tensor, key_sin: Tensor) -> Tensor:
    """What the rotary embedding alone makes of a distance: `<RoPE_i(1), RoPE_j(1)> / sqrt(head_dim)`.

    Args:
        query_cos: cosines of the model's rotary embedding at the rows, `(batch, rows, head_dim)`.
        query_sin: sines, likewise.
        key_cos: cosines at the keys, `(batch, keys, head_dim)`.
        key_sin: sines, likewise.

    Returns:
        `(batch, rows, keys)` float32; the square root of head_dim at distance 0, possibly negative far away.
    """
    turned = query_cos.float() @ key_cos.float().transpose(-1, -2)
    turned = turned + query_sin.float() @ key_sin.float().transpose(-1, -2)
    scaled: Tensor = turned / query_cos.shape[-1] ** 0.5
    return scaled


def gravity_free(
    weights: Tensor, pull: Tensor, raters: Tensor, image_tokens: Tensor, *, heads: int, floor: float
) -> Tensor:
    """Attention without the pull of nearness, in the heads that look most at the image (SparseVLM+).

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.
        pull: see `gravity`, `(batch, rows, keys)`.
        raters: which rows count, `(batch, rows)` bool.
        image_tokens: `(batch, keys)` bool.
        heads: how many heads to keep.
        floor: lowest gravity that divides; the paper does not say what happens at zero and below.

    Returns:
        `(batch, heads kept, rows, keys)`.
    """
    freed = weights / pull.clamp_min(floor)[:, None]
    on_image = freed * (raters[:, :, None] & image_tokens[:, None])[:, None].to(freed.dtype)
    best = on_image.sum(dim=(2, 3)).argsort(dim=1, descending=True, stable=True)[:, :heads]
    return freed.take_along_dim(best[:, :, None, None], dim=1)


class DensityPeaks(NamedTuple):
    """Clusters around points that are dense and far from denser ones.

    Args:
        density: `exp(-mean squared distance)` to the nearest points, `(points,)`.
        separation: distance to the nearest denser point; the largest distance of all for the densest one,
            `(points,)`.
        centres: indices of the points that the clusters are built around, best first, `(clusters,)`.
        labels: position in `centres` of each point's cluster, `(points,)`.
    """

    density: Tensor
    separation: Tensor
    centres: Tensor
    labels: Tensor


def density_peaks(points: Tensor, clusters: int, *, neighbours: int) -> DensityPeaks:
    """Cluster by density peaks with nearest neighbours.

    Of equally dense points the first one counts as denser, where the released code adds random noise.

    Args:
        points: `(points, features)`.
        clusters: how many, at most the number of points.
        neighbours: nearest points, itself included, that make the density of a point.
    """
    points = points.float()
    number, features = points.shape
    exact = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distances = exact / features**0.5
    nearest = distances.topk(min(neighbours, number), largest=False).values
    density = nearest.square().mean(dim=1).neg().exp()
    order = torch.arange(number, device=points.device)
    is_denser = (density[None] > density[:, None]) | (
        (density[None] == density[:, None]) & (order[None] < order[:, None])
    )
    separation = distances.where(is_denser, distances.max()).amin(dim=1)
    centres = (density * separation).argsort(descending=True, stable=True)[:clusters]
    labels = distances[:, centres].argmin(dim=1)
    labels[centres] = torch.arange(len(centres), device=points.device)
    return DensityPeaks(density, separation, centres, labels)


def recycle(tokens: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the best of the dropped tokens into a few (arXiv 2410.04417, section 3.3).

    Args:
        tokens: the dropped tokens of one sample, `(tokens, hidden)`, at least one.
        scores: what they were dropped by, `(tokens,)`.

    Returns:
        Indices of the tokens that stay as centres, ascending, `(clusters,)`, and the means that take their
        places, `(clusters, hidden)`, in the dtype of `tokens`.
    """
    best = int(_RECYCLED_SHARE * len(tokens)) + 1
    clusters = best // _TOKENS_PER_CLUSTER + 1
    chosen = scores.argsort(descending=True, stable=True)[:best]
    members = tokens[chosen].float()
    peaks = density_peaks(members, clusters, neighbours=clusters)
    assigned = nn.functional.one_hot(peaks.labels, clusters).float()
    means = (assigned.T @ members) / assigned.sum(dim=0)[:, None]
    slots, order = chosen[peaks.centres].sort()
    return slots, means[order].to(tokens.dtype)


def _is_llava_7b(config: PreTrainedConfig) -> bool:
    if config.model_type != "llava" or config.get_text_config().num_hidden_layers != 32:
        return False
    return bool((config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 576)

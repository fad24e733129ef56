"""Subspaces of hidden states: main directions of weighted image states, and of text outside them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_EPS = 1e-6
# Directions whose squared singular value is below this share of the largest are rounding.
_ROUNDING = 1e-10


class ImageStates(NamedTuple):
    """The image states of some sequences, padded with zeros.

    Args:
        states: `(batch, tokens, hidden)` float32.
        known: which are no padding, `(batch, tokens)` bool.
        products: of each two of them, `(batch, tokens, tokens)`.
    """

    states: Tensor
    known: Tensor
    products: Tensor

    @classmethod
    def of(cls, states: Tensor, known: Tensor) -> ImageStates:
        """From states that are 0 at padding."""
        return cls(states, known, _products(states))

    def weights(self, state: Tensor, temperature: float) -> Tensor:
        """By how like a hidden state they are, `(batch, tokens)`; 0 at padding.

        Args:
            state: `(batch, hidden)`.
        """
        norms = (self.states.norm(dim=-1) + _EPS) * (state.norm(dim=-1, keepdim=True) + _EPS)
        likeness = torch.einsum("bnd,bd->bn", self.states, state) / norms
        scores: Tensor = (likeness / temperature).masked_fill(~self.known, -torch.inf)
        return scores.softmax(dim=-1).nan_to_num(0.0)  # of sequences without an image

    def span(self, state: Tensor, *, rank: int, temperature: float) -> Tensor:
        """Main directions of the weighted states around their weighted mean, `(batch, hidden, rank)`.

        Args:
            state: to which they are compared, `(batch, hidden)`.
        """
        weights = self.weights(state, temperature)
        root = weights.sqrt()
        exact = weights.to(self.products.dtype)
        means = torch.einsum("bmn,bn->bm", self.products, exact)
        total = (means * exact).sum(dim=1)[:, None, None]
        centred = self.products - means[:, :, None] - means[:, None] + total
        centred = centred * root[:, :, None] * root[:, None]
        rows = root[..., None] * (self.states - torch.einsum("bn,bnd->bd", weights, self.states)[:, None])
        return main_directions(rows, centred, rank)


def text_span(texts: Tensor, known: Tensor, evidence: Tensor, *, rank: int) -> Tensor:
    """Main directions of past text outside the span of image states, `(batch, hidden, rank)`.

    Args:
        texts: `(batch, tokens, hidden)`; 0 at padding.
        known: `(batch, tokens)` bool.
        evidence: orthonormal directions of that span, `(batch, hidden, rank)`.
    """
    outside = texts - (texts @ evidence) @ evidence.mT
    count = known.sum(dim=1).clamp_min(1)[:, None, None]
    rows = (outside - outside.sum(dim=1, keepdim=True) / count) * known[..., None]
    return main_directions(rows, _products(rows), rank)


def main_directions(rows: Tensor, products: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of matrices, `(batch, hidden, rank)`; 0 in place of those of no
    spread.

    Args:
        rows: `(batch, rows, hidden)`.
        products: of each two rows, `(batch, rows, rows)`.
    """
    rank = min(rank, *rows.shape[1:])
    if rank == 0:
        return rows.new_zeros(len(rows), rows.shape[2], 0)
    squares, vectors = (each[..., -rank:] for each in torch.linalg.eigh(products))
    spread = squares > (squares[:, -1:] * _ROUNDING).clamp_min(_ROUNDING**2)
    scale = torch.where(spread, squares, 1.0).rsqrt() * spread
    mixed: Tensor = rows.mT @ (vectors * scale[:, None]).to(rows.dtype)
    return mixed


def _products(rows: Tensor) -> Tensor:
    """Products of each two rows, in the precision that their eigenvectors want."""
    exact = rows if rows.device.type == "mps" else rows.double()
    return exact @ exact.mT

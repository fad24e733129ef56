"""Subspaces of hidden states: main directions of weighted image states, and of text outside them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_EPS = 1e-6
# Directions whose squared singular value is below this share of the largest are rounding.
_ROUNDING = 1e-10

# Of so many rows or more, directions are improved from those of the step before: that many of them, by so
# many products with the matrix, unless what is left is more than this share of the largest square.
_MANY, _KEPT, _PRODUCTS, _LEFT = 128, 24, 8, 1e-7


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

    def span(
        self, state: Tensor, *, rank: int, temperature: float, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Main directions of the weighted states around their weighted mean, `(batch, hidden, rank)`, and
        what to start from in the next step, see `main_directions`.

        Args:
            state: to which they are compared, `(batch, hidden)`.
            start: from the step before; None: there was none.
        """
        weights = self.weights(state, temperature)
        root = weights.sqrt()
        exact = weights.to(self.products.dtype)
        means = torch.einsum("bmn,bn->bm", self.products, exact)
        total = (means * exact).sum(dim=1)[:, None, None]
        centred = self.products - means[:, :, None] - means[:, None] + total
        centred = centred * root[:, :, None] * root[:, None]
        rows = root[..., None] * (self.states - torch.einsum("bn,bnd->bd", weights, self.states)[:, None])
        return main_directions(rows, centred, rank, start)


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
    return main_directions(rows, _products(rows), rank)[0]


def main_directions(
    rows: Tensor, products: Tensor, rank: int, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The first right singular vectors of matrices, `(batch, hidden, rank)`; 0 in place of those of no
    spread. And their first left ones, to start from with other matrices that are nearly the same.

    Args:
        rows: `(batch, rows, hidden)`.
        products: of each two rows, `(batch, rows, rows)`.
        start: left singular vectors of matrices that are nearly the same, `(batch, rows, any)`.
    """
    rank = min(rank, *rows.shape[1:])
    if rank == 0:
        return rows.new_zeros(len(rows), rows.shape[2], 0), products[..., :0]
    found = None if start is None or rows.shape[1] < _MANY else _improved(products, start, rank)
    squares, vectors = found or torch.linalg.eigh(products)
    kept = vectors[..., -max(rank, _KEPT) :]
    squares, vectors = squares[..., -rank:], vectors[..., -rank:]
    spread = squares > (squares[:, -1:] * _ROUNDING).clamp_min(_ROUNDING**2)
    scale = torch.where(spread, squares, 1.0).rsqrt() * spread
    mixed: Tensor = rows.mT @ (vectors * scale[:, None]).to(rows.dtype)
    return mixed, kept


def _improved(products: Tensor, start: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """The last eigenvalues and eigenvectors of matrices, by powers of them; None where that is not exact yet.

    A decomposition of a whole matrix costs a decode step half of its time.
    """
    block = start.to(products)
    for _ in range(_PRODUCTS // 2):
        block = torch.linalg.qr(products @ (products @ block)).Q
    squares, turns = torch.linalg.eigh(block.mT @ products @ block)
    vectors = block @ turns
    last, those = squares[:, None, -rank:], vectors[..., -rank:]
    left = (products @ those - those * last).norm(dim=1).amax(dim=1)
    exact = (left <= _LEFT * squares[:, -1]).all()
    return (squares, vectors) if bool(exact) else None


def _products(rows: Tensor) -> Tensor:
    """Products of each two rows, in the precision that their eigenvectors want."""
    exact = rows if rows.device.type == "mps" else rows.double()
    return exact @ exact.mT

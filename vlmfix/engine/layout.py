"""Where the parts of a prompt lie: image tokens, the text after them, padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlmfix.errors import UnsupportedError


@dataclass(frozen=True, eq=False)
class Rows:
    """Query positions of a prompt whose attention is computed explicitly.

    Args:
        index: positions that at least one sample wants, ascending, `(rows,)` int64.
        mask: which sample wants which of them, `(batch, rows)` bool.
    """

    index: Tensor
    mask: Tensor

    @classmethod
    def where(cls, wanted: Tensor) -> Rows:
        """Rows of the positions that are True in `wanted`, `(batch, prompt)` bool. Reads the device once."""
        index = wanted.any(dim=0).nonzero().squeeze(1)
        return cls(index=index, mask=wanted[:, index])

    def __or__(self, other: Rows) -> Rows:
        """The positions of either."""
        index = torch.cat([self.index, other.index]).unique()
        union = Rows(index, self.mask.new_zeros(self.mask.shape[0], len(index)))
        return Rows(index, self.mask_in(union) | other.mask_in(union))

    def mask_in(self, rows: Rows) -> Tensor:
        """`mask` over the positions of `rows`, which hold all of these: `(batch, len(rows.index))`."""
        if rows is self:
            return self.mask
        mask = torch.zeros_like(rows.mask)
        mask[:, torch.searchsorted(rows.index, self.index)] = self.mask
        return mask

    def to(self, device: torch.device) -> Rows:
        """The same rows on `device`; itself when they are there already."""
        if self.index.device == device:
            return self
        return Rows(self.index.to(device), self.mask.to(device))


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """Boolean masks over the tokens of a prompt, one row a sample; all `(batch, tokens)`.

    In the layers after a pruning the tokens are those that were kept (`select`); masks and positions are
    theirs.

    Args:
        image_tokens: the placeholders that features of images and videos replace; they need not be
            contiguous.
        real_tokens: everything but padding.
        positions: where the tokens stand in the whole prompt, int64; None: these are all of it.
        seen: which of these tokens each of them sees, `(batch, tokens, tokens)` bool, where some see later
            ones (image tokens of Gemma 3, all prompt tokens of PaliGemma); None: those up to itself.
    """

    image_tokens: Tensor
    real_tokens: Tensor
    positions: Tensor | None = None
    seen: Tensor | None = None
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @classmethod
    def from_image_tokens(cls, image_tokens: Tensor, attention_mask: Tensor | None) -> PromptLayout:
        """Build the layout of a left-padded prompt.

        Args:
            image_tokens: `(batch, prompt)` bool.
            attention_mask: `(batch, prompt)`, zero at padding; None without padding.

        Raises:
            UnsupportedError: the mask is a prepared 4-D one, of another length, or pads on the right.
        """
        if attention_mask is None:
            return cls(image_tokens, torch.ones_like(image_tokens))
        if not isinstance(attention_mask, Tensor) or attention_mask.shape != image_tokens.shape:
            got = (
                tuple(attention_mask.shape)
                if isinstance(attention_mask, Tensor)
                else type(attention_mask).__name__
            )
            raise UnsupportedError(
                f"attention_mask is {got}, but a method needs the 2-D mask of the whole prompt, "
                f"{tuple(image_tokens.shape)}; pass what the processor returns"
            )
        real_tokens = attention_mask.bool()
        if not bool(real_tokens[:, -1].all()):
            raise UnsupportedError(
                "the prompts are padded on the right; generation needs padding_side='left' in the processor "
                "call"
            )
        return cls(image_tokens & real_tokens, real_tokens)

    @property
    def batch_size(self) -> int:
        """Number of sequences: samples times beams, as the model sees them."""
        return self.image_tokens.shape[0]

    @property
    def length(self) -> int:
        """Number of prompt positions, padding included."""
        return self.image_tokens.shape[1]

    @cached_property
    def has_image(self) -> bool:
        """Whether any sample has an image token."""
        return bool(self.image_tokens.any())

    @cached_property
    def has_padding(self) -> bool:
        """Whether any position is padding."""
        return not bool(self.real_tokens.all())

    @property
    def counted_positions(self) -> Tensor:
        """Positions counted from the first real token of each sample, `(batch, tokens)`; 0 at padding."""
        return (self.real_tokens.cumsum(dim=1) - 1).clamp_min(0)

    @cached_property
    def after_last_image(self) -> Tensor:
        """Text after the last image token; all False in a sample without an image."""
        images_ahead = self.image_tokens.flip(1).cumsum(1).flip(1)
        return (images_ahead == 0) & self.image_tokens.any(dim=1, keepdim=True) & self.real_tokens

    @cached_property
    def before_first_image(self) -> Tensor:
        """Tokens before the first image token; all False in a sample without an image."""
        no_image_yet = self.image_tokens.cumsum(1) == 0
        return no_image_yet & self.image_tokens.any(dim=1, keepdim=True) & self.real_tokens

    @cached_property
    def rows_after_last_image(self) -> Rows:
        """`after_last_image` as rows, computed once a prompt."""
        return Rows.where(self.after_last_image)

    @cached_property
    def all_rows(self) -> Rows:
        """`real_tokens` as rows, computed once a prompt."""
        return Rows.where(self.real_tokens)

    @cached_property
    def no_row(self) -> Rows:
        """None of the prompt; generated rows alone, which always belong to those that a method wants."""
        device = self.image_tokens.device
        return Rows(torch.empty(0, dtype=torch.int64, device=device), self.image_tokens[:, :0])

    @cached_property
    def last_row(self) -> Rows:
        """The last position of every sample, which predicts the first new token."""
        index = torch.tensor([self.length - 1], device=self.image_tokens.device)
        return Rows(index, self.real_tokens[:, -1:])

    def select(self, kept: Tensor) -> tuple[PromptLayout, Tensor]:
        """The layout of the kept tokens. Reads the device once.

        Samples that keep fewer tokens than others get padding on the left: tokens that were not kept and that
        no query sees any more.

        Args:
            kept: `(batch, tokens)` bool.

        Returns:
            The narrower layout, and where its tokens stand in this one, `(batch, kept tokens)`.
        """
        kept = kept & self.real_tokens
        count = int(kept.sum(dim=1).max())
        index = kept.int().argsort(dim=1, stable=True)[:, self.length - count :]
        positions = index if self.positions is None else self.positions.gather(1, index)
        real_tokens = kept.gather(1, index)
        narrower = PromptLayout(
            self.image_tokens.gather(1, index) & real_tokens,
            real_tokens,
            positions,
            None if self.seen is None else pairs_at(self.seen, index) & real_tokens[:, None],
        )
        for name in ("before_first_image", "after_last_image"):  # also where no image token is left
            vars(narrower)[name] = getattr(self, name).gather(1, index) & real_tokens
        return narrower, index

    def repeat(self, copies: int) -> PromptLayout:
        """The layout of so many copies of each whole prompt."""
        if copies == 1:
            return self
        image_tokens, real_tokens = (
            each.repeat_interleave(copies, dim=0) for each in (self.image_tokens, self.real_tokens)
        )
        return PromptLayout(image_tokens, real_tokens)

    def takes_over(self, mask: Any) -> None:
        """Let tokens see what the model lets them see by a mask that it prepared ahead of its decoder.

        Args:
            mask: `(batch, 1, tokens, tokens)`, boolean or additive, or one for each type of layer; anything
                else says nothing that padding does not say.

        Raises:
            UnsupportedError: layers of different types let them see different tokens.
        """
        given = list(mask.values()) if isinstance(mask, Mapping) else [mask]
        if not any(_is_prepared(each) for each in given):
            return
        plain = self.real_tokens[:, None] & self.real_tokens.new_ones(self.length, self.length).tril()
        masks = [each if _is_prepared(each) else plain[:, None] for each in given]
        seen = [each[:, 0] if each.dtype == torch.bool else each[:, 0] == 0 for each in masks]
        real = self.real_tokens[:, :, None]
        if any(not torch.equal(each & real, seen[0] & real) for each in seen[1:]):
            raise UnsupportedError(
                "layers of this model let the tokens of a prompt see different ones; methods need a prompt "
                "that is shorter than the window of every layer"
            )
        object.__setattr__(self, "seen", seen[0].to(self.real_tokens.device))

    @cached_property
    def sees_ahead(self) -> bool:
        """Whether all tokens of the prompts see each other, text too, as in PaliGemma."""
        if self.seen is None:
            return False
        first = self.real_tokens.int().argmax(dim=1)
        rows = torch.arange(self.batch_size, device=first.device)
        return bool(self.seen[rows, first, -1].all()) and self.length > 1

    def part(self, rows: slice | Tensor) -> PromptLayout:
        """The layout of some samples, a slice or their numbers, with the padding of all."""
        positions = None if self.positions is None else self.positions[rows]
        seen = None if self.seen is None else self.seen[rows]
        part = PromptLayout(self.image_tokens[rows], self.real_tokens[rows], positions, seen)
        for name in ("before_first_image", "after_last_image"):  # also where no image token is left
            vars(part)[name] = getattr(self, name)[rows]
        return part

    def with_others(self, other: PromptLayout) -> PromptLayout:
        """The layout of these prompts and of others, which are as long with their padding.

        Raises:
            ValueError: they are not.
        """
        if self.length != other.length:
            raise ValueError(f"prompts of {self.length} and of {other.length} tokens")
        of_both = [(getattr(self, name), getattr(other, name)) for name in ("positions", "seen")]
        if any((one is None) != (two is None) for one, two in of_both):
            raise ValueError("prompts of one run were pruned, or see ahead, and those of the other do not")
        positions, seen = (None if one is None else torch.cat([one, two]) for one, two in of_both)
        found = PromptLayout(
            torch.cat([self.image_tokens, other.image_tokens]),
            torch.cat([self.real_tokens, other.real_tokens]),
            positions,
            seen,
        )
        for name in ("before_first_image", "after_last_image"):  # also where no image token is left
            vars(found)[name] = torch.cat([getattr(self, name), getattr(other, name)])
        return found

    def gather(self, values: Tensor) -> Tensor:
        """Of `values` over the whole prompt, `(batch, prompt)`, those of these tokens, `(batch, tokens)`."""
        return values if self.positions is None else values.gather(1, self.positions.to(values.device))

    def over_keys(self, tokens: Tensor, keys: int, *, generated: Tensor | None = None) -> Tensor:
        """A mask over these tokens as one over all keys.

        Args:
            tokens: `(batch, tokens)` bool.
            keys: number of keys, these tokens and the generated ones after them.
            generated: the mask of the latter by sample, `(batch,)` bool; None: they are all False.

        Returns:
            `(batch, keys)` bool.
        """
        rest = tokens.new_zeros(self.batch_size, keys - self.length)
        return torch.cat([tokens, rest if generated is None else rest | generated[:, None]], dim=1)

    def key_mask(self, keys: int, device: torch.device) -> Tensor | None:
        """Which of `keys` keys, prompt and generated, are no padding, `(batch, keys)`; None: all."""
        if not self.has_padding:
            return None
        return self._cached_mask(1, keys)[:, 0, 0].to(device)

    def attention_mask(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """What the last `queries` of `keys` tokens see, `(batch or 1, 1, queries, keys)`; None: those up to
        themselves, as kernels take it."""
        is_plain = self.seen is None or queries <= keys - self.length
        if not is_plain or self.has_padding:
            return self._cached_mask(queries, keys).to(device)
        if 1 < queries < keys:  # which kernels count from the first key
            return self._cached_mask(queries, keys)[:1].to(device)
        return None

    def _cached_mask(self, queries: int, keys: int) -> Tensor:
        """One mask serves all layers of a step."""
        if (queries, keys) not in self._masks:
            generated = self.real_tokens.new_ones(self.batch_size, keys - self.length)
            seen = torch.cat([self.real_tokens, generated], dim=1)[:, None, None]
            if queries > 1:
                seen = seen & seen.new_ones(queries, keys).tril(keys - queries)
            own = queries - (keys - self.length)  # queries of the prompt
            if self.seen is not None and own > 0:
                rows = nn.functional.pad(self.seen[:, self.length - own :], (0, keys - self.length))
                seen = torch.cat([rows[:, None], seen.expand(-1, -1, queries, -1)[:, :, own:]], dim=2)
            self._masks.clear()
            self._masks[queries, keys] = seen
        return self._masks[queries, keys]


def pairs_at(seen: Tensor, index: Tensor) -> Tensor:
    """Of `(batch, tokens, tokens)`, the rows and columns of some tokens, `(batch, kept)` each."""
    rows = seen.gather(1, index[:, :, None].expand(-1, -1, seen.shape[2]))
    return rows.gather(2, index[:, None].expand(-1, index.shape[1], -1))


def _is_prepared(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 4

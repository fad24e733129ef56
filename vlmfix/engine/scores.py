"""Scores that `generate` hands to a logits processor, compared with the logits of its own reading."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from vlmfix.errors import UnsupportedError

# How far two readings of the same tokens may lie apart: in deviations of the logits, and of their size.
_EXACT = (1e-3, 1e-4)
_HALF = (2e-2, 2e-2)


class Received(NamedTuple):
    """What scores were before the processors of `generate`, so far as these only ban tokens.

    Args:
        logits: of all tokens, `(sequences, vocabulary)` float32.
        banned: tokens that a processor has ruled out, in the same form.
        normalised: sequences whose scores are log-probabilities, as beam search makes them, `(sequences, 1)`.
    """

    logits: Tensor
    banned: Tensor
    normalised: Tensor

    @classmethod
    def of(cls, scores: Tensor, own: Tensor, name: str) -> Self:
        """Take the bans out of scores.

        Args:
            scores: `(sequences, vocabulary)` float32.
            own: logits of a reading of the same sequences, in the dtype of the model.
            name: of the method, for messages.

        Raises:
            ValueError: the scores are not about the same inputs.
            UnsupportedError: a processor changed some of them.
        """
        share, relative = _EXACT if own.dtype in (torch.float32, torch.float64) else _HALF
        own = own.to(scores.device).float()
        banned = (scores == -torch.inf) & (own > -torch.inf)
        known = (scores > -torch.inf) & (own > -torch.inf)
        moved = (scores - own).masked_fill(~known, torch.nan)
        shift = moved.nanmedian(dim=-1, keepdim=True).values.nan_to_num()
        spread = own.masked_fill(~known, torch.nan)
        spread = (spread - spread.nanmean(dim=-1, keepdim=True)).square().nanmean(dim=-1, keepdim=True).sqrt()
        changed = known & ((moved - shift).abs() > share * spread + relative * own.abs())
        # Of a single token nothing can be told, and nothing depends on it.
        others, some = (2 * changed.sum(dim=-1) >= known.sum(dim=-1).clamp_min(2)).any(), changed.any()
        if bool(some):
            if bool(others):
                raise ValueError(
                    f"the scores that reach the logits processor of {name} are not those of its model for "
                    "the inputs that it was made for: these are others (make one for each batch, pictures "
                    f"included: {name}().logits_processor(model, inputs)), the call rewrites all scores "
                    "before it (guidance_scale, a second contrast), or the model gives other numbers in "
                    f"other batches (dynamic int8); for these two use 'with {name}()(model):' alone"
                )
            raise UnsupportedError(
                f"a processor of generate changed the scores of {int(changed.sum(dim=-1).max())} tokens (as "
                f"repetition_penalty and sequence_bias do) before {name} saw them, which would give other "
                f"tokens than 'with {name}()(model):'; use the block, or pass that processor after this "
                "one, in the list for logits_processor"
            )
        normaliser = -own.logsumexp(dim=-1, keepdim=True)
        normalised = (shift - normaliser).abs() < shift.abs()
        return cls(torch.where(banned, own + shift, scores), banned, normalised)

    def processed(self, edited: Tensor) -> Tensor:
        """Edited logits in the form in which the scores came, with their bans."""
        edited = edited.to(self.logits.device)
        edited = torch.where(self.normalised, edited.log_softmax(dim=-1), edited)
        return edited.masked_fill(self.banned, -torch.inf)

"""What a server takes on, and no more."""

from __future__ import annotations

from dataclasses import dataclass

IN_FLIGHT = 8
"""As many times the bytes and the pixels of one request may be in memory at once."""
MOST_BEAMS = 16
"""Beams of a search, which a client may ask for."""
SMALLEST_PICTURE = 2**18
"""Pixels as which a smaller picture counts, since processors enlarge it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Args:
        bytes: of the body of a request.
        pixels: of all pictures of a request together, see `SMALLEST_PICTURE`.
        tokens: of an answer; also how long one may be that has no `max_tokens`.
        requests: in the server at once, waiting or at work.
        seconds: from the first byte of a request to the last of its answer.
        batch_size: answers that are decoded together.
        parallel: batches that are decoded at the same time, so that no long one keeps all others waiting.
    """

    bytes: int = 2**25
    pixels: int = 2**25
    tokens: int = 4096
    requests: int = 256
    seconds: float = 300.0
    batch_size: int = 16
    parallel: int = 2

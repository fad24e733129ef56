"""What vlmfix raises beside ``ValueError`` (arguments out of range) and ``OSError`` (files)."""

PACKAGES = {"vlmfix"}
"""Packages whose ``ValueError`` is written for users: this one, and those that registered something here."""


class UnsupportedError(RuntimeError):
    """A model, decoding mode or combination in which a method could not keep its promises.

    The message is one line: what is not supported, why, and what to do instead.
    """

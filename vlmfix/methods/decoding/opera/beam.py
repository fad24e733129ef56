"""Beam search of one prompt as plain numbers, by the rules of `generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Continuation(NamedTuple):
    """One more token after a beam.

    Args:
        score: sum of the log-probabilities.
        source: the beam.
        token: its id.
        ends: whether it ends the sequence.
    """

    score: float
    source: int
    token: int
    ends: bool


class Finished(NamedTuple):
    """A sequence that has ended.

    Args:
        score: sum of the log-probabilities by a power of the length, see `Rules`.
        tokens: what was generated.
    """

    score: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a `generate` call asks of its beams.

    Args:
        beams: number of sequences.
        early_stopping: True: end with as many finished sequences as beams; False: when none is likely to do
            better; "never": when none can.
        length_penalty: power of the length by which scores are divided.
        max_new_tokens: length limit.
        end_tokens: tokens that end a sequence.
        prompt_tokens: length of the prompt, where it counts and the end token does not, as in the versions of
            `generate` at the time of OPERA (transformers 4.29); None: the answer alone counts, as it is.
    """

    beams: int
    early_stopping: bool | str
    length_penalty: float
    max_new_tokens: int
    end_tokens: Sequence[int]
    prompt_tokens: int | None = None

    @property
    def continuations(self) -> int:
        """How many of the best continuations are looked at, so that enough of them go on."""
        return max(2, 1 + len(self.end_tokens)) * self.beams

    def by_length(self, score: float, length: int, last: int | None = None) -> float:
        """A sum of log-probabilities as the score of an answer of so many tokens.

        Args:
            last: the token that ends it; None: it goes on.
        """
        if self.prompt_tokens is not None:
            length = max(self.prompt_tokens + length - (last in self.end_tokens), 1)
        return score / length**self.length_penalty


@dataclass(frozen=True)
class Beams:
    """Sequences of one prompt, of one length, and those that have ended.

    Args:
        rules: of the search.
        tokens: of each beam.
        scores: sums of log-probabilities; minus infinity where a beam waits for a sequence of its own.
        finished: the best ones so far, best first.
        done: whether the search has ended.
    """

    rules: Rules
    tokens: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]
    finished: tuple[Finished, ...] = ()
    done: bool = False

    @classmethod
    def start(cls, rules: Rules) -> Beams:
        """The empty sequence, of which only one beam takes part."""
        return cls(rules, ((),) * rules.beams, (0.0,) + (-math.inf,) * (rules.beams - 1))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens[0])

    def advance(self, best: Sequence[Continuation]) -> tuple[Beams, list[Continuation]]:
        """The beams with one more token each, and what they are made of; as many, if any goes on.

        Args:
            best: the best continuations of all beams, best first; those that cannot be are left out.
        """
        rules, length = self.rules, self.length + 1
        finished = [
            Finished(rules.by_length(each.score, length, each.token), (*self.tokens[each.source], each.token))
            for each in best[: rules.beams]
            if each.ends
        ]
        finished = sorted([*self.finished, *finished], key=lambda each: -each.score)[: rules.beams]
        going = [each for each in best if not each.ends][: rules.beams]
        if not going:
            return Beams(rules, self.tokens, self.scores, tuple(finished), done=True), []
        full = len(finished) == rules.beams
        farthest = rules.early_stopping == "never" and rules.length_penalty > 0
        hope = going[0] if rules.prompt_tokens is None else best[0]  # one that has ended counts there
        promise = rules.by_length(hope.score, rules.max_new_tokens if farthest else length)
        done = full and (rules.early_stopping is True or promise <= finished[-1].score)
        going += [going[0]._replace(score=-math.inf)] * (rules.beams - len(going))
        tokens = tuple((*self.tokens[each.source], each.token) for each in going)
        return Beams(rules, tokens, tuple(each.score for each in going), tuple(finished), done), going

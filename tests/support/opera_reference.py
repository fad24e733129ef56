"""OPERA as the paper and its released code describe it: one prompt, no cache, a pass for every candidate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families


class Seen(NamedTuple):
    """A pass over a prompt and an answer.

    Args:
        logits: of the next token.
        attention: of each token of the answer to each of them.
        image_attention: of the last token of the answer.
    """

    logits: list[float]
    attention: list[list[float]]
    image_attention: float


class Answers(NamedTuple):
    """What came out.

    Args:
        finished: score and tokens, best first.
        rollbacks: number of tokens at each, and the token that was chosen anew.
    """

    finished: list[tuple[float, tuple[int, ...]]]
    rollbacks: list[tuple[int, int]]


def answer(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    opera: vlmfix.OPERA,
    *,
    beams: int,
    tokens: int,
    ends: Sequence[int] = (),
    early_stopping: bool = False,
    length_penalty: float = 1.0,
    forced: Mapping[int, int] = MappingProxyType({}),
) -> Answers:
    """Decode one prompt.

    Args:
        model: loaded with eager attention, without any method.
        tokens: length limit of an answer.
        ends: tokens that end it.
        forced: by place, the only token that a logits processor allows.
    """
    prompt = inputs["input_ids"].shape[1]
    image = (inputs["input_ids"][0] == families.IMAGE_TOKEN).nonzero().flatten().tolist()

    @cache
    def look(answer: tuple[int, ...]) -> Seen:
        new = torch.tensor([answer], dtype=torch.long)
        whole: dict[str, Any] = {**inputs, "input_ids": torch.cat([inputs["input_ids"], new], dim=1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        if "mm_token_type_ids" in inputs:
            kinds = [inputs["mm_token_type_ids"], torch.zeros_like(new).int()]
            whole["mm_token_type_ids"] = torch.cat(kinds, dim=1)
        with torch.no_grad():
            output = model(**whole, use_cache=False, output_attentions=True)
        rows = []
        for row in range(prompt, prompt + len(answer)):
            largest = [max(column) for column in zip(*output.attentions[-1][0, :, row].tolist(), strict=True)]
            rows.append([each / sum(largest) for each in largest])
        image_attention = sum(rows[-1][column] for column in image) if rows else 0.0
        return Seen(output.logits[0, -1].tolist(), [row[prompt:] for row in rows], image_attention)

    def score_columns(seen: Seen) -> list[float]:
        count = len(seen.attention)
        return [
            1e-7 * math.prod(opera.scale_factor * seen.attention[i][j] for i in range(j, count))
            for j in range(count)
        ]

    def commonest(several: list[int]) -> int:
        counts = Counter(several)
        return min(value for value in counts if counts[value] == max(counts.values()))

    def normalised(scores: dict[int, float]) -> dict[int, float]:
        highest = max(scores.values())
        total = highest + math.log(sum(math.exp(score - highest) for score in scores.values()))
        return {token: score - total for token, score in scores.items()}

    def by_length(score: float, tokens: int, last: int | None = None) -> float:
        if opera.ranked_length == "prompt+answer":
            tokens += prompt - (last in ends)
        return score / tokens**length_penalty

    live: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ()), *[None] * (beams - 1)]
    finished: list[tuple[float, tuple[int, ...]]] = []
    history: list[list[int | None]] = []
    times: Counter[int] = Counter()
    banned: dict[int, set[tuple[int, int]]] = {}
    chosen: dict[int, set[tuple[int, int]]] = {}
    saved: dict[int, Any] = {}
    rollbacks = []
    step, anew = 0, False
    while True:
        saved[step] = list(live), list(finished)
        saved.pop(step - opera.window_size - 1, None)
        continuations, locations = [], []
        for slot, beam in enumerate(live):
            if beam is None:
                locations.append(None)
                continue
            logits = dict(enumerate(look(beam[1]).logits))
            if anew:
                scores = {token: each for token, each in logits.items() if (slot, token) not in banned[step]}
            else:
                scores, found = {}, []
                for token in sorted(logits, key=lambda token: -logits[token])[: opera.num_attn_candidates]:
                    seen = look((*beam[1], token))
                    columns = score_columns(seen)
                    penalty = -seen.image_attention if step + 1 <= 10 else min(max(columns), math.exp(80))
                    scores[token] = logits[token] - opera.penalty_weights * penalty
                    found.append(columns.index(max(columns)))
                locations.append(commonest(found))
            allowed = {forced[step]: 0.0} if step in forced else normalised(scores)
            continuations += [(beam[0] + score, slot, token) for token, score in allowed.items()]
        if not anew:
            history.append(locations)
            summary = commonest([each for each in locations if each is not None])
            reports = [
                sum(entry[slot] == summary for entry in history) for slot, beam in enumerate(live) if beam
            ]
            if summary >= 10 and min(reports) > (opera.threshold or math.inf):
                goal = summary + 1
                if times[goal] == opera.num_attn_candidates:
                    goal = summary
                if times[goal] < opera.num_attn_candidates:
                    times[goal] += 1
                    goal = max(min(goal, step - 1), min(saved))
                    rollbacks.append((step, goal))
                    banned[goal] = banned.get(goal, set()) | chosen.get(goal, set())
                    banned = {place: pairs for place, pairs in banned.items() if place <= goal}
                    chosen = {place: pairs for place, pairs in chosen.items() if place <= goal}
                    history = history[: goal + 1]
                    live, finished = saved[goal]
                    step, anew = goal, True
                    continue
        anew = False
        best = sorted(continuations, reverse=True)[: max(2, 1 + len(ends)) * beams]
        going = []
        for rank, (score, slot, token) in enumerate(best):
            grown = (*live[slot][1], token)
            if token not in ends and len(grown) < tokens:
                going.append((score, slot, token, grown))
            elif rank < beams:
                finished.append((by_length(score, len(grown), token), grown))
        going = going[:beams]
        finished = sorted(finished, reverse=True)[:beams]
        chosen[step] = {(slot, token) for _, slot, token, _ in going}
        live = [(score, grown) for score, _, _, grown in going] + [None] * (beams - len(going))
        step += 1
        full = len(finished) == beams
        hope = best[0][0] if opera.ranked_length == "prompt+answer" else going[0][0] if going else 0.0
        hopeless = full and bool(going) and by_length(hope, step) <= finished[-1][0]
        if not going or (full and early_stopping) or hopeless:
            return Answers(finished, rollbacks)

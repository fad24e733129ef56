"""Heads that write the words of a concept, found by matching pursuit over the unembedding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.results import PROMPT, Calibration, Progress, prompt_inputs
from vlmfix.engine.context import DecodeContext
from vlmfix.inference.pictures import ImageLike
from vlmfix.methods.base import Method
from vlmfix.models.structure import attention_of, text_decoder
from vlmfix.settings import closest, configs_directory

PURSUIT_STEPS = 50
"""Words that a pursuit takes at most."""

# Heads of a ranking that a profile holds: the paper's largest set, 32 of 1,024, and 8 where that is fewer.
_KEPT_SHARE, _KEPT = 32 / 1024, 8

# Directions of words whose share of the largest singular value is smaller are in the span of the others.
_RANK_CUT = 1e-10


@dataclass(frozen=True)
class ConceptWords:
    """Words that name a concept.

    Args:
        name: of the concept, as the profile and `HeadPursuit.concept` call it.
        words: at least one.

    Raises:
        ValueError: there are none.
    """

    name: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(dict.fromkeys(self.words)))
        if not self.words or not all(isinstance(word, str) and word for word in self.words):
            raise ValueError(f"{self.name!r} has no words, or some that are no text; give one or more")

    @classmethod
    def read(cls, name: str | Path) -> Self:
        """A shipped list by name, or a text file with a word a line; lines that begin with # are comments.

        Raises:
            ValueError: there is no such list, or no word in the file.
            OSError: the file cannot be read.
        """
        path = Path(name)
        shipped = {each.stem: each for each in sorted((configs_directory() / "words").glob("*.txt"))}
        if not path.is_file():
            if str(name) not in shipped:
                raise ValueError(
                    f"words is {str(name)!r}{closest(str(name), shipped)}; it must be a text file with a "
                    f"word a line, or one of {', '.join(shipped)}"
                )
            path = shipped[str(name)]
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{str(path)!r} is no text in UTF-8 ({error.reason}); save it as one") from error
        lines = (line.strip() for line in text.splitlines())
        return cls(path.stem, tuple(line for line in lines if line and not line.startswith("#")))

    def token_ids(self, tokenizer: Any) -> tuple[list[int], list[str]]:
        """Single tokens that are a word of these, with a space before it or not, as it is or capitalised; and
        the words that no single token is."""
        found: list[int] = []
        split = []
        for word in self.words:
            forms = dict.fromkeys(
                f"{space}{each}" for each in (word, word.capitalize()) for space in (" ", "")
            )
            pieces = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
            single = [each[0] for each in pieces if len(each) == 1]
            found += single
            split += [] if single else [word]
        return list(dict.fromkeys(found)), split


def pursuit(outputs: Tensor, directions: Tensor, steps: int) -> tuple[list[int], float]:
    """Simultaneous orthogonal matching pursuit: the directions that explain several vectors best, together.

    Args:
        outputs: centred, `(samples, hidden)` float64.
        directions: `(words, hidden)` float64.
        steps: directions to take; all of them where there are fewer.

    Returns:
        Which were taken, in order, and the share of the squared norm of `outputs` that their span has; 0 for
        outputs that are 0.
    """
    residual, taken = outputs, list[int]()
    for _ in range(min(steps, len(directions))):
        fit = (residual @ directions.T).abs().sum(dim=0)
        fit[taken] = -1.0
        taken.append(int(fit.argmax()))
        chosen = directions[taken]
        # Of dependent directions, the solution of the smallest norm.
        weights = torch.linalg.lstsq(chosen.T, outputs.T, driver="gelsd").solution
        residual = outputs - weights.T @ chosen
    whole = float(outputs.square().sum())
    return taken, 1 - float(residual.square().sum()) / whole if whole > 0 else 0.0


def explained_shares(outputs: Tensor, directions: Tensor, *, steps: int = PURSUIT_STEPS) -> Tensor:
    """How much of the variance of what each head writes the words of a concept explain.

    Args:
        outputs: of each head at each sample, in the residual stream, `(heads, samples, hidden)`.
        directions: of the words, rows of the unembedding, `(words, hidden)`.
        steps: words that a pursuit takes; with no more words than that, all of them, at once.

    Returns:
        Shares in [0, 1], `(heads,)` float64.
    """
    outputs, directions = outputs.double(), directions.double()
    centred = outputs - outputs.mean(dim=1, keepdim=True)
    if len(directions) > steps:
        return torch.tensor([pursuit(each, directions, steps)[1] for each in centred], dtype=torch.float64)
    _, sizes, rows = torch.linalg.svd(directions, full_matrices=False)
    span = rows[sizes > _RANK_CUT * sizes.amax()]
    whole = centred.square().sum(dim=(1, 2))
    inside = (centred @ span.T).square().sum(dim=(1, 2))
    return torch.where(whole > 0, inside / whole, 0.0)


def calibrate_concept_heads(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[ImageLike],
    progress: Progress,
    *,
    words: ConceptWords,
) -> Calibration:
    """Rank the heads by how much the words of a concept explain of what they write (arXiv 2510.21518).

    What a head writes is its mean over the image tokens of a picture, through its columns of the output
    projection. Words that are several tokens are left out.

    Raises:
        ValueError: no word is one token, or no head writes anything.
    """
    tokenizer: Any = processor
    ids, split = words.token_ids(tokenizer.tokenizer)
    if not ids:
        raise ValueError(
            f"no word of {words.name!r} is a single token of this model ({', '.join(words.words[:5])}, ...); "
            "give shorter and more common ones"
        )
    if split:
        warnings.warn(
            f"{len(split)} of {len(words.words)} words are several tokens and left out: "
            f"{', '.join(split[:8])}{', ...' if len(split) > 8 else ''}",
            stacklevel=2,
        )
    observer = _HeadMeans()
    for image in images:
        with observer(model, processor), torch.no_grad():
            model(**prompt_inputs(model, processor, image, PROMPT), logits_to_keep=1)
        if progress is not None:
            progress(1)
    unembedding: Any = model.get_output_embeddings()
    directions = unembedding.weight.detach()[ids].float().cpu()
    decoder: Any = text_decoder(model)
    shares: dict[tuple[int, int], float] = {}
    for layer, means in sorted(observer.means.items()):
        projection: Any = attention_of(decoder, layer).o_proj
        weight = projection.weight.detach().float().cpu()
        heads = torch.stack(means)  # (samples, heads, head_dim)
        columns = weight.unflatten(1, heads.shape[1:])
        written = torch.einsum("nhd,ohd->hno", heads, columns)
        of_layer = explained_shares(written, directions).tolist()
        shares |= {(layer, head): share for head, share in enumerate(of_layer)}
    ranked = sorted(shares, key=lambda pair: (-shares[pair], pair))
    kept = [pair for pair in ranked[: max(_KEPT, round(_KEPT_SHARE * len(ranked)))] if shares[pair] > 0]
    if not kept:
        raise ValueError(
            "no head of this model writes anything that differs between the pictures; give others"
        )
    everywhere = sum(shares.values()) / len(shares)
    return Calibration(
        {"head_pursuit_heads": {words.name: [list(pair) for pair in kept]}},
        f"{len(images)} image prompts and single tokens of the words: heads by the share of the "
        "variance of what they write at the image tokens that the words of the concept explain",
        {
            "words": f"{len(words.words) - len(split)} of {len(words.words)}, {len(ids)} tokens",
            "share explained, mean of all heads": round(everywhere, 4),
        }
        | {f"head {layer}:{head}": round(shares[layer, head], 4) for layer, head in kept[:10]},
    )


@dataclass(frozen=True, kw_only=True)
class _HeadMeans(Method):
    """Mean output of every head over the image tokens of each prompt that is read."""

    edits: ClassVar = False

    means: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        image = context.layout_at(layer).image_tokens[0].to(heads.device)
        mean = heads[0, : len(image)][image].float().mean(dim=0).cpu()
        self.means.setdefault(layer, []).append(mean)
        return heads

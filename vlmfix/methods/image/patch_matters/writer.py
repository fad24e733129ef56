"""The model itself as captioner, language model and judge of statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, ProcessorMixin

from vlmfix.engine.vision_cache import cached_vision
from vlmfix.errors import UnsupportedError
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.keywords import content_words
from vlmfix.inference.rendering import without_placeholders
from vlmfix.inference.sampling import SeededSampling, seed_of
from vlmfix.methods.baselines.output_shift import answer_ids
from vlmfix.methods.image.patch_matters import prompts

# Rows of a batch; more are written in several.
_ROWS = 16


class Writer:
    """Writes captions and texts by sampling, each from a seed of its own, whatever else is in the batch.

    Args:
        model: a stock model.
        processor: its processor.
        seed: of the method.
        item: what the text of one prompt and picture has to itself.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, seed: int, item: str) -> None:
        self.model, self.processor, self.seed, self.item = model, processor, seed, item

    def captions(
        self, wanted: Sequence[tuple[str, int, Image.Image]], prompt: str, temperature: float, limit: int
    ) -> list[str]:
        """Captions of pictures.

        Args:
            wanted: name of a region, number of the sample, and picture, each.
            prompt: what is asked about all.
            temperature: of the sampling.
            limit: length in tokens.
        """
        return self._written(
            [(region, number, Conversation.of(image, prompt)) for region, number, image in wanted],
            temperature,
            1.0,
            limit,
        )

    def texts(
        self, wanted: Sequence[tuple[str, str]], temperature: float, top_p: float, limit: int
    ) -> list[str]:
        """Replies of the language model alone.

        Args:
            wanted: name of a call, and its prompt, each.
            temperature: of the sampling.
            top_p: share of the probability that it is drawn from.
            limit: length in tokens.
        """
        asked = [(name, 0, Conversation.of(None, prompt)) for name, prompt in wanted]
        return self._written(asked, temperature, top_p, limit)

    def truth(self, image: Image.Image, statements: Sequence[str]) -> list[float]:
        """How likely a yes is, against a no, to the question whether a statement is true of a picture.

        Raises:
            UnsupportedError: yes or no is no single token of the tokenizer.
        """
        try:
            yes, no = answer_ids(self.processor.tokenizer)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"{type(self.processor.tokenizer).__name__} has no single tokens for yes and no, by which "
                "Patch Matters scores statements; pass a scorer"
            ) from error
        found: list[float] = []
        greedy = plain_decoding(self.model, {"max_new_tokens": 1})
        for start in range(0, len(statements), _ROWS):
            asked = [
                Conversation.of(image, prompts.TRUTH.format(statement=each))
                for each in statements[start : start + _ROWS]
            ]
            scores = _FirstScores()
            with cached_vision(self.model):
                answer_batch(
                    self.model,
                    self.processor,
                    asked,
                    **greedy,
                    logits_processor=LogitsProcessorList([scores]),
                )
            assert scores.first is not None
            shares = scores.first.float().softmax(dim=-1)
            says_yes, says_no = shares[:, list(yes)].sum(dim=-1), shares[:, list(no)].sum(dim=-1)
            found += (says_yes / (says_yes + says_no).clamp_min(1e-30)).tolist()
        return found

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Means of the input embeddings of the content words of texts, or of all words without any,
        `(texts, hidden)` float32 on the CPU."""
        table: Any = self.model.get_input_embeddings()
        rows = []
        for text in texts:
            words = " ".join(text[start:stop] for start, stop in content_words(text)) or text
            ids = self.processor.tokenizer.encode(words, add_special_tokens=False)
            ids = torch.tensor(ids, device=table.weight.device)
            rows.append(table.weight.detach()[ids].float().mean(dim=0).cpu())
        return torch.stack(rows) if rows else torch.zeros(0, 1)

    def _written(
        self,
        asked: Sequence[tuple[str, int, Conversation]],
        temperature: float,
        top_p: float,
        limit: int,
    ) -> list[str]:
        """What a model reads in a later prompt must not stand for a picture."""
        written: list[str] = []
        plain = plain_decoding(self.model, {"max_new_tokens": limit})
        for start in range(0, len(asked), _ROWS):
            rows = asked[start : start + _ROWS]
            seeds = [seed_of(self.seed, f"{self.item}/{name}", number) for name, number, _ in rows]
            sampling = SeededSampling(seeds, temperature=temperature, top_p=top_p)
            answers = answer_batch(
                self.model,
                self.processor,
                [conversation for _, _, conversation in rows],
                **plain,
                logits_processor=LogitsProcessorList([sampling]),
            )
            written += [without_placeholders(each.text, self.processor).strip() for each in answers]
        return written


class _FirstScores(LogitsProcessor):
    """Keeps the scores of the first step; changes nothing."""

    def __init__(self) -> None:
        self.first: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.first is None:
            self.first = scores
        return scores

"""Base of the methods that ask the model several times about one prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine.capabilities import AsksSeveralTimes
from vlmfix.engine.compatibility import stock_model
from vlmfix.engine.stats import SequenceStats, Sums
from vlmfix.errors import UnsupportedError
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.conversation import Conversation, open_conversations
from vlmfix.inference.output import Answer
from vlmfix.inference.pictures import Images
from vlmfix.methods.base import DetachedMethod

NO_IMAGE = "no image in the prompt"


@dataclass(frozen=True, eq=False, kw_only=True)
class MultiPassResult:
    """What a method that asks several times found out about one prompt.

    Args:
        answer: to the prompt.
        final: the same with its tokens; None where the model did not write it, or not yet.
        reason: why the answer is plain decoding's; "" if it is not.
    """

    answer: str
    final: Answer | None = None
    reason: str = ""

    @property
    def acted(self) -> bool:
        """Whether the answer is the method's."""
        return not self.reason

    def save(self, directory: str | Path, stem: str) -> list[Path]:
        """Write what there is to look at, in files whose names begin with `stem`.

        Returns:
            The files.
        """
        return []


Result = TypeVar("Result", bound=MultiPassResult)


class MultiPassMethod(DetachedMethod, AsksSeveralTimes, ABC, Generic[Result]):
    """A strategy that asks the model several times, by `run`: a single `model.generate` has neither the
    pictures nor several passes."""

    result_class: ClassVar[type[MultiPassResult]] = MultiPassResult
    identity_reason: ClassVar = "its parameters leave the model as it is"

    @abstractmethod
    def ask(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        asked: Conversation,
        generate_kwargs: dict[str, Any],
    ) -> Result:
        """Answer the question at the end of a conversation.

        Args:
            model: stock, and as `answer_batch` takes it.
            processor: its processor.
            asked: with opened pictures and no video; `why_plain` found no reason against it.
            generate_kwargs: for the final answer, `max_new_tokens` among them.
        """

    def why_plain(self, model: PreTrainedModel, processor: ProcessorMixin, asked: Conversation) -> str:
        """Why a prompt is answered by plain decoding, such as that its question has no picture; "" if it is
        not.

        Raises:
            UnsupportedError: the method cannot answer it.
        """
        if not asked.asked_about and not asked.videos:
            return NO_IMAGE
        if self.is_identity:
            return self.identity_reason
        refuse_videos(asked, type(self).__name__)
        return ""

    @property
    def why_detached(self) -> str:
        name = type(self).__name__
        return (
            "asks several times and changes the image, for which it needs the processor and the image: use "
            f"vlmfix.generate(model, processor, image, prompt, {name}()), or {name}().run(...)"
        )

    def run(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        images: Images,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        **generate_kwargs: Any,
    ) -> Result:
        """Answer one prompt about its images.

        Args:
            model: a stock image-text-to-text model.
            processor: its processor.
            images: a picture, a path, a list of them, or None for a prompt without image, which is answered
                plainly.
            prompt: what the user asks, without any template.
            max_new_tokens: length limit of the final answer, in tokens.
            **generate_kwargs: for the final `model.generate`.

        Raises:
            UnsupportedError: the method does not go with the model, its processor, what is attached, or the
                prompt, such as one with a video.
            ValueError: a value of the method does not fit the model.
        """
        conversation = Conversation.of(images, prompt)
        return self.run_conversation(
            model, processor, conversation, max_new_tokens=max_new_tokens, **generate_kwargs
        )

    def run_conversation(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        conversation: Conversation,
        *,
        max_new_tokens: int = 128,
        **generate_kwargs: Any,
    ) -> Result:
        """The same for the question at the end of a conversation, about the pictures that it belongs to."""
        model = stock_model(model)
        [asked] = open_conversations([conversation])
        kwargs = {**generate_kwargs, "max_new_tokens": max_new_tokens}
        reason = self.why_plain(model, processor, asked)
        result: MultiPassResult
        if reason:
            [final] = answer_batch(model, processor, [asked], **kwargs)
            result = self.result_class(answer=final.text.strip(), final=final, reason=reason)
        else:
            result = self.ask(model, processor, asked, kwargs)
        self._count("" if result.acted else result.reason)
        return cast(Result, result)

    def _count(self, reason: str) -> None:
        """Note that one prompt was answered.

        Args:
            reason: why the method did nothing; "" if it acted.
        """
        acted = int(not reason)
        self._sums.add(
            Sums(
                rows=1,
                rows_touched=acted,
                rows_skipped=Counter([reason] * (1 - acted)),
                edited=acted,
                eligible=1,
                latest=[SequenceStats(0, 0, acted, 1, reason)],
            )
        )


def refuse_videos(asked: Conversation, reader: str) -> None:
    """Refuse a prompt with a video.

    Raises:
        UnsupportedError: it has one.
    """
    if asked.videos:
        raise UnsupportedError(
            f"{reader} looks at pictures one by one, and the prompt holds a video; use another method, or "
            "show frames as pictures"
        )

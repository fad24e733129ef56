"""A model of inspect_ai: `inspect eval TASK --model vlmfix/MODEL -M method=var`."""

from __future__ import annotations

import base64
import binascii
import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

# Where nobody says, as for the models of transformers in inspect_ai itself.
_MAX_TOKENS = 2048
# Seconds in which questions are gathered for a batch.
_WINDOW = 0.01
_DECODING = {"max_tokens", "temperature", "top_p", "top_k", "seed", "stop_seqs"}
# What inspect_ai does by itself, or what services alone have.
_OF_INSPECT = {
    "adaptive_connections",
    "attempt_timeout",
    "batch",
    "cache",
    "cache_prompt",
    "fail_on_refusal",
    "max_connections",
    "max_retries",
    "max_tool_output",
    "stream_idle_timeout",
    "system_message",
    "timeout",
}


@dataclass(eq=False)
class _Question:
    """A question that waits for its batch."""

    conversation: Any
    decoding: Any
    seed: int
    answer: Any = None
    error: Exception | None = field(default=None)


@modelapi(name="vlmfix")
class VlmfixAPI(ModelAPI):  # type: ignore[misc]  # mypy does not follow inspect_ai, which need not be here
    """A model under a method.

    Args:
        model_name: embedded model, folder or hub id.
        base_url: must be None: the model is in this process.
        api_key: must be None.
        config: of inspect_ai; without a temperature, answers are greedy.
        method: by name, `a+b`, "greedy", or "auto" for the recipe of the checkpoint.
        set: parameters, `METHOD.KEY=VALUE`, several separated by semicolons.
        recipe: file or name of a recipe, in the place of a method.
        batch_size: prompts per forward pass.
        device: "cpu", "cuda", ..., or "auto".
        dtype: "float32", "bfloat16", "float16", or "auto".
        revision: branch, tag or commit of a hub id.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # the signature of inspect_ai
        method: str = "greedy",
        set: str = "",
        recipe: str | None = None,
        batch_size: int = 32,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> None:
        from vlmfix.adapters.hosted import HostedModel  # not for those who run other models

        super().__init__(model_name, base_url, api_key, [], config)
        if base_url is not None:
            raise ValueError(f"vlmfix/{model_name} runs in this process; leave the base URL {base_url} out")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be a whole number from 1 on")
        self.batch_size = batch_size
        self._hosted = HostedModel(
            model_name,
            method=str(method),
            settings=";".join(set) if isinstance(set, list) else str(set),
            recipe=recipe,
            device=str(device),
            dtype=str(dtype),
            revision=None if revision is None else str(revision),
        )
        self._waiting: list[_Question] = []
        self._turn = anyio.Lock()

    def max_tokens(self) -> int | None:
        """Length limit where nobody sets one."""
        return _MAX_TOKENS

    def max_connections(self) -> int:
        """How many questions inspect_ai asks at a time: those of a batch."""
        return self.batch_size

    def collapse_user_messages(self) -> bool:
        """Chat templates want the roles to take turns."""
        return True

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation, in a batch with others that wait.

        Raises:
            ValueError: it asks for what vlmfix does not do; the message names it.
        """
        if tools:
            raise ValueError(
                f"vlmfix calls no tools, and there is {tools[0].name}; choose a task without tools"
            )
        question = _question(input, config)
        self._waiting.append(question)
        try:
            async with self._turn:  # one batch at a time; whoever has not been answered takes others along
                if question.answer is None and question.error is None:
                    await anyio.sleep(_WINDOW)
                    alike = [each for each in self._waiting if each.decoding == question.decoding]
                    batch = [question, *(each for each in alike if each is not question)][: self.batch_size]
                    self._waiting = [each for each in self._waiting if each not in batch]
                    await anyio.to_thread.run_sync(self._answer, batch)
        finally:
            self._waiting = [each for each in self._waiting if each is not question]
        if question.error is not None:
            raise question.error
        return self._output(question.answer)

    def _answer(self, batch: Sequence[_Question]) -> None:
        try:
            answers = self._hosted.answers(
                [each.conversation for each in batch], batch[0].decoding, [each.seed for each in batch]
            )
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
            for each in batch if len(batch) > 1 else ():  # which of them it was
                self._answer([each])
            return
        for each, answer in zip(batch, answers, strict=True):
            each.answer = answer

    def _output(self, answer: Any) -> ModelOutput:
        output = ModelOutput.from_content(
            self.model_name, answer.text, "stop" if answer.ended else "max_tokens"
        )
        output.usage = ModelUsage(
            input_tokens=answer.prompt_tokens,
            output_tokens=len(answer.token_ids),
            total_tokens=answer.prompt_tokens + len(answer.token_ids),
            reasoning_tokens=answer.reasoning_tokens or None,
        )
        return output


def _question(messages: Sequence[ChatMessage], config: GenerateConfig) -> _Question:
    """What is asked, and how it is to be decoded.

    Raises:
        ValueError: a setting or a part of a message is not known here.
    """
    from vlmfix.adapters.hosted import Decoding
    from vlmfix.inference.conversation import read_messages
    from vlmfix.inference.sampling import seed_of

    given = config.model_dump(exclude_none=True)
    unknown = sorted(given.keys() - _DECODING - _OF_INSPECT)
    if unknown:
        raise ValueError(
            f"vlmfix does not know {', '.join(unknown)}; of decoding it knows {', '.join(sorted(_DECODING))}"
        )
    decoding = Decoding(
        given.get("max_tokens", _MAX_TOKENS),
        float(given.get("temperature", 0.0)),
        float(given.get("top_p", 1.0)),
        given.get("top_k", 0),
        stop=tuple(given.get("stop_seqs", ())),
    )
    seed = secrets.randbits(62)
    if config.seed is not None:
        seed = seed_of(config.seed, "".join(message.text for message in messages), 0)
    conversation = read_messages([{"role": each.role, "content": _content(each)} for each in messages])
    return _Question(conversation, decoding, seed)


def _content(message: ChatMessage) -> Any:
    """The parts of a message in the form of `apply_chat_template`, without the reasoning of earlier turns."""
    if isinstance(message.content, str):
        return message.content
    return [_part(each) for each in message.content if each.type != "reasoning"]


def _part(content: Any) -> dict[str, Any]:
    if content.type == "text":
        return {"type": "text", "text": content.text}
    if content.type != "image":
        raise ValueError(f"vlmfix reads text and images, and the message holds {content.type}; leave it out")
    return {"type": "image", "image": _image(content.image)}


def _image(source: str) -> Any:
    """The picture of a data URL; a path as it is. Other addresses are refused when they are opened.

    Raises:
        ValueError: the URL holds no picture.
    """
    from PIL import Image

    if not source.startswith("data:"):
        return source.removeprefix("file://")
    head, _, body = source.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not in base64")
        return Image.open(io.BytesIO(base64.b64decode(body, validate=True)))
    except (OSError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError(f"the data URL {source[:40]}... holds no readable picture: {error}") from error

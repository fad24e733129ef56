"""Requests, field by field: what is not here is refused, and so is what would be without effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_CHOICES = 16
"""Answers to one request."""
_Neutral = Annotated[float, Field(ge=0, le=0, description="Only 0, which has no effect.")]
_Nothing = Annotated[list[Any], Field(max_length=0, description="Only empty: there are no tools.")]
_Note = Annotated[str, Field(description="Without effect.")]
_Stop = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    """What has no other fields, and no values of other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Part):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImageAddress(_Part):
    """Where a picture is."""

    url: str = Field(
        min_length=1,
        description="A data URL of a PNG, JPEG, WebP or GIF file; http, https and file addresses only where "
        "the server allows them by name.",
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None,
        description="Without effect: the processor of the model says at which resolution pictures are shown.",
    )


class ImagePart(_Part):
    """A picture in a message of the user."""

    type: Literal["image_url"]
    image_url: ImageAddress


_AnyPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(_Part):
    """What the model is told before all else; the first message only."""

    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: _Note | None = None


class UserMessage(_Part):
    """What the user says and shows."""

    role: Literal["user"]
    content: str | Annotated[list[_AnyPart], Field(min_length=1)]
    name: _Note | None = None


class AssistantMessage(_Part):
    """What the model said before; a reasoning part is left out, as chat templates do."""

    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: _Note | None = None
    reasoning_content: _Note | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: _Nothing | None = None
    tool_calls: _Nothing | None = None


_AnyMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Part):
    """How an answer is streamed."""

    include_usage: bool | None = Field(None, description="Whether a last chunk counts the tokens.")
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(_Part):
    """Text, and nothing else."""

    type: Literal["text"]


class ChatRequest(_Part):
    """A conversation whose last message is to be answered."""

    model: str = Field(
        min_length=1,
        description="NAME for greedy decoding, NAME:var for a method, NAME:var+vcd for several, NAME:auto "
        "for the recipe of the checkpoint, NAME:FILE.yaml for a recipe by its file name.",
    )
    messages: list[_AnyMessage] = Field(min_length=1)
    method: dict[str, Any] | None = Field(
        None,
        description='Parameters: {"moved_fraction": 0.6} of one method, {"vcd": {"alpha": 0.5}} of one of '
        "several.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="Without it, the limit of the server.")
    max_completion_tokens: int | None = Field(None, ge=1, description="Another name of max_tokens.")
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="0, greedy decoding, unless it is given; 1 where only top_p is.",
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Without it, sampling differs.")
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = Field(
        None, description="The answer ends before the first of these."
    )
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    logprobs: bool | None = Field(
        None,
        description="Of the distribution that tokens are drawn from, methods included, at temperature 1.",
    )
    top_logprobs: int | None = Field(None, ge=0, le=20)
    frequency_penalty: _Neutral | None = None
    presence_penalty: _Neutral | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    tools: _Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None
    user: _Note | None = None
    safety_identifier: _Note | None = None
    prompt_cache_key: _Note | None = None
    service_tier: _Note | None = None
    metadata: dict[str, str] | None = Field(None, description="Without effect.")
    store: Literal[False] | None = Field(None, description="Nothing is stored.")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream=true; leave it out")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}; "
                "they are the same thing, so leave one out"
            )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

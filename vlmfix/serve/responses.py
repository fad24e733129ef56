"""What the server sends: answers, chunks of them, models and errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response that is no answer."""

    error: Problem


class TokenChoice(BaseModel):
    """A token that might have been written."""

    token: str
    logprob: float = Field(description="At least -9999, as where a method rules the token out.")
    bytes: list[int]


class TokenLogprob(TokenChoice):
    """A token that was written; those of an answer make up its text."""

    top_logprobs: list[TokenChoice]


class Logprobs(BaseModel):
    """Tokens with their probabilities."""

    content: list[TokenLogprob]
    refusal: None = None


class Usage(BaseModel):
    """Tokens of all choices; the prompt counts once, image tokens included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: dict[str, int]


class Cost(BaseModel):
    """What an answer cost."""

    forwards_per_token: float
    queue_seconds: float = Field(description="In which it waited for the model.")
    seconds: float = Field(description="In which the model was at work.")
    batch: int = Field(description="Answers that were decoded together.")


class Report(BaseModel):
    """What methods did, and what that cost."""

    method: str
    parameters: dict[str, dict[str, Any]]
    activity: list[dict[str, dict[str, Any]]] = Field(
        description="Of each choice, by method: steps and sites, those that it edited, and how far it moved "
        "the distribution of the next token."
    )
    cost: list[Cost] = Field(description="Of each choice.")


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None = None
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The answers to a request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    vlmfix: Report


class Delta(BaseModel):
    """What comes next in an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Chunk(BaseModel):
    """One event of a stream; the one that ends the last answer has the report."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    vlmfix: Report | None = None


class Model(BaseModel):
    """A model, or the same with a method or a recipe."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models; methods may be joined by `+`, which is not listed."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok"] = "ok"

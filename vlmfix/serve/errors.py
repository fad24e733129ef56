"""Errors as clients of OpenAI expect them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from vlmfix.errors import UnsupportedError
from vlmfix.failures import is_for_users, is_out_of_memory, one_line, words

log = logging.getLogger("vlmfix.serve")

STATUSES: Mapping[int, str] = {
    400: "The request cannot be read, or something in it does not go together.",
    401: "The API key is missing or wrong.",
    404: "There is no such model, method, recipe or path.",
    408: "The body of the request did not come in time.",
    413: "The body or its pictures are too large.",
    422: "A field has a wrong type, is out of range or unknown, or the model does not go with the method.",
    429: "The server has too much to do; try again later.",
    500: "The server failed.",
    503: "The server is stopping, or the answer was not ready in time.",
}
"""What a status means, for the description of the server."""

_RETRY = {"Retry-After": "1"}
_LONGEST, _LONGEST_NAME = 2000, 200


class RequestError(HTTPException):
    """A request that is not answered.

    Args:
        status: of HTTP, one of `STATUSES`.
        message: one line for the client.
        code: a word for programs.
        param: the field that is to blame.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        line = one_line(message)
        line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
        super().__init__(status, line, _RETRY if status in (429, 503) else None)
        self.code = code
        self.param = None if param is None else one_line(param)[:_LONGEST_NAME]

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status_code == 429 else kind
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}


def request_error(error: Exception) -> RequestError:
    """What a client is told of an exception; what is no fault of the request is logged, and not told."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UnsupportedError):
        return RequestError(422, words(error), code="unsupported")
    if is_out_of_memory(error):
        log.error("out of memory: %s", words(error))
        return RequestError(503, "there is not enough memory for this request", code="out_of_memory")
    if isinstance(error, ValueError) and is_for_users(error):
        return RequestError(400, words(error), code="invalid_value")
    log.error("a request failed", exc_info=error)
    return RequestError(
        500, f"the server failed ({type(error).__name__}); its log says more", code="internal_error"
    )


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The response to a `RequestError`, or to what the framework refuses, such as an unknown path."""
    assert isinstance(error, StarletteHTTPException)
    known = error if isinstance(error, RequestError) else RequestError(error.status_code, error.detail)
    if known is not error and error.status_code == 400:  # of the framework, whose words say less
        known = RequestError(400, "the body is not readable JSON; send UTF-8 without deep nesting")
    return JSONResponse(known.body, known.status_code, error.headers)  # such as what a path allows


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """The response to a body that is no JSON (400) or has wrong fields (422); the first fault is told."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        reason = faults[0].get("ctx", {}).get("error", "unreadable")
        return await answer_http_error(request, RequestError(400, f"the body is no JSON: {reason}"))
    param, message = _first_fault(faults)
    return await answer_http_error(
        request, RequestError(422, message, code="invalid_field", param=param or None)
    )


def _first_fault(faults: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The field that is to blame, and what is wrong with it; the innermost says most."""
    first = max(faults, key=lambda fault: len(fault["loc"]))
    place = [str(each) for each in first["loc"][1:]]
    param = ".".join(place)
    if not place and first["type"] in ("missing", "model_attributes_type"):
        return "", "the body must be a JSON object, sent as Content-Type: application/json"
    if first["type"] == "extra_forbidden":
        return param, f"{param} is no field that this server knows; leave it out"
    reason = first.get("ctx", {}).get("error") if first["type"] == "value_error" else None  # in our words
    return param, str(reason) if reason else f"{param}: {first['msg']}"


async def answer_failure(request: Request, error: Exception) -> JSONResponse:
    """The response to a bug."""
    return await answer_http_error(request, request_error(error))

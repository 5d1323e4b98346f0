"""Errors as OpenAI's clients see them."""

import math
from typing import Annotated, Any, Literal

import orjson
from fastapi import Response
from pydantic import BaseModel, WithJsonSchema

from autoglm.common.errors import CODES, MeshError, RateLimited
from autoglm.gateway.openai.content_encoding import ACCEPTED, UnsupportedEncoding

TYPES = [kind.type for kind in MeshError.__subclasses__()]
ErrorType = Annotated[str, WithJsonSchema({"type": "string", "enum": TYPES})]
ErrorCode = Annotated[str, WithJsonSchema({"type": "string", "enum": [*TYPES, *CODES]})]
ResponseErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


class ErrorDetails(BaseModel):
    """What went wrong. `code` is finer than `type` where programs act on it; `param` is the path of the field at fault,
    if there is one."""

    message: str
    type: ErrorType
    param: str | None
    code: ErrorCode


class Error(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetails


class JsonResponse(Response):
    """A JSON response, encoded with orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return `content` as JSON."""
        return orjson.dumps(content)


def error_body(error: MeshError) -> dict[str, Any]:
    """Return OpenAI's error body."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def response_error_code(error: MeshError) -> ResponseErrorCode:
    """Return the code of a failed response, for which the Responses API has a list of its own."""
    if isinstance(error, RateLimited):
        return "rate_limit_exceeded"
    return "invalid_prompt" if error.http_status < 500 else "server_error"


def error_response(error: MeshError) -> JsonResponse:
    """Return `error` as a response."""
    return JsonResponse(error_body(error), error.http_status, _headers(error))


def _headers(error: MeshError) -> dict[str, str]:
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    if isinstance(error, UnsupportedEncoding):
        headers |= {"accept-encoding": ACCEPTED}
    return headers | ({"www-authenticate": "Bearer"} if error.http_status == 401 else {})

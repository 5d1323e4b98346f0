"""Errors as OpenAI's clients see them."""

import math
from typing import Annotated, Any

import orjson
from fastapi import Response
from pydantic import BaseModel, WithJsonSchema

from autoglm.common.errors import MeshError

ErrorCode = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [kind.code for kind in MeshError.__subclasses__()]})
]


class ErrorDetails(BaseModel):
    """What went wrong; `param` is the path of the field at fault, if there is one."""

    message: str
    type: ErrorCode
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
    return {"error": {"message": error.message, "type": error.code, "param": error.param, "code": error.code}}


def error_response(error: MeshError) -> JsonResponse:
    """Return `error` as a response."""
    return JsonResponse(error_body(error), error.http_status, _headers(error))


def _headers(error: MeshError) -> dict[str, str]:
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    return headers | ({"www-authenticate": "Bearer"} if error.http_status == 401 else {})

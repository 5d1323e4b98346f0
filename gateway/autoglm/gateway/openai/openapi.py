"""The document at /openapi.json: what each route takes, answers and refuses."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from autoglm.common.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MeshError,
    NotFound,
    UpstreamUnavailable,
)
from autoglm.gateway.openai.chat.request import ChatCompletionRequest
from autoglm.gateway.openai.chat.schema import (
    ChatCompletion,
    ChatCompletionChunk,
    EmbeddingList,
    Error,
    Liveness,
    Model,
    ModelList,
    Readiness,
    Transcription,
    TranscriptionEvent,
)
from autoglm.gateway.openai.embeddings import EmbeddingRequest
from autoglm.gateway.openai.responses.request import ResponseRequest
from autoglm.gateway.openai.responses.schema import Response, ResponseEvent
from autoglm.gateway.openai.transcriptions import FORM

REFERENCE = "#/components/schemas/{model}"
REQUESTS = (ChatCompletionRequest, EmbeddingRequest, ResponseRequest)
ANSWERS = (
    ChatCompletion, ChatCompletionChunk, EmbeddingList, Error, Liveness, Model, ModelList, Readiness, Response,
    ResponseEvent, Transcription, TranscriptionEvent,
)  # fmt: skip

TEXT = {"schema": {"type": "string"}}
_REQUEST_ID = {"x-request-id": {"required": True, "description": "The request's id.", "schema": {"type": "string"}}}
_ALLOWANCE = {
    "x-ratelimit-limit-requests": {"description": "Requests a minute, if limited.", "schema": {"type": "integer"}},
    "x-ratelimit-remaining-requests": {"description": "Requests left of them.", "schema": {"type": "integer"}},
    "x-ratelimit-reset-requests": {
        "description": "Time until one more is left, as in `1.500s`.", "schema": {"type": "string"}
    },
}  # fmt: skip
_RETRY_AFTER = {"retry-after": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
_SERVER_TIMING = {"server-timing": {"description": "The stages, in milliseconds.", "schema": {"type": "string"}}}
_PARAMETERS = [
    {
        "name": "x-request-id", "in": "header", "schema": {"type": "string"},
        "description": "Comes back, and goes to every service; one not of 1 to 128 printable characters is replaced.",
    },
    {
        "name": "traceparent", "in": "header", "schema": {"type": "string"},
        "description": "W3C trace context; goes to every service.",
    },
    {
        "name": "x-request-timeout", "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0},
        "description": "Seconds that the answer may take.",
    },
]  # fmt: skip
_NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
LOOKING_UP = (
    InvalidRequest, AuthenticationFailed, NotFound, UpstreamUnavailable, DeadlineExceeded, InternalError,
)  # fmt: skip
ASKING = tuple(MeshError.__subclasses__())


def asking(request: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a FastAPI route that answers a body: media types → their schemas, both ways."""
    return _guarded(
        answers,
        ASKING,
        _ALLOWANCE | _SERVER_TIMING,
        {"requestBody": {"required": True, "content": request}, "parameters": _PARAMETERS},
    )


def looking_up(answer: type[BaseModel], *parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a FastAPI route that tells something to who has a key."""
    return _guarded({"application/json": schema(answer)}, LOOKING_UP, {}, {"parameters": [*parameters, *_PARAMETERS]})


def watching(answers: Mapping[int, Any]) -> dict[str, Any]:
    """Return the arguments of a FastAPI route that machines watch: status → media types → schemas."""
    return {"responses": {status: {"content": content, "headers": _REQUEST_ID} for status, content in answers.items()}}


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a media type that holds `model`."""
    return {"schema": {"$ref": REFERENCE.format(model=model.__name__)}}


def events(*models: type[BaseModel], closing: str = "[DONE]") -> dict[str, Any]:
    """Return a media type of server-sent events, each of which holds one of `models`; the last may be `closing`."""
    held = {"anyOf": [schema(model)["schema"] for model in models]}
    data: list[dict[str, Any]] = [{"contentMediaType": "application/json", "contentSchema": held}]
    return {
        "schema": {
            "type": "object",
            "description": "One event.",
            "required": ["data"],
            "properties": {
                "event": {"type": "string"},
                "data": {"type": "string", "anyOf": data + ([{"const": closing}] if closing else [])},
            },
        }
    }


def complete(app: FastAPI) -> None:
    """Add what the routes refer to, once somebody asks for the document."""
    plain = app.openapi

    @cache
    def document() -> dict[str, Any]:
        return plain() | {"components": _components()}

    app.openapi = document  # type: ignore[method-assign]


def _components() -> dict[str, Any]:
    named = [(model, "validation") for model in REQUESTS] + [(model, "serialization") for model in ANSWERS]
    _, schemas = models_json_schema(named, ref_template=REFERENCE)  # type: ignore[arg-type]
    key = {"type": "http", "scheme": "bearer", "description": "An API key, if any is set."}
    return {"schemas": schemas["$defs"], "securitySchemes": {"key": key}}


def _guarded(
    answers: Mapping[str, Any], errors: Sequence[type[MeshError]], headers: dict[str, Any], extra: Mapping[str, Any]
) -> dict[str, Any]:
    answered = {200: {"content": answers, "headers": headers | _REQUEST_ID}}
    return {
        "responses": answered
        | {status: _refusal(errors, status) for status in sorted({e.http_status for e in errors})},
        "openapi_extra": {"security": [{"key": []}, {}], **extra},
    }


def _refusal(errors: Sequence[type[MeshError]], status: int) -> dict[str, Any]:
    """Return the response with `status`, which one or more of `errors` have."""
    kinds = [kind for kind in errors if kind.http_status == status]
    waits = any(kind.default_retry_after is not None for kind in kinds)
    return {
        "description": " ".join(f"`{kind.code}`: {kind.__doc__}" for kind in kinds),
        "content": {"application/json": schema(Error)},
        "headers": _REQUEST_ID | (_RETRY_AFTER if waits else {}),
    }


CHAT = asking(
    {"application/json": schema(ChatCompletionRequest)},
    {"application/json": schema(ChatCompletion), "text/event-stream": events(ChatCompletionChunk, Error)},
)
RESPONSES = asking(
    {"application/json": schema(ResponseRequest)},
    {"application/json": schema(Response), "text/event-stream": events(ResponseEvent, closing="")},
)
EMBEDDINGS = asking({"application/json": schema(EmbeddingRequest)}, {"application/json": schema(EmbeddingList)})
TRANSCRIPTIONS = asking(
    {"multipart/form-data": {"schema": FORM}},
    {
        "application/json": schema(Transcription),
        "text/event-stream": events(TranscriptionEvent),
        **dict.fromkeys(("text/plain", "application/x-subrip", "text/vtt"), TEXT),
    },
)
MODELS = looking_up(ModelList)
MODEL = looking_up(Model, _NAME)
READINESS = {"application/json": schema(Readiness)}
LIVE = watching({200: {"application/json": schema(Liveness)}})
READY = watching({200: READINESS, 503: READINESS})
METRICS = watching({200: {"text/plain": TEXT}}) | {"response_class": PlainTextResponse}

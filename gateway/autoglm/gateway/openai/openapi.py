"""The document at /openapi.json: what each route takes, answers and refuses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from autoglm.common.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MeshError,
    NotFound,
    PermissionDenied,
    UpstreamUnavailable,
)
from autoglm.gateway.openai.errors import Error

REFERENCE = "#/components/schemas/{model}"
TEXT = {"schema": {"type": "string"}}

_REQUEST_ID = {"x-request-id": {"required": True, "description": "The request's id.", "schema": {"type": "string"}}}
_ALLOWANCE = {
    "x-ratelimit-limit-requests": {"description": "Requests per minute, if limited.", "schema": {"type": "integer"}},
    "x-ratelimit-remaining-requests": {"description": "Requests left of them.", "schema": {"type": "integer"}},
    "x-ratelimit-reset-requests": {
        "description": "Time until one more is available, as in `1.500s`.", "schema": {"type": "string"}
    },
}  # fmt: skip
_RETRY_AFTER = {"retry-after": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
_SERVER_TIMING = {"server-timing": {"description": "The stages, in milliseconds.", "schema": {"type": "string"}}}
_PARAMETERS = [
    {
        "name": "x-request-id", "in": "header", "schema": {"type": "string"},
        "description": "Returned, and sent to every service. Replaced unless it is 1 to 128 printable characters.",
    },
    {
        "name": "traceparent", "in": "header", "schema": {"type": "string"},
        "description": "W3C trace context, which the trace of the request continues.",
    },
    {
        "name": "x-request-timeout", "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0},
        "description": "Maximum seconds for the answer.",
    },
]  # fmt: skip
_LOOKUP_ERRORS = (
    InvalidRequest, AuthenticationFailed, PermissionDenied, NotFound, UpstreamUnavailable, DeadlineExceeded,
    InternalError,
)  # fmt: skip
_ALL_ERRORS = tuple(MeshError.__subclasses__())


@dataclass(frozen=True, slots=True)
class Events:
    """Server-sent events, each with one of `models` as its data; the last may have `closing` instead."""

    models: Sequence[type[BaseModel]]
    closing: str = "[DONE]"


Content = type[BaseModel] | Events | Mapping[str, Any]  # of a media type; a mapping is an OpenAPI media type as it is


@dataclass(frozen=True, slots=True)
class Spec:
    """How a route that answers a body is described: `request` and `answers` map media types to their content."""

    name: str
    description: str
    request: Mapping[str, Content]
    answers: Mapping[str, Content]


def answering(spec: Spec) -> dict[str, Any]:
    """Return the arguments of a FastAPI route that `spec` describes."""
    body = {"required": True, "content": _contents(spec.request)}
    return {"name": spec.name, "description": spec.description} | _guarded(
        spec.answers, _ALL_ERRORS, _ALLOWANCE | _SERVER_TIMING, {"requestBody": body, "parameters": _PARAMETERS}
    )


def looking_up(answer: type[BaseModel], *parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a FastAPI route that tells something to clients with a key."""
    return _guarded({"application/json": answer}, _LOOKUP_ERRORS, {}, {"parameters": [*parameters, *_PARAMETERS]})


def watching(answers: Mapping[int, Mapping[str, Content]]) -> dict[str, Any]:
    """Return the arguments of a FastAPI route for monitoring: status → media types → content."""
    return {
        "responses": {status: {"content": _contents(each), "headers": _REQUEST_ID} for status, each in answers.items()}
    }


def complete(app: FastAPI, specs: Iterable[Spec], answers: Iterable[type[BaseModel]]) -> None:
    """Add the components of `specs` and `answers` to the document, once it is asked for."""
    plain = app.openapi

    @cache
    def document() -> dict[str, Any]:
        return plain() | {"components": _components(specs, answers)}

    app.openapi = document  # type: ignore[method-assign]


def _components(specs: Iterable[Spec], answers: Iterable[type[BaseModel]]) -> dict[str, Any]:
    named: list[tuple[type[BaseModel], JsonSchemaMode]] = [(Error, "serialization")]
    named += [(model, "serialization") for model in answers]
    for spec in specs:
        named += [(model, "validation") for model in _models(spec.request)]
        named += [(model, "serialization") for model in _models(spec.answers)]
    _, schemas = models_json_schema(named, ref_template=REFERENCE)
    key = {"type": "http", "scheme": "bearer", "description": "An API key, if the server has any."}
    return {"schemas": _by_title(schemas["$defs"]), "securitySchemes": {"key": key}}


def _models(contents: Mapping[str, Content]) -> Iterable[type[BaseModel]]:
    for content in contents.values():
        if isinstance(content, Events):
            yield from content.models
        elif isinstance(content, type):
            yield content


def _by_title(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return `schemas` under their titles, which clients know, where those differ from the names of the classes."""
    titles = {REFERENCE.format(model=name): REFERENCE.format(model=each["title"]) for name, each in schemas.items()}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: titles[each] if key == "$ref" else renamed(each) for key, each in value.items()}
        return [renamed(each) for each in value] if isinstance(value, list) else value

    return {each["title"]: renamed(each) for each in schemas.values()}


def _contents(contents: Mapping[str, Content]) -> dict[str, Any]:
    return {kind: _content(content) for kind, content in contents.items()}


def _content(content: Content) -> Mapping[str, Any]:
    if isinstance(content, Events):
        return _events(content)
    return {"schema": _reference(content)} if isinstance(content, type) else content


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.model_config.get("title") or model.__name__)}


def _events(events: Events) -> dict[str, Any]:
    held = {"anyOf": [_reference(model) for model in events.models]}
    data: list[dict[str, Any]] = [{"contentMediaType": "application/json", "contentSchema": held}]
    return {
        "schema": {
            "type": "object",
            "description": "One event.",
            "required": ["data"],
            "properties": {
                "event": {"type": "string"},
                "data": {"type": "string", "anyOf": data + ([{"const": events.closing}] if events.closing else [])},
            },
        }
    }


def _guarded(
    answers: Mapping[str, Content], errors: Sequence[type[MeshError]], headers: dict[str, Any], extra: Mapping[str, Any]
) -> dict[str, Any]:
    answered = {200: {"content": _contents(answers), "headers": headers | _REQUEST_ID}}
    return {
        "responses": answered
        | {status: _refusal(errors, status) for status in sorted({e.http_status for e in errors})},
        "openapi_extra": {"security": [{"key": []}, {}], **extra},
    }


def _refusal(errors: Sequence[type[MeshError]], status: int) -> dict[str, Any]:
    """Return the response for `status`, which one or more of `errors` have."""
    kinds = [kind for kind in errors if kind.http_status == status]
    waits = any(kind.default_retry_after is not None for kind in kinds)
    return {
        "description": " ".join(f"`{kind.type}`: {kind.__doc__}" for kind in kinds),
        "content": _contents({"application/json": Error}),
        "headers": _REQUEST_ID | (_RETRY_AFTER if waits else {}),
    }

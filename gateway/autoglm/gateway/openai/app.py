"""The HTTP door: OpenAI's API, health and metrics. Every error, whatever raises it, has OpenAI's body."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoglm.common.errors import InvalidRequest, MeshError, NotFound, RequestTooLarge
from autoglm.gateway.assistant import Desk, Model, new_call
from autoglm.gateway.conversation import Call, Conversation
from autoglm.gateway.openai import embeddings, openapi
from autoglm.gateway.openai import transcriptions as transcription
from autoglm.gateway.openai.chat import request as chat
from autoglm.gateway.openai.chat.render import (
    Answer,
    allowance_headers,
    error_body,
    error_headers,
    model_card,
    server_timing,
)
from autoglm.gateway.openai.responses import request as responses
from autoglm.gateway.openai.responses.render import ResponseAnswer
from autoglm.gateway.openai.security_headers import protect
from autoglm.gateway.pipeline import collect

QUIET = ("/health/", "/metrics", "/playground/")  # routes that machines and browsers call by themselves
CLIENT_GONE = 499
EVENT_STREAM = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
]
Rendering = Answer | ResponseAnswer
Reply = Callable[[Send], Awaitable[None]]
STALLED_SECONDS = 5.0  # past the deadline, a client that does not read its answer is cut off


class Json(Response):
    """A JSON response, by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return `content` as JSON."""
        return orjson.dumps(content)


def create_app(desk: Desk) -> FastAPI:
    """Return the application; `desk` does the work."""
    app = FastAPIOffline(title="AutoGLM", description="An OpenAI-compatible API.", redoc_url=None)
    app.add_middleware(RequestScope, desk=desk)
    protect(app, desk.settings)
    _add_errors(app, desk)
    _add_chat(app, desk)
    _add_models(app, desk)
    _add_operations(app, desk)
    _add_playground(app)
    openapi.complete(app)
    return app


def _add_errors(app: FastAPI, desk: Desk) -> None:
    @app.exception_handler(MeshError)
    async def mesh_error(_: Request, error: MeshError) -> Response:
        return error_response(desk.failed(error))

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:200]
        if error.status_code == 404:
            return error_response(desk.failed(NotFound(f"there is no route {path}")))
        known = desk.failed(InvalidRequest(f"{request.method} is not allowed on {path}"))
        return Json(error_body(known), error.status_code, dict(error.headers or {}))


def _add_chat(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def create_chat_completion() -> ChatExchange:
        """Answer a conversation of text, images and speech; with `stream`, as server-sent events."""
        return ChatExchange(desk)

    @app.post("/v1/responses", **openapi.RESPONSES)
    async def create_response() -> ResponseExchange:
        """Answer items of text, images and speech; with `stream`, as server-sent events."""
        return ResponseExchange(desk)

    @app.post("/v1/embeddings", **openapi.EMBEDDINGS)
    async def create_embeddings() -> EmbeddingExchange:
        """Make a vector of each text, or of an image or a recording."""
        return EmbeddingExchange(desk)

    @app.post("/v1/audio/transcriptions", **openapi.TRANSCRIPTIONS)
    async def create_transcription() -> TranscriptionExchange:
        """Write down what is said in a recording."""
        return TranscriptionExchange(desk)


def _add_models(app: FastAPI, desk: Desk) -> None:
    created = int(time.time())

    @app.get("/v1/models", **openapi.MODELS)
    async def list_models(request: Request) -> Json:
        """List the names that requests may use."""
        _admit(request, desk)
        cards = [model_card(card, desk.settings, created) for card in await desk.models()]
        return Json({"object": "list", "data": cards})

    @app.get("/v1/models/{model}", **openapi.MODEL)
    async def retrieve_model(request: Request) -> Json:
        """Describe one name."""
        model = request.path_params["model"]
        _admit(request, desk)
        await desk.model(model, "model")
        (card,) = [card for card in await desk.models() if card.id == model]
        return Json(model_card(card, desk.settings, created))


def _add_operations(app: FastAPI, desk: Desk) -> None:
    @app.get("/health/live", **openapi.LIVE)
    async def live() -> Json:
        """Tell that the process runs."""
        return Json({"status": "live"})

    @app.get("/health/ready", **openapi.READY)
    async def ready() -> Json:
        """Tell whether text can be answered, and how each dependency is."""
        status = "ready" if desk.state.ready else "unavailable"
        return Json({"status": status, "dependencies": desk.state.report()}, 200 if desk.state.ready else 503)

    @app.get("/metrics", **openapi.METRICS)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(desk.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _add_playground(app: FastAPI) -> None:
    files = PageFiles(directory=Path(__file__).parents[1] / "playground")
    app.mount("/playground", files)

    @app.get("/", include_in_schema=False)
    async def playground(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)


class PageFiles(StaticFiles):
    """The files of a page; browsers ask each time whether they have changed, so that all are of one version."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or that it has not changed."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


class Exchange(Response, ABC):
    """One request from its first byte to the last of its answer, so that its place is held throughout."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; raises MeshError as long as nothing was sent."""
        request = Request(scope, receive)
        call = _admit(request, self._desk)
        async with self._desk.place(call):
            reply = await self._read(request, call)
            left = call.deadline.remaining()
            limit = None if left is None else left + STALLED_SECONDS
            await unless_disconnected(receive, reply(send), limit)

    async def _body(self, request: Request, call: Call) -> bytearray:
        return await read_body(request, self._desk, call)

    @abstractmethod
    async def _read(self, request: Request, call: Call) -> Reply:
        """Read the request and return what answers it."""


class TranscriptionExchange(Exchange):
    """A recording comes, its transcript goes."""

    async def _read(self, request: Request, call: Call) -> Reply:
        asked = await transcription.parse(request.headers, await self._body(request, call))
        await self._desk.model(asked.model, "model")
        return partial(self._reply, asked, call)

    async def _reply(self, asked: transcription.Asked, call: Call, send: Send) -> None:
        said = await self._desk.transcribe(asked.audio, call)
        if asked.stream:
            await _start(send, EVENT_STREAM)
            await _send(send, transcription.events(said), more=False)
            return
        await _start(send, [(b"content-type", transcription.FORMATS[asked.format].encode())])
        await _send(send, transcription.render(said, asked.format), more=False)


class EmbeddingExchange(Exchange):
    """Texts, an image or a recording come, their vectors go."""

    async def _read(self, request: Request, call: Call) -> Reply:
        asked = embeddings.parse(await self._body(request, call))
        model = await self._desk.model(asked.model, "model")
        return partial(self._reply, asked, model, call)

    async def _reply(self, asked: embeddings.Asked, model: Model, call: Call, send: Send) -> None:
        found = await self._desk.embed(asked.inputs, model, call)
        await _start(send, [(b"content-type", b"application/json")])
        for piece in embeddings.render(found, asked, model.name):
            await _send(send, piece)
            await asyncio.sleep(0)  # whoever else is there comes first
        await _send(send, b"", more=False)


class ChatExchange(Exchange):
    """A conversation comes, its answer goes, whole or in steps."""

    async def _read(self, request: Request, call: Call) -> Reply:
        asked = chat.parse(await self._body(request, call))
        conversation = chat.to_conversation(asked, self._desk.settings.max_media_parts)
        model = await self._desk.model(asked.model, "model")
        answer = Answer(call.request_id, model.name, asked.include_usage)
        return self._reply(replace(conversation, adapter=model.adapter), call, answer, asked.stream)

    def _reply(self, conversation: Conversation, call: Call, answer: Rendering, stream: bool | None) -> Reply:
        return partial(self._stream if stream else self._whole, conversation, call, answer)

    async def _whole(self, conversation: Conversation, call: Call, answer: Rendering, send: Send) -> None:
        async with aclosing(self._desk.chat(conversation, call)) as steps:
            choices, summary = await collect(steps, conversation.n)
        headers = [(b"content-type", b"application/json"), (b"server-timing", server_timing(summary.stages).encode())]
        await _start(send, headers)
        await _send(send, answer.body(choices, summary), more=False)

    async def _stream(self, conversation: Conversation, call: Call, answer: Rendering, send: Send) -> None:
        """Send the steps as they come; the status waits for the first, so an early failure still has its own."""
        opening = answer.opening(conversation.n)
        try:
            async with aclosing(self._desk.chat(conversation, call)) as steps:
                async for step in steps:
                    if opening:
                        await _start(send, EVENT_STREAM)
                    await _send(send, opening + answer.chunk(step))
                    opening = b""
        except Exception as error:
            if opening:
                raise
            await _send(send, answer.failed(self._desk.failed(error)), more=False)
        else:
            await _send(send, answer.end, more=False)


class ResponseExchange(ChatExchange):
    """The same in the types of OpenAI's Responses API."""

    async def _read(self, request: Request, call: Call) -> Reply:
        asked = responses.parse(await self._body(request, call))
        conversation = responses.to_conversation(asked, self._desk.settings.max_media_parts)
        model = await self._desk.model(asked.model, "model")
        answer = ResponseAnswer(call.request_id, model.name, asked)
        return self._reply(replace(conversation, adapter=model.adapter), call, answer, asked.stream)


class RequestScope:
    """Plain ASGI middleware: gives each request its id, its log line, and an answer whatever fails."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        headers = Headers(scope=scope)
        call = new_call(headers.get("x-request-id"), headers.get("traceparent"))
        scope.setdefault("state", {})["call"] = call
        status = CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", call.request_id.encode()),
                    *allowance_headers(call.allowance),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            self._desk.metrics.aborted()
        except Exception as error:
            known = self._desk.failed(error)
            if status == CLIENT_GONE:
                await error_response(known)(scope, receive, send_with_id)
        finally:
            level = logging.DEBUG if scope["path"].startswith(QUIET) else logging.INFO
            self._desk.log(call, f"{scope['method']} {_route(scope)}", status, level)


def error_response(error: MeshError) -> Json:
    """Return `error` as a response."""
    return Json(error_body(error), error.http_status, error_headers(error))


async def read_body(request: Request, desk: Desk, call: Call) -> bytearray:
    """Return the body; raises RequestTooLarge or RateLimited before more bytes are kept than may be."""
    limit = desk.settings.max_body_bytes
    too_large = RequestTooLarge(f"the body is larger than {limit} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async with asyncio.timeout(call.deadline.remaining()):
        async for piece in request.stream():
            if len(body) + len(piece) > limit:
                raise too_large
            desk.memory.take(call, len(piece))
            body += piece
    return body


async def unless_disconnected(receive: Receive, work: Awaitable[None], limit: float | None) -> None:
    """Do `work`, but cancel it once the client hangs up or `limit` seconds pass; then raises ClientDisconnect."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _admit(request: Request, desk: Desk) -> Call:
    call: Call = request.scope["state"]["call"]
    desk.admit(call, request.headers.get("authorization"), _timeout(request.headers.get("x-request-timeout")))
    return call


def _timeout(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidRequest("x-request-timeout must be a positive number of seconds", param="x-request-timeout")
    return seconds


def _route(scope: Scope) -> str:
    """Return the route's template, so that no text of a client reaches the log."""
    return getattr(scope.get("route"), "path", "(no route)")


async def _start(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})

"""Odd HTTP requests, and what the answers to them say."""

import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from random import Random
from typing import Any
from urllib.parse import urlsplit

from ..asking import CHAT, MODEL
from ..waiting import NET_SECONDS
from . import formats
from .media import a_recording, picture, recording
from .tally import FAULTS, Result, of_http, of_type
from .values import INTEGERS, TEXTS, damaged, mutated_json, text
from .whole import (
    EMBEDDINGS,
    MAX_TOKENS,
    RESPONSES,
    TRANSCRIPTIONS,
    audio_part,
    bodies,
    chat,
    form,
    image_part,
)

JSON_TYPE = "application/json"
DEADLINE, SHORT_DEADLINE = "60", "10"  # seconds; the short one is for heads after which the body may never end
PATHS = (
    CHAT,
    RESPONSES,
    EMBEDDINGS,
    TRANSCRIPTIONS,
    "/v1/models",
    f"/v1/models/{MODEL}",
    "/health/ready",
    "/",
    "/docs",
)
ODD_PATHS = (
    "*",
    "http://x/",
    "/%",
    "/%00",
    "//",
    "/playground/../x",
    "/v1/models/" + "a" * 9000,
    "/v1//models",
    "",
    "?",
    "/?a#b",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "get", "PRI", "X" * 40, "")
NAMES = (
    "x-request-id", "traceparent", "x-request-timeout", "authorization", "content-type", "content-encoding", "accept",
    "accept-encoding", "transfer-encoding", "expect", "connection", "upgrade", "host", "origin", "range",
    "cookie", "x-forwarded-for", "if-none-match", "te", "trailer", "user-agent", "x-odd", "",
)  # fmt: skip
# A length that is larger than the body only makes the server wait for the rest.
LENGTHS = ("", "-1", "x", "0", "5", "+5", "5, 5", "5;", " 5", "0x5", str(2**40), str(2**64), "9" * 30)
VALUES = (
    "gzip", "deflate", "br", "gzip, gzip", "chunked", "identity", "100-continue", "close", "h2c", "*/*", "nan",
    "inf", "-1", "0", "1e-9", "1e308", "1e999", "0x10", "1_0", " 5 ", "bytes=0-1", "bytes=9-1", "Bearer", "Bearer ",
    "Bearer EMPTY", "basic x", "application/json; charset=utf-16", "text/plain", "multipart/form-data",
    "multipart/form-data; boundary=", "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "a" * 129, "a" * 7000, "é", "\x01",
    "\t", "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it is sent."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def on_the_wire(self, host: str) -> bytes:
        """Return the whole request; its own headers come before those that it needs."""
        given = {name.lower() for name, _ in self.headers}
        needed = {
            "host": host,
            "connection": "close",
            "content-length": str(len(self.body)),
            "x-request-timeout": DEADLINE,
        }
        also = [(name, value) for name, value in needed.items() if name not in given]
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in (*self.headers, *also))]
        return "\r\n".join(lines).encode(errors="replace") + b"\r\n\r\n" + self.body


def _json(path: str, body: Any) -> HttpRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpRequest("POST", path, data, (("content-type", JSON_TYPE),))


def _form(body: tuple[bytes, str]) -> HttpRequest:
    return HttpRequest("POST", TRANSCRIPTIONS, body[0], (("content-type", body[1]),))


def odd_body(draw: Random) -> HttpRequest:
    """Return a request of any route with damage to its body."""
    if draw.random() < 0.2:
        return _form(_odd_form(draw))
    path, whole = draw.choice(bodies())
    request = _json(path, mutated_json(draw, whole))
    return _compressed(draw, request) if draw.random() < 0.1 else request


def odd_head(draw: Random) -> HttpRequest:
    """Return a request with an odd method, path or headers."""
    request = _json(CHAT, chat({"type": "text", "text": "hi"}, stream=draw.random() < 0.3))
    odd = (*VALUES, *TEXTS, *map(str, INTEGERS))
    headers = [(draw.choice(NAMES), draw.choice(odd)) for _ in range(draw.randint(0, 3))]
    if draw.random() < 0.1:
        headers.append(("content-length", draw.choice(LENGTHS)))
    if not any(name == "x-request-timeout" for name, _ in headers):
        headers.append(("x-request-timeout", SHORT_DEADLINE))
    kept = [] if draw.random() < 0.1 else list(request.headers)
    method = "POST" if draw.random() < 0.7 else draw.choice(METHODS)
    path = (
        CHAT if draw.random() < 0.6 else draw.choice((*PATHS, *ODD_PATHS, "/" + text(draw), "/v1/models/" + text(draw)))
    )
    return HttpRequest(method, path, request.body, (*kept, *headers))


def _odd_form(draw: Random) -> tuple[bytes, str]:
    """Return a form with an odd field, or with damage."""
    names = (
        "model",
        "response_format",
        "stream",
        "temperature",
        "language",
        "include[]",
        "timestamp_granularities[]",
        "x",
    )
    fields = {"model": MODEL} | {draw.choice(names): text(draw) for _ in range(draw.randrange(3))}
    data, kind = form(
        a_recording(), **{name: value.encode(errors="replace").decode() for name, value in fields.items()}
    )
    return (damaged(draw, data) if draw.random() < 0.5 else data), kind


def _compressed(draw: Random, request: HttpRequest) -> HttpRequest:
    """Return a request whose body is compressed, and damaged half the time."""
    name, compress = draw.choice((("gzip", gzip.compress), ("deflate", zlib.compress), ("br", gzip.compress)))
    data = compress(request.body)
    headers = (*request.headers, ("content-encoding", name))
    return replace(request, body=damaged(draw, data) if draw.random() < 0.5 else data, headers=headers)


def odd_media(draw: Random) -> HttpRequest:
    """Return a request with a damaged picture or recording."""
    if draw.random() < 0.3:
        wanted = draw.choice(("json", "verbose_json", "text", "srt", "vtt"))
        return _form(form(recording(draw), model=MODEL, response_format=wanted))
    part = image_part(picture(draw)) if draw.random() < 0.5 else audio_part(recording(draw))
    if draw.random() < 0.3:
        return _json(EMBEDDINGS, {"model": MODEL, "messages": [{"role": "user", "content": [part]}]})
    return _json(CHAT, chat({"type": "text", "text": "hi"}, part))


def odd_format(draw: Random) -> HttpRequest:
    """Return a request whose answer has to match something."""
    match draw.choice(("regex", "grammar", "choice", "json", "schema", "tools", "response")):
        case "regex" | "grammar" as kind:
            return _formatted(draw, {kind: getattr(formats, kind)(draw)})
        case "choice":
            return _formatted(draw, {"choice": formats.choices(draw)})
        case "json":
            return _formatted(draw, {"json": formats.parameters(draw)})
        case "schema":
            named = {"name": "n", "schema": formats.schema(draw), "strict": draw.random() < 0.4}
            return _json(
                CHAT,
                chat({"type": "text", "text": "hi"}, response_format={"type": "json_schema", "json_schema": named}),
            )
        case "tools":
            return _with_tools(draw)
    wanted = {"type": "json_schema", "name": "n", "schema": formats.schema(draw), "strict": draw.random() < 0.4}
    return _json(
        RESPONSES, {"model": MODEL, "input": "hi", "text": {"format": wanted}, "max_output_tokens": MAX_TOKENS}
    )


def _formatted(draw: Random, wanted: dict[str, Any]) -> HttpRequest:
    return _json(CHAT, chat({"type": "text", "text": "hi"}, structured_outputs=wanted, stream=draw.random() < 0.3))


def _with_tools(draw: Random) -> HttpRequest:
    offered = []
    for number in range(draw.randint(1, 3)):
        function = {"name": f"f{number}", "strict": draw.random() < 0.5, "parameters": formats.schema(draw)}
        offered.append({"type": "function", "function": function})
    choice = draw.choice(("required", "auto", {"type": "function", "function": {"name": "f0"}}))
    return _json(CHAT, chat({"type": "text", "text": "hi"}, tools=offered, tool_choice=choice))


HTTP: Mapping[str, Callable[[Random], HttpRequest]] = {
    "HTTP: bodies": odd_body,
    "HTTP: methods, paths, headers": odd_head,
    "HTTP: media": odd_media,
    "HTTP: formats, schemas, tools": odd_format,
}


def send(url: str, request: HttpRequest) -> Result:
    """Send a request on a connection of its own and return what came of it; blocks."""
    started, address = time.monotonic(), urlsplit(url)
    try:
        with socket.create_connection((address.hostname, address.port), NET_SECONDS) as connection:
            connection.sendall(request.on_the_wire(address.netloc))
            answer = HTTPResponse(connection, method=request.method)
            answer.begin()
            body = answer.read()
    except TimeoutError:
        return Result("hang", f"{request.method} {request.path}", time.monotonic() - started)
    except (OSError, HTTPException) as error:
        return Result("death", f"{type(error).__name__}: {error}", time.monotonic() - started)
    return _result(request, answer.status, answer.headers.get_content_type(), body, time.monotonic() - started)


def _result(request: HttpRequest, status: int, kind: str, body: bytes, seconds: float) -> Result:
    """Return what an answer says: an error of another form than OpenAI's has no type."""
    said = f"{status} {body[:300]!r}"
    if kind == "text/event-stream":
        return _streamed(body, seconds)
    if status < 400 or request.method == "HEAD":
        return of_http(status, said, seconds)
    try:
        typed = of_type(json.loads(body)["error"]["type"], said, seconds)
    except (ValueError, KeyError, TypeError):
        return Result("untyped", said, seconds)
    return typed if typed.outcome in FAULTS else of_http(status, said, seconds)


def _streamed(body: bytes, seconds: float) -> Result:
    """Return how a stream ended: with the event of an error, or well."""
    for event in body.split(b"\n\n"):
        if event.startswith(b"event: error"):
            error = json.loads(event.partition(b"data: ")[2])
            return of_type(error.get("error", error)["type"], event.decode()[:300], seconds)
    return Result("OK", "", seconds)

"""One request and its answer over HTTP: authenticate, admit, read, resolve the model, reply."""

import asyncio
from collections.abc import Awaitable
from typing import Generic, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from autoglm.common.errors import InvalidRequest, RequestTooLarge
from autoglm.gateway.admission.admission import AdmittedSlot
from autoglm.gateway.backend import Backend
from autoglm.gateway.context import RequestContext
from autoglm.gateway.openai.content_encoding import ContentDecoder
from autoglm.gateway.openai.route import Incoming, P, Responder, Route
from autoglm.gateway.tasks import OFF_LOOP_BYTES

T = TypeVar("T")

STALLED_SECONDS = 5.0  # past the deadline, a client that does not read its answer is cut off


class Exchange(Response, Generic[P]):
    """Runs a route for one request. The slot is held from the first byte read to the last byte sent."""

    def __init__(self, backend: Backend, route: Route[P]) -> None:
        super().__init__()
        self._backend, self._route = backend, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; raises MeshError as long as nothing was sent."""
        request = Request(scope, receive)
        context = authenticate(request, self._backend)
        async with self._backend.admission.slot(context) as slot:
            drain = self._backend.drain
            incoming = await drain.run(self._receive(request, slot))
            reading = drain.run(self._read(incoming, slot))
            is_small = len(incoming.body) <= OFF_LOOP_BYTES  # and so read at once
            parsed = await (reading if is_small else unless_disconnected(receive, reading, None))
            del incoming
            model = await drain.run(self._backend.assistant.resolve(parsed.model, "model"))
            left = context.deadline.remaining()
            limit = None if left is None else left + STALLED_SECONDS
            respond = Responder(self._backend, slot, model, send)
            await unless_disconnected(receive, self._route.reply(parsed, respond), limit)

    async def _receive(self, request: Request, slot: AdmittedSlot) -> Incoming:
        settings = self._backend.settings
        body = await read_body(request, slot, settings.max_body_bytes)
        return Incoming(request.headers, body, settings.max_media_parts, self._backend.readers)

    async def _read(self, incoming: Incoming, slot: AdmittedSlot) -> P:
        async with asyncio.timeout(slot.context.deadline.remaining()):
            return await self._route.read(incoming)


def authenticate(request: Request, backend: Backend) -> RequestContext:
    """Check the request's key and timeout; raises AuthenticationFailed or InvalidRequest."""
    context: RequestContext = request.scope["state"]["context"]
    timeout = _timeout(request.headers.get("x-request-timeout"))
    backend.admission.authenticate(context, request.headers.getlist("authorization"), timeout)
    return context


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


async def read_body(request: Request, slot: AdmittedSlot, limit: int) -> bytearray:
    """Return the body, decompressed; raises RequestTooLarge beyond `limit` bytes, RateLimited beyond the byte budget,
    UnsupportedEncoding, or InvalidRequest for compressed data that is broken.

    The first two are raised before the bytes in excess are kept.
    """
    decoder = ContentDecoder(request.headers.getlist("content-encoding"), limit)
    too_large = RequestTooLarge(f"the body is larger than {limit} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body, arrived = bytearray(), 0
    async with asyncio.timeout(slot.context.deadline.remaining()):
        async for piece in request.stream():
            arrived += len(piece)
            if arrived > limit:
                raise too_large
            for number, part in enumerate(decoder.feed(piece)):
                if number:
                    await asyncio.sleep(0)  # let other requests run: a compressed piece can stand for megabytes
                slot.reserve(len(part))
                body += part
        decoder.finish()
    return body


async def unless_disconnected(receive: Receive, work: Awaitable[T], limit: float | None) -> T:
    """Return what `work` returns, but cancel it and raise ClientDisconnect once the client hangs up or `limit` seconds
    pass."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

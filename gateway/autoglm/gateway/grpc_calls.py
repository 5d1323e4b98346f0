"""What every gRPC call goes through around its method: key, slot, message, status, metrics and the access log.

By itself, gRPC reads and decompresses a message without a limit before the method runs, also for a caller without a
key, and refuses without details what it cannot read. So the interceptor has each call arrive as a stream of bytes, of
which `admitted` reads the one message once the key is checked and a slot is held. On the wire nothing differs.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtoMessage
from google.rpc import code_pb2
from grpc_status import rpc_status

from autoglm.common.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MeshError,
    MethodNotFound,
    RateLimited,
    RequestTooLarge,
    to_status,
)
from autoglm.common.tracing import CONTEXT_NAMES
from autoglm.gateway.admission.admission import AdmittedSlot
from autoglm.gateway.backend import Backend, log_request
from autoglm.gateway.context import RequestContext, new_context
from autoglm.gateway.grpc_options import MAX_STANDARD_CALLS
from autoglm.gateway.message_bounds import check_fields
from autoglm.gateway.tasks import off_loop

Rpc = grpc.aio.ServicerContext[Any, Any]
FindHandler = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

_PACKAGE = "autoglm.v1."
_READ_NAMES = ("x-request-id", *CONTEXT_NAMES)
STANDARD = "/grpc."  # health and reflection, which need no key
PROMPT_SECONDS = 1.0  # a message that takes longer to arrive counts with the most bytes that it may have
SMALL_SECONDS = 10.0  # for a message of a method that needs no slot
GZIP_MAGIC = b"\x1f\x8b"  # no protobuf message begins like this: its first field would be of a kind that is not there
_GZIP_WBITS = 31


@asynccontextmanager
async def answered(backend: Backend, rpc: Rpc, method: str) -> AsyncIterator[RequestContext]:
    """Run a call inside the block; an error becomes the call's status, and the end is counted and logged."""
    headers = {name: value for name in _READ_NAMES for value in _metadata(rpc, name)[:1]}
    span_name = None if method.startswith(STANDARD) else f"{_PACKAGE}{method}"
    context = new_context(headers, span_name, {"rpc.system.name": "grpc", "rpc.method": f"{_PACKAGE}{method}"})
    status = code = "CANCELLED"
    try:
        yield context
        status = code = "OK"
    except (asyncio.CancelledError, GeneratorExit):  # gRPC closes a stream whose client left during a write
        context.span.set({"autoglm.cancelled": True})
        raise
    except Exception as error:
        known = backend.failed(error)
        status, code = known.type, code_pb2.Code.Name(known.grpc_code)
        sent = rpc_status.to_status(to_status(known))
        code = sent.code.name
        await rpc.abort(sent.code, sent.details, sent.trailing_metadata)
    finally:
        backend.metrics.answered("grpc", method, code)
        log_request(context, method, status)
        context.span.set({"rpc.response.status_code": code})
        context.end_span()


@asynccontextmanager
async def authenticated(backend: Backend, rpc: Rpc, method: str) -> AsyncIterator[RequestContext]:
    """The same once the call's key is checked, and with its deadline."""
    async with answered(backend, rpc, method) as context:
        await rpc.send_initial_metadata((("x-request-id", context.request_id),))
        backend.admission.authenticate(context, _metadata(rpc, "authorization"), rpc.time_remaining())
        yield context


@asynccontextmanager
async def admitted(backend: Backend, rpc: Rpc, method: str, request: ProtoMessage) -> AsyncIterator[AdmittedSlot]:
    """The same for a call that makes the services work: it holds a slot, and then its message is read."""
    async with authenticated(backend, rpc, method) as context, backend.admission.slot(context) as slot:
        slot.reserve(await receive(backend, rpc, request, context, slot))
        yield slot


async def receive(
    backend: Backend, rpc: Rpc, request: ProtoMessage, context: RequestContext, slot: AdmittedSlot | None = None
) -> int:
    """Read the call's message into `request`, which is empty, and return its size in bytes.

    Raises RequestTooLarge, InvalidRequest for bytes that cannot be parsed, TimeoutError past the deadline, RateLimited
    when the bytes of a message that arrives slowly exceed the budget.
    """
    limit, left = backend.settings.max_body_bytes, context.deadline.remaining()
    allowed = SMALL_SECONDS if slot is None else backend.settings.default_timeout
    async with asyncio.timeout(allowed if left is None else min(left, allowed)):
        async with _counted(slot, limit):
            data = await backend.drain.run(rpc.read())
        if data is grpc.aio.EOF:
            raise RequestTooLarge(f"no message arrived: there is none, or it is larger than {2 * limit} bytes")
        return await off_loop(len(data), lambda: _parse(data, request, limit))


@asynccontextmanager
async def _counted(slot: AdmittedSlot | None, size: int) -> AsyncIterator[None]:
    """Count `size` bytes for a message that takes long to arrive in the block; raises RateLimited beyond the budget.

    gRPC holds what has arrived of it, and does not say how much that is.
    """
    refused: RateLimited | None = None
    held, loop = 0, asyncio.get_running_loop()

    def count() -> None:
        nonlocal held, refused
        try:
            if slot is not None:
                slot.reserve(size)
                held = size
        except RateLimited as error:
            refused = error
            timeout.reschedule(loop.time())

    timer = loop.call_later(PROMPT_SECONDS, count)
    try:
        async with asyncio.timeout(None) as timeout:
            yield
    except TimeoutError:
        raise refused or TimeoutError from None
    finally:
        timer.cancel()
        if slot is not None:
            slot.give_back(held)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Hands each call to its method with the message unread, and refuses calls of unknown methods."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._standard_calls = backend, 0

    async def intercept_service(self, continuation: FindHandler, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call."""
        handler, name = await continuation(handler_call_details), str(handler_call_details.method)
        if handler is None:
            return self._unknown(name)
        return self._standard(handler, name) if name.startswith(STANDARD) else _unread(handler)

    def _unknown(self, name: str) -> Any:
        enter = answered if name.startswith(STANDARD) else authenticated

        async def refuse(_: object, rpc: Rpc) -> AsyncGenerator[Any, None]:
            async with enter(self._backend, rpc, "(no method)"):
                raise MethodNotFound(f"there is no method {name[:200]}")
            yield  # never reached: makes this a generator

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _standard(self, handler: Any, name: str) -> Any:
        """Return one of gRPC's own methods, so that its messages have the same limit and the same errors."""
        limit = self._backend.settings.max_body_bytes

        async def parsed(messages: AsyncIterator[bytes]) -> AsyncGenerator[ProtoMessage, None]:
            while (data := await _soon(messages)) is not None:
                request = _empty(handler)
                _parse(data, request, limit)
                yield request

        async def call(messages: AsyncIterator[bytes], rpc: Rpc) -> AsyncGenerator[Any, None]:
            try:
                with self._standard_slot():
                    requests = parsed(messages)
                    request = requests if handler.request_streaming else await anext(requests, None)
                    if request is None:
                        raise InvalidRequest("no message arrived")
                    async for answer in self._backend.drain.until_end(_answers(handler, request, rpc)):
                        yield answer
            except MeshError:
                async with answered(self._backend, rpc, name):
                    raise

        return grpc.stream_stream_rpc_method_handler(call, response_serializer=handler.response_serializer)

    @contextmanager
    def _standard_slot(self) -> Iterator[None]:
        if self._standard_calls >= MAX_STANDARD_CALLS:
            raise RateLimited("too many calls of health and reflection are open; try again shortly")
        self._standard_calls += 1
        try:
            yield
        finally:
            self._standard_calls -= 1


def _unread(handler: Any) -> Any:
    """Return one of the mesh's methods; its request is empty until `receive` reads it."""

    async def stream(_: object, rpc: Rpc) -> AsyncGenerator[Any, None]:
        async with aclosing(handler.unary_stream(_empty(handler), rpc)) as answers:
            async for answer in answers:
                yield answer

    async def unary(_: object, rpc: Rpc) -> Any:
        return await handler.unary_unary(_empty(handler), rpc)

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, response_serializer=handler.response_serializer)
    return grpc.stream_unary_rpc_method_handler(unary, response_serializer=handler.response_serializer)


async def _soon(messages: AsyncIterator[bytes]) -> bytes | None:
    """Return the next message, None after the last."""
    try:
        async with asyncio.timeout(SMALL_SECONDS):
            return await anext(messages, None)
    except TimeoutError:
        raise DeadlineExceeded(f"no whole message arrived within {SMALL_SECONDS:g} s") from None


async def _answers(handler: Any, request: Any, rpc: Rpc) -> AsyncGenerator[Any, None]:
    """Yield what one of gRPC's own methods answers, once or as a stream."""
    found = (handler.stream_stream or handler.unary_stream or handler.unary_unary)(request, rpc)
    if isinstance(found, AsyncGenerator):
        async with aclosing(found):
            async for answer in found:
                yield answer
    elif (answer := await found) is not None:  # a method may also write to `rpc`
        yield answer


def _empty(handler: Any) -> Any:
    return handler.request_deserializer(b"")


def _parse(data: bytes, request: ProtoMessage, limit: int) -> int:
    """Read `data`, which may be gzip, into `request`; return its decompressed size."""
    try:
        plain = _decompressed(data, limit) if data[:2] == GZIP_MAGIC else data
        if len(plain) > limit:
            raise RequestTooLarge(f"the message is larger than {limit} bytes")
        check_fields(plain, request.DESCRIPTOR)
        request.MergeFromString(plain)
    except (DecodeError, zlib.error):
        raise InvalidRequest(f"the message is not a valid {request.DESCRIPTOR.full_name}") from None
    return len(plain)


def _decompressed(data: bytes, limit: int) -> bytes:
    """Return what `data` stands for, but not much more than `limit` bytes of it; raises zlib.error."""
    inflate = zlib.decompressobj(_GZIP_WBITS)
    plain = inflate.decompress(data, limit + 1)
    if len(plain) <= limit and (not inflate.eof or inflate.unused_data):
        raise zlib.error("incomplete, or followed by something")
    return plain


def _metadata(rpc: Rpc, name: str) -> list[str]:
    """Return the values that the call has for `name`, in their order."""
    return [value for key, value in rpc.invocation_metadata() or () if key == name and isinstance(value, str)]

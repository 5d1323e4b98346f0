"""Odd gRPC calls, and what came of them."""

import asyncio
import gzip
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
from grpc_status import rpc_status

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.generation_pb2 import ROLE_USER
from autoglm.v1.transcription_pb2 import TranscribeRequest

from ..asking import MODEL
from ..waiting import NET_SECONDS
from . import formats
from .media import picture, recording
from .messages import odd, on_the_wire
from .tally import Result, of_status
from .values import damaged
from .whole import MAX_TOKENS, any_of, calls

COMPLETE, STREAM = "/autoglm.v1.ChatService/Complete", "/autoglm.v1.ChatService/StreamComplete"
TRANSCRIBE = "/autoglm.v1.TranscriptionService/Transcribe"
SECONDS = 60.0  # the deadline of calls that have no other
METHODS = (
    "/autoglm.v1.ChatService/Nope", "/autoglm.v9.ChatService/Complete", "/a/b", "/a", "/",
    "/autoglm.v1.ChatService/", "/grpc.health.v1.Health/Nope",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/" + "a" * 2000, "/é/x", "/grpc./x",
    "/autoglm.v1.DecoderService/Generate", "/ray.serve.RayServeAPIService/ListApplications",
)  # fmt: skip
# Together below 8 kB: gRPC itself refuses more, without details.
METADATA = (
    ("authorization", ""), ("authorization", "Bearer"), ("authorization", "Bearer EMPTY"),
    ("authorization", "basic eA=="), ("authorization-bin", b"\xff\x00"), ("x-request-id", "a" * 129),
    ("x-request-id", " "), ("x-request-id-bin", b"\xff"),
    ("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"), ("traceparent", "x"), ("traceparent", "a" * 2000),
    ("x-odd", "a" * 2000), ("x-odd-bin", bytes(range(256))), ("x-request-timeout", "-1"),
    ("application", "decoder"), ("grpc-accept-encoding", "x"), ("content-type", "application/json"), ("host", "x"),
    ("multiplexed_model_id", "x"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GrpcCall:
    """A call as it is made. `leaves_after` is after how many seconds the client cancels it, if it does."""

    method: str
    data: bytes
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    timeout: float = SECONDS
    compression: grpc.Compression = grpc.Compression.NoCompression
    leaves_after: float | None = None


def odd_message(draw: Random) -> GrpcCall:
    """Return a call of any method with odd values in its message, and at times damage to its bytes."""
    method, message = any_of(draw, calls())
    return GrpcCall(method, on_the_wire(draw, odd(draw, message, draw.choice((0, 1, 1, 2, 5, 20)))))


def odd_call(draw: Random) -> GrpcCall:
    """Return a call with odd metadata, deadline, compression or method, or one that the client leaves."""
    method, message = any_of(draw, calls())
    data, metadata = message.SerializeToString(), tuple(draw.choice(METADATA) for _ in range(draw.randrange(4)))
    match draw.randrange(6):
        case 0:
            return GrpcCall(draw.choice(METHODS), data, metadata)
        case 1:
            return GrpcCall(method, data, metadata, timeout=draw.choice((0, -1.0, 1e-9, 1e-3, 0.02, 1e9)))
        case 2:
            return GrpcCall(method, _compressed(draw, data), metadata)
        case 3:
            return GrpcCall(method, data, metadata, compression=grpc.Compression.Gzip)
        case 4:
            return GrpcCall(method, data, metadata, leaves_after=draw.choice((0, 1e-3, 5e-3, 0.02, 0.1)))
    return GrpcCall(method, data, metadata)


def odd_media(draw: Random) -> GrpcCall:
    """Return a call with a damaged picture or recording."""
    if draw.random() < 0.3:
        return GrpcCall(TRANSCRIBE, TranscribeRequest(audio=Media(data=recording(draw))).SerializeToString())
    image = draw.random() < 0.5
    part = ContentPart(image=Media(data=picture(draw))) if image else ContentPart(audio=Media(data=recording(draw)))
    return _chat(draw, ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=[part])]))


def odd_format(draw: Random) -> GrpcCall:
    """Return a call whose answer has to match something."""
    messages = [ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])]
    asked = formats.generate_request(draw)
    chat = ChatRequest(messages=messages, sampling=asked.sampling, tools=asked.tools)
    if asked.HasField("tool_choice"):
        chat.tool_choice.CopyFrom(asked.tool_choice)
    return _chat(draw, chat)


GRPC: Mapping[str, Callable[[Random], GrpcCall]] = {
    "gRPC: messages": odd_message,
    "gRPC: metadata, deadlines, methods": odd_call,
    "gRPC: media": odd_media,
    "gRPC: formats, schemas, tools": odd_format,
}


async def send(channel: grpc.aio.Channel, call: GrpcCall) -> Result:
    """Make a call and return what came of it."""
    started = time.monotonic()
    stub: Any = channel.unary_stream(call.method)
    asked = stub(call.data, metadata=call.metadata, timeout=call.timeout, compression=call.compression)
    try:
        async with asyncio.timeout(NET_SECONDS):
            if call.leaves_after is not None:
                await asyncio.sleep(call.leaves_after)  # a client that leaves at any moment of a call
                asked.cancel()
            async for _ in asked:
                pass
    except TimeoutError:
        return Result("hang", call.method, time.monotonic() - started)
    except asyncio.CancelledError:
        if not asked.cancelled():
            raise  # it is this task that was cancelled
        return Result("left", "", time.monotonic() - started)
    except grpc.aio.AioRpcError as error:
        return _failed(call, error, time.monotonic() - started)
    return Result("OK", "", time.monotonic() - started)


def _failed(call: GrpcCall, error: grpc.aio.AioRpcError, seconds: float) -> Result:
    said = f"{call.method} {error.code().name} {error.details()}"
    status = rpc_status.from_call(error)
    if status is None and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and call.timeout < SECONDS:
        return Result("504", said, seconds)  # the client's own clock was faster
    if status is None and error.code() == grpc.StatusCode.UNAVAILABLE:
        return Result("death", said, seconds)
    return of_status(status, said, seconds)


def _chat(draw: Random, chat: ChatRequest) -> GrpcCall:
    chat.model = MODEL
    chat.sampling.max_tokens = MAX_TOKENS
    data = CompleteRequest(chat=chat).SerializeToString()  # of the same form as a StreamCompleteRequest
    return GrpcCall(draw.choice((COMPLETE, STREAM)), data)


def _compressed(draw: Random, data: bytes) -> bytes:
    """Return a message that is gzip itself: as it is, damaged, of much more than it seems, or twice."""
    match draw.randrange(4):
        case 0:
            return damaged(draw, gzip.compress(data))
        case 1:
            return gzip.compress(data + b"\xfa\x7f" + b"\x80\x80\x80\x20" + bytes(64 * 2**20), 1)
        case 2:
            return gzip.compress(gzip.compress(data))
    return gzip.compress(data)

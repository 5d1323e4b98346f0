"""Fakes of the mesh's internal contract: the services behind Ray Serve, without Ray, without a model.

They serve real gRPC on a real socket. A test can make them wait, fail and disappear, which real services do not do on
command. The gateway's tests and its benchmark run against them; nothing that serves imports this module.
"""

import asyncio
import hashlib
import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from autoglm.common.errors import MeshError
from autoglm.common.server import fail
from autoglm.common.tensors import seal
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
from autoglm.v1.transcript_pb2 import TranscriptSegment
from autoglm.v1.vision_pb2 import VisionServiceDescribeResponse, VisionServiceEncodeResponse

BUNDLE = "autoglm-phone-fake"
VERSION = "1.2.3"
LOOPBACK = "127.0.0.1"
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Control:
    """How a method of a fake behaves, and what has happened to it.

    It fails with `error`, or with `code` alone as Serve itself reports a dead actor. While `hold` is clear it waits;
    `entered` is set when a request begins to wait, `left` when it no longer waits.
    """

    error: MeshError | None = None
    code: grpc.StatusCode | None = None
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
        """Remember a request with its metadata and the seconds until its deadline."""
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        self.time_remaining.append(context.time_remaining())

    async def wait(self) -> None:
        """Wait for `hold`."""
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
        """Return whether the request is to fail, after putting the error on its context."""
        if self.code is not None:
            await context.abort(self.code, "The actor died unexpectedly before finishing this task.")
        if self.error is not None:
            fail(context, self.error)
        return self.error is not None


class FakeEncoder:
    """Makes two tokens of width 2 that depend on the bytes only.

    The next embeddings come from replicas of `revisions`, in turn, and all others from one of `revision`. While `idle`
    it has no replica, and starts one, for which `encode` or `describe` waits, when it has something to do.
    """

    def __init__(self, modality: Modality.ValueType) -> None:
        self.modality, self.encode, self.describe = modality, Control(), Control()
        self.revision, self.revisions, self.idle = "r1", list[str](), False

    async def embedding(self, data: bytes, request: Any, context: Context) -> Embedding | None:
        """Return the embedding of a file, None where the request fails."""
        self.encode.note(request, context)
        await self.encode.wait()
        self.idle = False
        if await self.encode.failed(context):
            return None
        digest = zlib.crc32(data).to_bytes(4, "little")
        return Embedding(
            modality=self.modality,
            encoder_revision=self.revisions.pop(0) if self.revisions else self.revision,
            tokens=seal(digest * 2, (2, 2), ELEMENT_TYPE_BFLOAT16),
            media_sha256=hashlib.sha256(data).digest(),
        )

    async def info(self, request: Any, context: Context) -> EncoderInfo:
        """Return what Describe says of the encoder."""
        await self.describe.failed(context)
        if self.idle and not request.start:
            return EncoderInfo(idle=True)
        if self.idle:
            self.describe.note(request, context)
            await self.describe.wait()
            self.idle = False
        return EncoderInfo(
            revision=self.revision, width=2, element_type=ELEMENT_TYPE_BFLOAT16, bundle=BUNDLE, version=VERSION
        )


class FakeVision(vision_pb2_grpc.VisionServiceServicer, FakeEncoder):
    """VisionService."""

    async def Encode(self, request: Any, context: Context) -> VisionServiceEncodeResponse:
        return VisionServiceEncodeResponse(embedding=await self.embedding(request.image, request, context))

    async def Describe(self, request: Any, context: Context) -> VisionServiceDescribeResponse:
        return VisionServiceDescribeResponse(encoder=await self.info(request, context))


class FakeSpeech(speech_pb2_grpc.SpeechServiceServicer, FakeEncoder):
    """SpeechService, which hears `said` in every recording."""

    def __init__(self, modality: Modality.ValueType) -> None:
        super().__init__(modality)
        self.said = _said("打开设置")

    async def Encode(self, request: Any, context: Context) -> SpeechServiceEncodeResponse:
        return SpeechServiceEncodeResponse(embedding=await self.embedding(request.audio, request, context))

    async def Transcribe(self, request: Any, context: Context) -> SpeechServiceTranscribeResponse:
        await self.encode.wait()
        self.idle = False
        await self.encode.failed(context)
        return self.said

    async def Describe(self, request: Any, context: Context) -> SpeechServiceDescribeResponse:
        return SpeechServiceDescribeResponse(encoder=await self.info(request, context))


def _said(text: str) -> SpeechServiceTranscribeResponse:
    """Return the transcript of two seconds with one segment: a character every 0.2 s, from 0.5 s on."""
    segment = TranscriptSegment(text=text, avg_logprob=-0.25, no_speech_prob=0.125)
    for index, character in enumerate(text):
        segment.tokens.add(id=index + 1, text=character, logprob=-0.25)
        word = segment.words.add(text=character)
        word.start.FromMilliseconds(200 * index + 500)
        word.end.FromMilliseconds(200 * index + 700)
    segment.start.CopyFrom(segment.words[0].start)
    segment.end.CopyFrom(segment.words[-1].end)
    response = SpeechServiceTranscribeResponse(text=text, segments=[segment], audio_tokens=25)
    response.duration.FromMilliseconds(2000)
    return response


class FakeDecoder(decoder_pb2_grpc.DecoderServiceServicer):
    """Answers with `pieces` and then the seed, if there are pieces, then `calls`; waits and fails after `after`
    pieces."""

    bundle, revision = BUNDLE, "d1"
    context_length, max_text_bytes = 2048, 0

    def __init__(self) -> None:
        self.generate, self.describe, self.embed = Control(), Control(), Control()
        self.modalities: Sequence[Modality.ValueType] = [MODALITY_TEXT, MODALITY_IMAGE, MODALITY_AUDIO]
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
        """Return a vector for each part: its index, and its length in characters or tokens."""
        self.embed.note(request, context)
        await self.embed.wait()
        if await self.embed.failed(context):
            return DecoderServiceEmbedResponse()
        sizes = [len(part.text) or part.media.tokens.shape[0] for part in request.input]
        data = b"".join(struct.pack("<2f", index, size) for index, size in enumerate(sizes))
        vectors = seal(data, (len(sizes), 2), ELEMENT_TYPE_FLOAT32)
        return DecoderServiceEmbedResponse(vectors=vectors, prompt_tokens=sum(sizes))

    async def Describe(self, request: Any, context: Context) -> DecoderServiceDescribeResponse:
        await self.describe.failed(context)
        return DecoderServiceDescribeResponse(
            bundle=self.bundle,
            modalities=self.modalities,
            context_length=self.context_length,
            max_text_bytes=self.max_text_bytes,
            embedding_width=2,
            adapters=self.adapters,
            device="cpu",
            engine="embedded",
            revision=self.revision,
            version=VERSION,
        )


def _logprobs(piece: str, request: DecoderServiceGenerateRequest) -> list[LogprobEntry]:
    if not request.sampling.HasField("top_logprobs"):
        return []
    token = TokenLogprob(token=piece, logprob=-0.5, token_bytes=piece.encode())
    return [LogprobEntry(chosen=token, top=[token] * request.sampling.top_logprobs)]


class FakeServe:
    """Ray Serve's own service, in the bytes that it sends: which applications there are."""

    def __init__(self, *applications: str) -> None:
        self.applications, self.listing = list(applications), Control()

    async def list_applications(self, request: Empty, context: Context) -> FieldMask:
        """Return the names of the applications."""
        await self.listing.failed(context)
        return FieldMask(paths=self.applications)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler that serves it."""
        method = grpc.unary_unary_rpc_method_handler(
            self.list_applications,
            request_deserializer=Empty.FromString,
            response_serializer=FieldMask.SerializeToString,
        )
        return grpc.method_handlers_generic_handler("ray.serve.RayServeAPIService", {"ListApplications": method})


@dataclass
class FakeMesh:
    """The three services on one port, like Serve's ingress."""

    serve: FakeServe = field(default_factory=lambda: FakeServe("vision", "speech", "decoder"))
    vision: FakeVision = field(default_factory=lambda: FakeVision(MODALITY_IMAGE))
    speech: FakeSpeech = field(default_factory=lambda: FakeSpeech(MODALITY_AUDIO))
    decoder: FakeDecoder = field(default_factory=FakeDecoder)
    port: int = 0

    @property
    def address(self) -> str:
        """Where it is served."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def calls(self) -> int:
        """How many requests have reached any of them."""
        controls = (self.vision.encode, self.speech.encode, self.decoder.generate, self.decoder.embed)
        return sum(len(control.requests) for control in controls)


@asynccontextmanager
async def serving(mesh: FakeMesh, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[FakeMesh]:
    """Serve the fakes on a free port inside the block, with `credentials` over TLS."""
    server = grpc.aio.server(options=(("grpc.http2.max_ping_strikes", 0),))  # HAProxy answers every ping
    server.add_generic_rpc_handlers((mesh.serve.handler(),))
    vision_pb2_grpc.add_VisionServiceServicer_to_server(mesh.vision, server)
    speech_pb2_grpc.add_SpeechServiceServicer_to_server(mesh.speech, server)
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(mesh.decoder, server)
    address = f"{LOOPBACK}:0"
    mesh.port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield mesh
    finally:
        await server.stop(0)

"""Calls to the services through Ray Serve, over one gRPC channel; Serve routes by the metadata `application`.

Serve itself answers for an application that is dead, missing or restarting, with varying codes and without our error
details. Only an error with our ErrorInfo comes from the service; nearly every other failure means that the service
could not be reached.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Collection
from typing import Any, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2, status_pb2

from autoglm.common.errors import (
    DOMAIN,
    RETRY_SECONDS,
    AuthenticationFailed,
    DeadlineExceeded,
    MediaUnknown,
    MeshError,
    ModalityUnavailable,
    RateLimited,
    UpstreamUnavailable,
    from_status,
)
from autoglm.common.modalities import BY_NUMBER, MEDIA_MODALITIES, MODALITY_NAMES
from autoglm.common.server import serve_tokens
from autoglm.common.services import ENCODER_SERVICES, SERVICES
from autoglm.common.tracing import NO_SPAN, Span
from autoglm.gateway.context import RequestContext
from autoglm.gateway.media.verify import VerifiedMedia
from autoglm.gateway.settings import Settings
from autoglm.gateway.tls import services_files
from autoglm.v1.decoder_pb2 import (
    DecoderServiceDescribeRequest,
    DecoderServiceDescribeResponse,
    DecoderServiceEmbedRequest,
    DecoderServiceEmbedResponse,
    DecoderServiceGenerateRequest,
    DecoderServiceGenerateResponse,
)
from autoglm.v1.decoder_pb2_grpc import DecoderServiceStub
from autoglm.v1.embedding_pb2 import Embedding, EncoderInfo
from autoglm.v1.modality_pb2 import Modality
from autoglm.v1.speech_pb2 import (
    SpeechServiceTranscribeRequest,
    SpeechServiceTranscribeResponse,
)

logger = logging.getLogger("autoglm.gateway.upstream")

Q = TypeVar("Q")
A = TypeVar("A")

START_SECONDS = 10.0  # after which an encoder that starts may run; one whose pod starts too takes longer
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
UNLOCKED_BYTES = 1024 * 1024  # from which Python joins bytes without its lock
LENGTH_DELIMITED = 2  # protobuf's wire type of bytes

# Serve refuses calls for a moment when an application is re-deployed or HAProxy is started again. gRPC sends them again
# within the deadline, while nothing of an answer has come. While most calls fail it does not (retryThrottling).
# Each node of a cluster has an ingress, which the name of a headless Service resolves to: all of them get calls.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": service.name} for service in SERVICES.values()],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 400, "tokenRatio": 1},
}
KEEPALIVE_MILLISECONDS, KEEPALIVE_TIMEOUT_MILLISECONDS = 10_000, 5_000

_OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # gRPC would wait up to two minutes before it reconnects to a restarted Serve.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A node that vanishes closes no connection. Pings find it out, also while a call waits for its answer.
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MILLISECONDS),
    ("grpc.http2.max_pings_without_data", 0),
)


class Mesh:
    """Calls to the three applications, each with its request's deadline; cancelling a task cancels its call. The
    service continues the trace below the `span` of a call."""

    def __init__(self, settings: Settings) -> None:
        """Open the channel; raises FileError when the files for TLS cannot be used."""
        self._channel = _channel(settings)
        tokens = serve_tokens(settings.serve_token.get_secret_value())[:1]
        self._token = tuple(("authorization", f"Bearer {token}") for token in tokens)
        self._encoders = {row.number: ENCODER_SERVICES[row.application].stub(self._channel) for row in MEDIA_MODALITIES}
        channel = _SerializedRequests(self._channel)
        self._media = {row.number: ENCODER_SERVICES[row.application].stub(channel) for row in MEDIA_MODALITIES}
        self._decoder = DecoderServiceStub(self._channel)
        # Serve's answer is one `repeated string`, which a FieldMask can parse; its own class would import Ray.
        self._list = self._channel.unary_unary(
            "/ray.serve.RayServeAPIService/ListApplications",
            request_serializer=Empty.SerializeToString,
            response_deserializer=FieldMask.FromString,
        )

    async def close(self) -> None:
        """Close the channel; calls in progress are cancelled."""
        await self._channel.close(grace=None)

    async def applications(self, context: RequestContext) -> Collection[str]:
        """Return the names of the applications in Serve's config, up or down; raises MeshError."""
        return (await self._ask(self._list, Empty(), "ingress", context)).paths

    async def encode(self, media: VerifiedMedia, context: RequestContext, span: Span = NO_SPAN) -> Embedding:
        """Return the embedding of `media`; raises MediaUnknown, ModalityUnavailable or the encoder's own error."""
        row = BY_NUMBER[media.modality]
        request = ENCODER_SERVICES[row.application].encode(timeout=context.deadline.to_message())
        message = await serialized(request, row.kind, media)
        response = await self._ask(self._media[row.number].Encode, message, row.application, context, span)
        embedding: Embedding = response.embedding
        return embedding

    async def transcribe(
        self, media: VerifiedMedia, context: RequestContext, span: Span = NO_SPAN
    ) -> SpeechServiceTranscribeResponse:
        """Return what is said in a recording; raises the same errors as `encode`."""
        request = SpeechServiceTranscribeRequest(timeout=context.deadline.to_message())
        said: SpeechServiceTranscribeResponse
        message = await serialized(request, "audio", media)
        said = await self._ask(self._media[media.modality].Transcribe, message, "speech", context, span)
        return said

    async def describe_encoder(
        self, modality: Modality.ValueType, context: RequestContext, *, start: bool = False
    ) -> EncoderInfo:
        """Return an encoder's description of itself; raises ModalityUnavailable.

        With `start`, one that is scaled to zero is started first, and does not only say that it is idle.
        """
        application = BY_NUMBER[modality].application
        request = ENCODER_SERVICES[application].describe(start=start)
        response = await self._ask(self._encoders[modality].Describe, request, application, context)
        info: EncoderInfo = response.encoder
        return info

    async def describe_decoder(self, context: RequestContext) -> DecoderServiceDescribeResponse:
        """Return the decoder's description of itself; raises UpstreamUnavailable."""
        return await self._ask(self._decoder.Describe, DecoderServiceDescribeRequest(), "decoder", context)

    async def embed(
        self, request: DecoderServiceEmbedRequest, context: RequestContext, span: Span = NO_SPAN
    ) -> DecoderServiceEmbedResponse:
        """Return one vector for each part; raises UpstreamUnavailable or the decoder's own error."""
        request.timeout.CopyFrom(context.deadline.to_message() or request.timeout)
        return await self._ask(self._decoder.Embed, request, "decoder", context, span)

    async def generate(
        self, request: DecoderServiceGenerateRequest, context: RequestContext, span: Span = NO_SPAN
    ) -> AsyncGenerator[DecoderServiceGenerateResponse, None]:
        """Stream an answer; raises UpstreamUnavailable or the decoder's own error."""
        request.timeout.CopyFrom(context.deadline.to_message() or request.timeout)
        stream = self._decoder.Generate(request, **self._route("decoder", context, span))
        try:
            async for response in stream:
                yield response
        except grpc.aio.AioRpcError as error:
            raise translate(error, "decoder") from None
        finally:
            stream.cancel()

    async def _ask(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Q, A]",
        request: Q,
        application: str,
        context: RequestContext,
        span: Span = NO_SPAN,
    ) -> A:
        try:
            return await method(request, **self._route(application, context, span))
        except grpc.aio.AioRpcError as error:
            raise translate(error, application) from None

    def _route(self, application: str, context: RequestContext, span: Span) -> dict[str, Any]:
        metadata = (("application", application), *self._token, *context.metadata(span))
        return {"timeout": context.deadline.remaining(), "metadata": metadata}


def unavailable(application: str) -> MeshError:
    """Return the error for an application that cannot be reached now."""
    for row in MEDIA_MODALITIES:
        if application == row.application:
            message = f"{row.kind} input is not available now: its encoder does not respond"
            return ModalityUnavailable(message, retry_after=RETRY_SECONDS)
    return UpstreamUnavailable(f"the {application} does not respond; try again shortly")


def starting(modality: Modality.ValueType) -> MeshError:
    """Return the error for an encoder that was scaled to zero and does not run yet at the request's deadline."""
    row = BY_NUMBER[modality]
    message = f"the {row.application} service is starting, as it had nothing to do before; try again soon"
    return ModalityUnavailable(message, retry_after=START_SECONDS)


def absent(modality: Modality.ValueType) -> MeshError:
    """Return the error for a modality whose application is not deployed: trying again does not help."""
    name = MODALITY_NAMES[modality]
    part = BY_NUMBER[modality].part
    return ModalityUnavailable(
        f"this server runs without its {part} part and does not accept {name} input: leave the {name} out"
    )


class _SerializedRequests:
    """The channel for stubs whose requests are bytes already."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *, response_deserializer: Any, **_: Any) -> Any:
        """Return what calls a method."""
        return self._channel.unary_unary(method, response_deserializer=response_deserializer)


async def serialized(request: ProtoMessage, field: str, media: VerifiedMedia) -> bytes:
    """Return `request`, serialized, with the bytes of `media` in its `field`; raises MediaUnknown.

    Protobuf would copy a file of megabytes twice with the interpreter locked. To join them takes one copy without.
    """
    data = _bytes(media)
    tag = (request.DESCRIPTOR.fields_by_name[field].number << 3) | LENGTH_DELIMITED
    pieces = (request.SerializeToString(), _varint(tag), _varint(len(data)), data)  # in any order
    return await asyncio.to_thread(b"".join, pieces) if len(data) >= UNLOCKED_BYTES else b"".join(pieces)


def _varint(number: int) -> bytes:
    """Return a number as protobuf writes it: 7 bits a byte, the lowest first."""
    low, rest = number & 0x7F, number >> 7
    return bytes((low | 0x80,)) + _varint(rest) if rest else bytes((low,))


def _bytes(media: VerifiedMedia) -> bytes:
    """Return the bytes of `media`; raises MediaUnknown when the client sent only their hash."""
    if not media.data:
        raise MediaUnknown(f"{media.param}: no media with this SHA-256 is cached; send the bytes", param=media.param)
    return media.data


def _unknown_here(application: str) -> MeshError:
    """Return the error for a service that rejects this gateway's token: the operator's mistake, not the client's."""
    logger.error("the %s service rejected this gateway: AUTOGLM_SERVE_TOKEN differs between them", application)
    return unavailable(application)


def translate(error: grpc.aio.AioRpcError, application: str) -> MeshError:
    """Return the error that a client sees for a failed call; messages that are not ours are not passed on."""
    status = _own_status(error)
    if status is not None:
        known = from_status(status)
        return _unknown_here(application) if isinstance(known, AuthenticationFailed) else known
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the deadline passed in the {application} service; allow more time")
    oversized = "metadata size exceeds" in (error.details() or "")  # gRPC refused the answer: no sign of load
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and not oversized:
        return RateLimited(f"the {application} service is at capacity; try again shortly")
    return unavailable(application)


def _channel(settings: Settings) -> grpc.aio.Channel:
    if not settings.serve_ssl_ca_certs:
        return grpc.aio.insecure_channel(settings.serve_address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(*services_files(settings))
    return grpc.aio.secure_channel(settings.serve_address, credentials, options=_OPTIONS)


def _own_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """Return the google.rpc.Status of `error` if this mesh made it, even if a proxy changed the code and message."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):
                status, info = status_pb2.Status.FromString(value), error_details_pb2.ErrorInfo()
                if any(detail.Unpack(info) for detail in status.details) and info.domain == DOMAIN:
                    return status
    return None

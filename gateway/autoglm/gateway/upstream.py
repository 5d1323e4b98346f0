"""The services behind Ray Serve, over one gRPC channel; Serve chooses by the metadata `application`.

Serve itself answers for an application that is dead, missing or restarting, with codes that vary
and without our error details. Only an error that carries our ErrorInfo is the service's own word;
nearly every other failure means that the service could not be reached.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError
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
from autoglm.gateway.conversation import Call
from autoglm.gateway.file_watcher import read
from autoglm.gateway.media.verify import Media
from autoglm.gateway.settings import Settings
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
from autoglm.v1.modality_pb2 import MODALITY_IMAGE, Modality
from autoglm.v1.speech_pb2 import (
    SpeechServiceDescribeRequest,
    SpeechServiceEncodeRequest,
    SpeechServiceTranscribeRequest,
    SpeechServiceTranscribeResponse,
)
from autoglm.v1.speech_pb2_grpc import SpeechServiceStub
from autoglm.v1.vision_pb2 import VisionServiceDescribeRequest, VisionServiceEncodeRequest
from autoglm.v1.vision_pb2_grpc import VisionServiceStub

logger = logging.getLogger("autoglm.gateway.upstream")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # gRPC would wait up to two minutes before it tries a restarted Serve again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class Mesh:
    """Calls to the three applications, each with its caller's deadline; cancelling a task cancels its call."""

    def __init__(self, settings: Settings) -> None:
        """Prepare calls; raises FileError when the files for TLS cannot be read."""
        self._channel = _channel(settings)
        token = settings.serve_token.get_secret_value()
        self._token = (("authorization", f"Bearer {token}"),) if token else ()
        self._vision = VisionServiceStub(self._channel)
        self._speech = SpeechServiceStub(self._channel)
        self._decoder = DecoderServiceStub(self._channel)
        # Serve's answer is one `repeated string`, on the wire the same as a FieldMask; its own class would import Ray.
        self._list = self._channel.unary_unary(
            "/ray.serve.RayServeAPIService/ListApplications",
            request_serializer=Empty.SerializeToString,
            response_deserializer=FieldMask.FromString,
        )

    async def close(self) -> None:
        """Close the channel; calls in progress are cancelled."""
        await self._channel.close(grace=None)

    async def applications(self, call: Call) -> Collection[str]:
        """Return the names of the applications that Serve's config holds, up or down; raises MeshError."""
        answer: FieldMask = await self._ask(self._list, Empty(), "ingress", call)
        return answer.paths

    async def encode(self, media: Media, call: Call) -> Embedding:
        """Return the embedding of `media`; raises MediaUnknown, ModalityUnavailable or what the encoder objects to."""
        left = call.deadline.to_message()
        if media.modality == MODALITY_IMAGE:
            image = VisionServiceEncodeRequest(image=_bytes(media), timeout=left)
            return cast(Embedding, (await self._ask(self._vision.Encode, image, "vision", call)).embedding)
        audio = SpeechServiceEncodeRequest(audio=_bytes(media), timeout=left)
        return cast(Embedding, (await self._ask(self._speech.Encode, audio, "speech", call)).embedding)

    async def transcribe(self, media: Media, call: Call) -> SpeechServiceTranscribeResponse:
        """Return what was said; fails as `encode` does."""
        request = SpeechServiceTranscribeRequest(audio=_bytes(media), timeout=call.deadline.to_message())
        return cast(SpeechServiceTranscribeResponse, await self._ask(self._speech.Transcribe, request, "speech", call))

    async def describe_encoder(self, modality: Modality.ValueType, call: Call) -> EncoderInfo:
        """Return what an encoder says of itself; raises ModalityUnavailable."""
        if modality == MODALITY_IMAGE:
            answer = await self._ask(self._vision.Describe, VisionServiceDescribeRequest(), "vision", call)
        else:
            answer = await self._ask(self._speech.Describe, SpeechServiceDescribeRequest(), "speech", call)
        return cast(EncoderInfo, answer.encoder)

    async def describe_decoder(self, call: Call) -> DecoderServiceDescribeResponse:
        """Return what the decoder says of itself; raises UpstreamUnavailable."""
        answer = await self._ask(self._decoder.Describe, DecoderServiceDescribeRequest(), "decoder", call)
        return cast(DecoderServiceDescribeResponse, answer)

    async def embed(self, request: DecoderServiceEmbedRequest, call: Call) -> DecoderServiceEmbedResponse:
        """Return one vector of each part; raises UpstreamUnavailable or what the decoder objects to."""
        request.timeout.CopyFrom(call.deadline.to_message() or request.timeout)
        return cast(DecoderServiceEmbedResponse, await self._ask(self._decoder.Embed, request, "decoder", call))

    async def generate(
        self, request: DecoderServiceGenerateRequest, call: Call
    ) -> AsyncGenerator[DecoderServiceGenerateResponse, None]:
        """Stream an answer; raises UpstreamUnavailable or what the decoder objects to."""
        request.timeout.CopyFrom(call.deadline.to_message() or request.timeout)
        stream = self._decoder.Generate(request, **self._route("decoder", call))
        try:
            async for response in stream:
                yield response
        except grpc.aio.AioRpcError as error:
            raise translate(error, "decoder") from None
        finally:
            stream.cancel()

    async def _ask(self, method: Any, request: object, application: str, call: Call) -> Any:
        try:
            return await method(request, **self._route(application, call))
        except grpc.aio.AioRpcError as error:
            raise translate(error, application) from None

    def _route(self, application: str, call: Call) -> dict[str, Any]:
        metadata = (("application", application), *self._token, *call.metadata)
        return {"timeout": call.deadline.remaining(), "metadata": metadata}


def unavailable(application: str) -> MeshError:
    """Return the error for an application that cannot be reached at this moment."""
    for row in MEDIA_MODALITIES:
        if application == row.application:
            message = f"{row.kind} input is not available now: its encoder does not answer"
            return ModalityUnavailable(message, retry_after=RETRY_SECONDS)
    return UpstreamUnavailable(f"the {application} does not answer; try again shortly")


def absent(modality: Modality.ValueType) -> MeshError:
    """Return the error for a modality whose application is not among Serve's: to try again is no use."""
    name = MODALITY_NAMES[modality]
    part = BY_NUMBER[modality].part
    return ModalityUnavailable(
        f"this server runs without its {part} part and takes no {name} input: leave the {name} out"
    )


def _bytes(media: Media) -> bytes:
    """Return what a service reads of `media`; raises MediaUnknown when the client sent only its hash."""
    if not media.data:
        raise MediaUnknown(f"{media.param}: nothing is kept of this SHA-256; send the bytes", param=media.param)
    return media.data


def _unknown_here(application: str) -> MeshError:
    """Return the error for a service that does not know this gateway: its operator's fault, not the client's."""
    logger.error("the %s service does not accept this gateway: AUTOGLM_SERVE_TOKEN is not the same", application)
    return unavailable(application)


def translate(error: grpc.aio.AioRpcError, application: str) -> MeshError:
    """Return what a client should see of a failed call; texts that are not ours stay inside."""
    status = _own_status(error)
    if status is not None:
        known = from_status(status)
        return _unknown_here(application) if isinstance(known, AuthenticationFailed) else known
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the deadline passed in the {application} service; allow more time")
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RateLimited(f"the {application} service is full; try again shortly")
    return unavailable(application)


def _channel(settings: Settings) -> grpc.aio.Channel:
    if not settings.serve_ssl_ca_certs:
        return grpc.aio.insecure_channel(settings.serve_address, options=_OPTIONS)
    files = (settings.serve_ssl_ca_certs, settings.serve_ssl_keyfile, settings.serve_ssl_certfile)
    credentials = grpc.ssl_channel_credentials(*(read(Path(file)) if file else None for file in files))
    return grpc.aio.secure_channel(settings.serve_address, credentials, options=_OPTIONS)


def _own_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """Return the google.rpc.Status of `error` if this mesh made it, whatever a proxy did to code and text."""
    metadata = cast(tuple[tuple[str, str | bytes], ...], error.trailing_metadata() or ())
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):
                status, info = status_pb2.Status.FromString(value), error_details_pb2.ErrorInfo()
                if any(detail.Unpack(info) for detail in status.details) and info.domain == DOMAIN:
                    return status
    return None

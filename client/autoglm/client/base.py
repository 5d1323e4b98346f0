"""What both clients share: the channel, and how each call is built."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from autoglm.client.calls import Request, RetryingCall
from autoglm.client.requests import (
    EmbedOptions,
    File,
    Message,
    Options,
    Sent,
    chat_request,
    embed_request,
    transcribe_request,
)
from autoglm.v1.chat_pb2 import CompleteRequest, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.embeddings_pb2 import EmbedRequest
from autoglm.v1.embeddings_pb2_grpc import EmbeddingServiceStub
from autoglm.v1.model_pb2 import ListModelsRequest
from autoglm.v1.model_pb2_grpc import ModelServiceStub
from autoglm.v1.transcription_pb2 import TranscribeRequest
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceStub

OPTIONS = (
    ("grpc.enable_retries", 0),  # calls.py retries; retries of both would multiply
    ("grpc.max_receive_message_length", -1),
    # By default gRPC waits a second and more before it reconnects to a restarted mesh.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # While a call waits, a dead connection is given up after half a minute. The mesh allows a ping every ten seconds;
    # by default gRPC sends only two, and waits a minute for the answer.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Base:
    """The connection to a mesh, and the calls of its API."""

    _transport: Any  # grpc or grpc.aio

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        tls: bool | Path = False,
        certificate: tuple[Path, Path] | None = None,
        timeout: float = 120.0,
        max_retries: int = 2,
    ) -> None:
        """Create a client of the mesh at `target`, a gRPC address as host:port; the first call connects.

        `api_key` is sent with every call. `tls=True` trusts the public certificate authorities that come with gRPC; a
        path trusts the authorities in that file instead. `certificate` is the client's certificate and its key, for
        mutual TLS. All files are PEM. `timeout` is the default deadline of a call in seconds, over all its tries;
        `max_retries` is how often it is tried again. Raises OSError for a file that cannot be read, ValueError for a
        certificate without TLS.
        """
        self._channel = self._open(target, tls, certificate)
        self._chats = ChatServiceStub(self._channel)
        self._embeddings = EmbeddingServiceStub(self._channel)
        self._transcriptions = TranscriptionServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self._api_key, self._timeout, self._max_retries = api_key, timeout, max_retries
        self._sent = Sent()

    def _open(self, target: str, tls: bool | Path, certificate: tuple[Path, Path] | None) -> Any:
        if not tls:
            if certificate is not None:
                raise ValueError("a client certificate is of no use without tls")
            return self._transport.insecure_channel(target, OPTIONS)
        roots = tls.read_bytes() if isinstance(tls, Path) else None
        chain, key = (path.read_bytes() for path in certificate) if certificate else (None, None)
        return self._transport.secure_channel(target, grpc.ssl_channel_credentials(roots, key, chain), OPTIONS)

    def _complete(
        self, messages: str | Sequence[Message], options: Options, timeout: float | None
    ) -> RetryingCall[CompleteRequest]:
        return self._call(
            lambda whole: CompleteRequest(chat=chat_request(messages, options, self._sent, whole)), timeout
        )

    def _stream_complete(
        self, messages: str | Sequence[Message], options: Options, timeout: float | None
    ) -> RetryingCall[StreamCompleteRequest]:
        return self._call(
            lambda whole: StreamCompleteRequest(chat=chat_request(messages, options, self._sent, whole)), timeout
        )

    def _embed(
        self, texts: str | Sequence[str], options: EmbedOptions, timeout: float | None
    ) -> RetryingCall[EmbedRequest]:
        return self._call(lambda whole: embed_request(texts, options, self._sent, whole), timeout)

    def _transcribe(self, recording: File, timeout: float | None) -> RetryingCall[TranscribeRequest]:
        return self._call(lambda _: transcribe_request(recording), timeout)

    def _list_models(self, timeout: float | None) -> RetryingCall[ListModelsRequest]:
        return self._call(lambda _: ListModelsRequest(), timeout)

    def _call(self, build: Callable[[bool], Request], timeout: float | None) -> RetryingCall[Request]:
        return RetryingCall(build, self._api_key, self._timeout if timeout is None else timeout, self._max_retries)

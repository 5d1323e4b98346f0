"""A fake of the public gRPC API on a real socket, whose answers and failures the test chooses."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_status import rpc_status

from autoglm.client import Answer, AsyncClient, AsyncStream, Client, Embeddings, Model, Piece, Transcript, calls
from autoglm.common.errors import MeshError, to_status
from autoglm.v1 import chat_pb2_grpc, embeddings_pb2_grpc, model_pb2_grpc, transcription_pb2_grpc
from autoglm.v1.chat_pb2 import Choice, CompleteResponse, StreamCompleteResponse, Summary
from autoglm.v1.embeddings_pb2 import EmbeddingVector, EmbedResponse
from autoglm.v1.generation_pb2 import FINISH_REASON_STOP, Gate, Usage
from autoglm.v1.modality_pb2 import MODALITY_IMAGE, MODALITY_TEXT
from autoglm.v1.model_pb2 import ListModelsResponse, ModelCard
from autoglm.v1.transcription_pb2 import TranscribeResponse

from ...waiting import NET_SECONDS

Failure = MeshError | grpc.StatusCode
SUMMARY = Summary(usage=Usage(prompt_tokens=9, completion_tokens=4), gates=[Gate(modality=MODALITY_IMAGE, mean=0.25)])


@dataclass
class FakeMesh(
    chat_pb2_grpc.ChatServiceServicer,
    embeddings_pb2_grpc.EmbeddingServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    transcription_pb2_grpc.TranscriptionServiceServicer,
):
    """Fails with each of `failures` in turn, then answers; a stream gives `before` pieces before it fails."""

    failures: deque[Failure] = field(default_factory=deque)
    before: int = 0
    summary: Summary = field(default_factory=lambda: SUMMARY)
    hold: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    time_remaining: list[float] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        """Where it is served."""
        return f"localhost:{self.port}"

    def Complete(self, request: Any, context: grpc.ServicerContext) -> CompleteResponse:
        self._enter(request, context)
        self._fail(context)
        self.hold.wait(NET_SECONDS)
        choice = Choice(text="你好", reasoning="hm", finish_reason=FINISH_REASON_STOP)
        return CompleteResponse(id=self._id(context), model="nano", choices=[choice], summary=self.summary)

    def StreamComplete(self, request: Any, context: grpc.ServicerContext) -> Iterator[StreamCompleteResponse]:
        self._enter(request, context)
        identity: Any = {"id": self._id(context), "model": "nano"}
        for index, delta in enumerate((Choice(reasoning="hm"), Choice(text="你"), Choice(text="好"))):
            if index == self.before:
                self._fail(context)
            if index == 2:
                self.hold.wait(NET_SECONDS)
            yield StreamCompleteResponse(delta=delta, **identity)
        end = Choice(finish_reason=FINISH_REASON_STOP)
        yield StreamCompleteResponse(delta=end, summary=self.summary, **identity)

    def Embed(self, request: Any, context: grpc.ServicerContext) -> EmbedResponse:
        """Return the number of each part as its vector."""
        self._enter(request, context)
        self._fail(context)
        vectors = [EmbeddingVector(values=[number, 0.5]) for number in range(len(request.input))]
        return EmbedResponse(id=self._id(context), model="nano", vectors=vectors, prompt_tokens=7)

    def Transcribe(self, request: Any, context: grpc.ServicerContext) -> TranscribeResponse:
        self._enter(request, context)
        self._fail(context)
        said = TranscribeResponse(text="打开设置")
        said.duration.FromMilliseconds(1500)
        said.segments.add(text=said.text, avg_logprob=-0.5, no_speech_prob=0.25).words.add(text="打").end.FromSeconds(1)
        return said

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> ListModelsResponse:
        self._enter(request, context)
        self._fail(context)
        card = ModelCard(id="nano", bundle="nano", modalities=[MODALITY_TEXT, MODALITY_IMAGE], context_length=2048)
        return ListModelsResponse(models=[card])

    def _enter(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.arrived.append(time.monotonic())
        self.time_remaining.append(context.time_remaining())
        context.add_callback(self.ended.set)
        self.entered.set()

    def _id(self, context: grpc.ServicerContext) -> str:
        return str(dict(context.invocation_metadata())["x-request-id"])

    def _fail(self, context: grpc.ServicerContext) -> None:
        if not self.failures:
            return
        failure = self.failures.popleft()
        if isinstance(failure, MeshError):
            context.abort_with_status(rpc_status.to_status(to_status(failure)))
        else:
            context.abort(failure, "as gRPC itself says it")


class Blocking:
    """An AsyncClient whose calls block, so that one test can use both clients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(*arguments, **options))

    def chat(self, *arguments: Any, **options: Any) -> Answer:
        return self._runner.run(self._client.chat(*arguments, **options))

    def stream(self, *arguments: Any, **options: Any) -> "BlockingStream":
        return BlockingStream(self._runner, self._client.stream(*arguments, **options))

    def embed(self, *arguments: Any, **options: Any) -> Embeddings:
        return self._runner.run(self._client.embed(*arguments, **options))

    def transcribe(self, recording: bytes | Path, **options: Any) -> Transcript:
        return self._runner.run(self._client.transcribe(recording, **options))

    def models(self, **options: Any) -> Sequence[Model]:
        return self._runner.run(self._client.models(**options))

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    async def _make(self, *arguments: Any, **options: Any) -> AsyncClient:
        return AsyncClient(*arguments, **options)


class BlockingStream:
    """An AsyncStream that blocks."""

    def __init__(self, runner: asyncio.Runner, stream: AsyncStream) -> None:
        self._runner, self._stream = runner, stream

    @property
    def answer(self) -> Answer:
        return self._stream.answer

    def close(self) -> None:
        self._runner.run(self._stream.close())

    def __iter__(self) -> "BlockingStream":
        return self

    def __next__(self) -> Piece:
        try:
            return self._runner.run(self._next())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _next(self) -> Piece:
        return await anext(self._stream)


Connect = Callable[..., Client]


@contextmanager
def serving(mesh: FakeMesh, secrets: grpc.ServerCredentials | None = None, **limits: int) -> Iterator[FakeMesh]:
    """Serve `mesh` on a free port."""
    options = tuple((f"grpc.{name}", value) for name, value in limits.items())
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=options)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(mesh, server)
        embeddings_pb2_grpc.add_EmbeddingServiceServicer_to_server(mesh, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(mesh, server)
        transcription_pb2_grpc.add_TranscriptionServiceServicer_to_server(mesh, server)
        if secrets is None:
            mesh.port = server.add_insecure_port("127.0.0.1:0")
        else:
            mesh.port = server.add_secure_port("127.0.0.1:0", secrets)
        mesh.hold.set()
        server.start()
        try:
            yield mesh
        finally:
            mesh.hold.set()
            server.stop(0).wait()


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with serving(FakeMesh()) as mesh:
        yield mesh


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost connections are tried again at once."""
    monkeypatch.setattr(calls, "RECONNECT_SECONDS", 0.06)


@pytest.fixture(params=[Client, Blocking])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients, of both kinds by turns."""
    made: list[Any] = []

    def make(target: str, **options: Any) -> Client:
        made.append(request.param(target, **options))
        return cast(Client, made[-1])

    yield make
    for client in made:
        client.close()

"""The asyncio client."""

# ruff: noqa: ASYNC109 -- a timeout here is a deadline that is sent to the mesh

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from autoglm.client.base import Base
from autoglm.client.calls import RetryingCall
from autoglm.client.requests import EmbedOptions, File, Message, Options
from autoglm.client.results import (
    Answer,
    Embeddings,
    Model,
    Piece,
    Reader,
    Transcript,
    read_answer,
    read_embeddings,
    read_models,
    read_transcript,
)


class AsyncStream:
    """A streamed answer: iterate over its pieces, then `answer` is the complete one.

    The call starts when the first piece is asked for. Leaving the block of an `async with`, closing the stream
    or cancelling the task that reads it cancels the call.
    """

    def __init__(self, method: Any, make: Callable[[], RetryingCall[Any]]) -> None:
        self._reader = Reader()
        self._pieces = _pieces(method, make, self._reader)

    @property
    def answer(self) -> Answer:
        """The complete answer; raises RuntimeError before the stream has ended."""
        return self._reader.answer

    async def close(self) -> None:
        """Cancel the call, if it still runs."""
        await self._pieces.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class AsyncClient(Base):
    """A client of a mesh, for the event loop in which it is created; files are read and hashed in a thread.

    >>> async with AsyncClient("localhost:50051") as client:
    ...     print((await client.chat("你是谁?")).text)
    """

    _transport = grpc.aio

    async def chat(
        self, messages: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Answer:
        """Return the complete answer to a question or a conversation, within `timeout` seconds; raises MeshError."""
        return read_answer(await self._ask(self._chats.Complete, lambda: self._complete(messages, options, timeout)))

    def stream(
        self, messages: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncStream:
        """Return the answer as a stream, complete within `timeout` seconds; iterating raises MeshError.

        >>> async with client.stream("你是谁?") as stream:
        ...     async for piece in stream:
        ...         print(piece.text, end="", flush=True)
        """
        return AsyncStream(self._chats.StreamComplete, lambda: self._stream_complete(messages, options, timeout))

    async def embed(
        self, texts: str | Sequence[str] = (), *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        """Return a vector for each text, image and recording, all within `timeout` seconds; raises MeshError."""
        return read_embeddings(await self._ask(self._embeddings.Embed, lambda: self._embed(texts, options, timeout)))

    async def transcribe(self, recording: File, *, timeout: float | None = None) -> Transcript:
        """Return what is said in a recording, in any common format, and when; raises MeshError."""
        return read_transcript(
            await self._ask(self._transcriptions.Transcribe, lambda: self._transcribe(recording, timeout))
        )

    async def models(self, *, timeout: float | None = None) -> Sequence[Model]:
        """Return the names that questions may use, the bundle's own first; raises MeshError."""
        return read_models(await self._ask(self._models.ListModels, lambda: self._list_models(timeout)))

    async def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, method: Any, make: Callable[[], RetryingCall[Any]]) -> Any:
        call = await asyncio.to_thread(make)
        while True:
            try:
                return await method(call.request, **call.options())
            except grpc.RpcError as failure:
                await asyncio.sleep(await asyncio.to_thread(call.failed, failure))


async def _pieces(method: Any, make: Callable[[], RetryingCall[Any]], reader: Reader) -> AsyncGenerator[Piece, None]:
    call = await asyncio.to_thread(make)
    while True:
        responses = method(call.request, **call.options())
        try:
            async for response in responses:
                if piece := reader.read(response):
                    yield piece
            return
        except grpc.RpcError as failure:
            await asyncio.sleep(await asyncio.to_thread(call.failed, failure, reader.begun))
        finally:
            responses.cancel()

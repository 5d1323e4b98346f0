"""The blocking client."""

import time
from collections.abc import Callable, Generator, Sequence
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


class Stream:
    """A streamed answer: iterate over its pieces, then `answer` is the complete one.

    The call starts when the first piece is asked for. Leaving the block of a `with`, closing the stream or
    dropping the last reference to it cancels the call. Use a stream in one thread only.
    """

    def __init__(self, method: Any, make: Callable[[], RetryingCall[Any]]) -> None:
        self._reader = Reader()
        self._pieces = _pieces(method, make, self._reader)

    @property
    def answer(self) -> Answer:
        """The complete answer; raises RuntimeError before the stream has ended."""
        return self._reader.answer

    def close(self) -> None:
        """Cancel the call, if it still runs."""
        self._pieces.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Client(Base):
    """A client of a mesh whose calls block. Threads may share it.

    >>> with Client("localhost:50051") as client:
    ...     print(client.chat("你是谁?").text)
    """

    _transport = grpc

    def chat(
        self, messages: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Answer:
        """Return the complete answer to a question or a conversation, within `timeout` seconds; raises MeshError.

        >>> client.chat("打开游戏", images=[Path("home.png")], temperature=0).text
        """
        return read_answer(self._ask(self._chats.Complete, self._complete(messages, options, timeout)))

    def stream(
        self, messages: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Stream:
        """Return the answer as a stream, complete within `timeout` seconds; iterating raises MeshError.

        >>> with client.stream("你是谁?") as stream:
        ...     for piece in stream:
        ...         print(piece.text, end="", flush=True)
        >>> stream.answer.usage.completion_tokens
        """
        return Stream(self._chats.StreamComplete, lambda: self._stream_complete(messages, options, timeout))

    def embed(
        self, texts: str | Sequence[str] = (), *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        """Return a vector for each text, image and recording, all within `timeout` seconds; raises MeshError.

        >>> client.embed(["打开相机", "Open the camera app"], images=[Path("home.png")]).vectors
        """
        return read_embeddings(self._ask(self._embeddings.Embed, self._embed(texts, options, timeout)))

    def transcribe(self, recording: File, *, timeout: float | None = None) -> Transcript:
        """Return what is said in a recording, in any common format, and when; raises MeshError."""
        return read_transcript(self._ask(self._transcriptions.Transcribe, self._transcribe(recording, timeout)))

    def models(self, *, timeout: float | None = None) -> Sequence[Model]:
        """Return the names that questions may use, the bundle's own first; raises MeshError."""
        return read_models(self._ask(self._models.ListModels, self._list_models(timeout)))

    def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, method: Any, call: RetryingCall[Any]) -> Any:
        while True:
            try:
                return method(call.request, **call.options())
            except grpc.RpcError as failure:
                time.sleep(call.failed(failure))


def _pieces(method: Any, make: Callable[[], RetryingCall[Any]], reader: Reader) -> Generator[Piece, None, None]:
    call = make()
    while True:
        responses = method(call.request, **call.options())
        try:
            for response in responses:
                if piece := reader.read(response):
                    yield piece
            return
        except grpc.RpcError as failure:
            time.sleep(call.failed(failure, reader.begun))
        finally:
            responses.cancel()

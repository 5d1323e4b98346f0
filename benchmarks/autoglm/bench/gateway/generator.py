"""The load generator: asks for work over HTTP or gRPC and counts the words that come back."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import grpc
import httptools

from autoglm.bench.gateway.stub import MARK, MODEL, Work
from autoglm.cli.isolation import LOOPBACK
from autoglm.v1.decoder_pb2 import DecoderMessage, DecoderPart, DecoderServiceGenerateRequest
from autoglm.v1.decoder_pb2_grpc import DecoderServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

Told = Callable[[], None]


class Incomplete(Exception):
    """An answer is an error or is not whole; the message says which."""


@dataclass(frozen=True, slots=True)
class ResponseTimes:
    """When the first word and the end came, in seconds after the request was due."""

    first: float
    end: float


class LoadClient(Protocol):
    """A way to ask."""

    async def ask(self, work: Work, stream: bool, due: float, told: Told = lambda: None) -> ResponseTimes:
        """Ask for `work`, due at `due` of time.perf_counter, and call `told` at the first word; raises Incomplete."""

    async def close(self) -> None:
        """Close the connections."""


class OverGrpc:
    """Asks the stub itself as our gateway does; it always streams."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"{LOOPBACK}:{port}")
        self._decoder = DecoderServiceStub(self._channel)

    async def ask(self, work: Work, stream: bool, due: float, told: Told = lambda: None) -> ResponseTimes:
        """Ask for `work`."""
        message = DecoderMessage(role=ROLE_USER, parts=[DecoderPart(text=work.prompt)])
        first, words = 0.0, 0
        async for response in self._decoder.Generate(DecoderServiceGenerateRequest(messages=[message])):
            words += bool(response.text)
            if not first:
                first = time.perf_counter()
                told()
        return _answer(work, words, due, first)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(grace=None)


class OverHttp:
    """Asks for chat completions, over a connection a request that is kept for the next one."""

    def __init__(self, port: int, key: str) -> None:
        self._port, self._key = port, key
        self._free: set[_Connection] = set()

    async def ask(self, work: Work, stream: bool, due: float, told: Told = lambda: None) -> ResponseTimes:
        """Ask for `work`, streamed or whole."""
        connection = self._free.pop() if self._free else await self._connect()
        try:
            first, words = await connection.post(_request(work, stream, self._key), told)
        except BaseException:
            connection.close()
            raise
        self._free.add(connection)
        return _answer(work, words, due, first)

    async def close(self) -> None:
        """Close the connections that are free."""
        for connection in self._free:
            connection.close()

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self._free.discard), LOOPBACK, self._port)
        return connection


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. Bodies are counted as bytes and not kept, to be no bottleneck."""

    def __init__(self, lost: "Callable[[_Connection], None]") -> None:
        self._lost = lost
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[tuple[float, int]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def post(self, request: bytes, told: Told) -> asyncio.Future[tuple[float, int]]:
        """Send a request and return when its first word came, and how many words there were."""
        self._told, self._first, self._words = told, 0.0, 0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost(self)
        self._fail("the connection was closed in the middle of an answer")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(f"an answer has the status {status}")

    def on_body(self, body: bytes) -> None:
        words = body.count(MARK)
        if words and not self._first:
            self._first = time.perf_counter()
            self._told()
        self._words += words

    def on_message_complete(self) -> None:
        if self._done and not self._done.done():
            self._done.set_result((self._first, self._words))

    def _fail(self, why: str) -> None:
        if self._done and not self._done.done():
            self._done.set_exception(Incomplete(why))


def _request(work: Work, stream: bool, key: str) -> bytes:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": work.prompt}], "stream": stream})
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        f"host: {LOOPBACK}",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    )
    return "\r\n".join((*lines, "", body)).encode()


def _answer(work: Work, words: int, due: float, first: float) -> ResponseTimes:
    if words != work.words:
        raise Incomplete(f"an answer has {words} words of {work.words}")
    return ResponseTimes(first - due, time.perf_counter() - due)


async def arrivals(
    client: LoadClient, work: Work, stream: bool, rate: float, count: int, seed: int
) -> Sequence[ResponseTimes]:
    """Ask `count` times at moments of a Poisson process of `rate` a second, whether or not earlier answers are there.

    An answer's times run from when its request was due, so a late start counts.
    """
    draw, due, asked = random.Random(seed), time.perf_counter(), []
    for _ in range(count):
        due += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(client.ask(work, stream, due)))
    return await asyncio.gather(*asked)


async def burst(client: LoadClient, work: Work, streams: int) -> float:
    """Ask for so many streams at once and return the seconds until the last has ended."""
    start = time.perf_counter()
    await asyncio.gather(*(client.ask(work, True, start) for _ in range(streams)))
    return time.perf_counter() - start


async def open_streams(client: LoadClient, streams: int) -> list[asyncio.Task[ResponseTimes]]:
    """Return so many streams that have said their first word and now hold still, until they are cancelled."""
    opened = asyncio.Semaphore(0)
    work, due = Work(2, gap=3600.0), time.perf_counter()
    held = [asyncio.create_task(client.ask(work, True, due, opened.release)) for _ in range(streams)]
    waiting = asyncio.create_task(_times(streams, opened))
    await asyncio.wait({waiting, *held}, return_when=asyncio.FIRST_COMPLETED)
    for task in held:
        if task.done():
            task.result()
    return held


async def _times(count: int, opened: asyncio.Semaphore) -> None:
    for _ in range(count):
        await opened.acquire()

"""A client that leaves, or whose time is up, stops the work in the decoder's replica; one that does not read
halts nobody.

What is watched is the replica's own count of running sequences. A second answer, which was started
first and so would end first, goes on at the same time: while it is unfinished, a count that has come down to it
means that the other was cancelled.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import httpx
import pytest

from autoglm.common.bundle import write_manifest
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, ContentPart, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.decoder_pb2 import DecoderServiceDescribeRequest
from autoglm.v1.decoder_pb2_grpc import DecoderServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

from ..asking import CHAT, MODEL
from ..mesh import Mesh, running_mesh, text_bundle
from ..waiting import NET_SECONDS, eventually_async

QUESTION = "1+1"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose answers end only where the context does: its bundle's decoder knows no end of a turn, nor a
    limit."""
    bundle = text_bundle(tmp_path_factory.mktemp("bundle"))
    generation = bundle / "decoder" / "generation_config.json"
    unbounded: dict[str, Any] = {"eos_token_id": [], "max_new_tokens": None}
    generation.write_text(json.dumps(json.loads(generation.read_text()) | unbounded))
    write_manifest(bundle, "endless", "gcma")
    with running_mesh(tmp_path_factory.mktemp("mesh") / "serve.log", AUTOGLM_BUNDLE=str(bundle)) as running:
        yield running


class Watch:
    """The mesh as its tests see it: its decoder's count, and answers that do not end."""

    def __init__(self, mesh: Mesh, http: httpx.AsyncClient) -> None:
        self.mesh, self.http = mesh, http
        self._channel = grpc.aio.insecure_channel(mesh.serve_address)
        self._decoder = DecoderServiceStub(self._channel)
        self.finished = False

    def body(self, **fields: Any) -> dict[str, Any]:
        return {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], **fields}

    def request(self) -> StreamCompleteRequest:
        message = ChatMessage(role=ROLE_USER, parts=[ContentPart(text=QUESTION)])
        return StreamCompleteRequest(chat=ChatRequest(messages=[message]))

    async def busy(self) -> tuple[int, int]:
        """Return how many run, and how many wait."""
        answer = await self._decoder.Describe(
            DecoderServiceDescribeRequest(), metadata=self.mesh.to("decoder"), timeout=NET_SECONDS
        )
        return int(answer.num_requests_running), int(answer.num_requests_waiting)

    async def until(self, condition: Callable[[int, int], bool]) -> None:
        async def holds() -> bool:
            return condition(*await self.busy())

        await eventually_async(holds, "as many requests run and wait as expected")

    async def until_running(self, count: int) -> None:
        await self.until(lambda running, waiting: running + waiting == count)

    async def keep_reading(self) -> None:
        """Read an answer that nobody cancels."""
        async with self.http.stream("POST", CHAT, json=self.body(stream=True)) as response:
            async for _ in response.aiter_lines():
                pass
        self.finished = True

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Run the other answer during the block."""
        await self.until_running(0)
        other = asyncio.create_task(self.keep_reading())
        await self.until_running(1)
        yield
        assert not self.finished, "the other answer ended by itself: nothing was shown"
        other.cancel()
        with suppress(asyncio.CancelledError):
            await other
        await self.until_running(0)
        await self._channel.close(grace=None)


async def leave_stream(watch: Watch) -> None:
    async with watch.http.stream("POST", CHAT, json=watch.body(stream=True)) as response:
        lines = response.aiter_lines()  # held: httpx hangs up when an iterator that nobody holds is collected
        await anext(lines)
        await watch.until_running(2)


async def leave_while_waiting(watch: Watch) -> None:
    asked = asyncio.create_task(watch.http.post(CHAT, json=watch.body()))
    await watch.until_running(2)
    asked.cancel()
    with suppress(asyncio.CancelledError):
        await asked


async def leave_several_at_once(watch: Watch) -> None:
    several = [asyncio.create_task(watch.http.post(CHAT, json=watch.body())) for _ in range(3)]
    await watch.until_running(4)
    for asked in several:
        asked.cancel()
    await asyncio.gather(*several, return_exceptions=True)


async def time_is_up(watch: Watch) -> None:
    response = await watch.http.post(CHAT, json=watch.body(), headers={"x-request-timeout": "1"})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


async def time_is_up_in_a_stream(watch: Watch) -> None:
    """The deadline passes after the first token; on a machine where it passes before, the next one is later."""
    for seconds in ("1", "2", "4", "8"):
        headers = {"x-request-timeout": seconds}
        async with watch.http.stream("POST", CHAT, json=watch.body(stream=True), headers=headers) as response:
            lines = [line async for line in response.aiter_lines() if line]
        if response.status_code != 504:
            break
    assert response.status_code == 200
    assert lines[-2] == "event: error"
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


async def cancel_grpc(watch: Watch) -> None:
    async with grpc.aio.insecure_channel(watch.mesh.grpc_address) as channel:
        stub = ChatServiceStub(channel)
        stream = stub.StreamComplete(watch.request())
        await stream.read()
        await watch.until_running(2)
        stream.cancel()


async def grpc_deadline(watch: Watch) -> None:
    async with grpc.aio.insecure_channel(watch.mesh.grpc_address) as channel:
        stub = ChatServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stub.StreamComplete(watch.request(), timeout=1):
                pass
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


WAYS = [
    leave_stream,
    leave_while_waiting,
    leave_several_at_once,
    time_is_up,
    time_is_up_in_a_stream,
    cancel_grpc,
    grpc_deadline,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_the_replica_stops_working(endless: Mesh, way: Callable[[Watch], Awaitable[None]]) -> None:
    async with httpx.AsyncClient(base_url=endless.http_url, timeout=NET_SECONDS, trust_env=False) as http:
        watch = Watch(endless, http)
        async with watch.beside():
            await way(watch)
            await watch.until_running(1)


STUCK = 3


def connect(mesh: Mesh, body: bytes) -> socket.socket:
    """Ask over a connection that takes little, and read nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", mesh.http_port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: mesh\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def said(stream: bytes) -> str:
    """Return the text of all chunks of a stream that came to its end."""
    events = [line[len(b"data: ") :] for line in stream.splitlines() if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])


def read(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(2**16), b""))


async def test_who_does_not_read_holds_nobody_up_and_loses_nothing(endless: Mesh) -> None:
    """Their answers wait in the buffers on the way, or in the engine; who reads is answered, and so are they, late."""
    async with httpx.AsyncClient(base_url=endless.http_url, timeout=NET_SECONDS, trust_env=False) as http:
        watch = Watch(endless, http)
        body = watch.body(stream=True, temperature=0, max_tokens=1500)  # some 300 kB
        whole = said(await (await http.post(CHAT, json=body)).aread())
        stuck = [connect(endless, json.dumps(body).encode()) for _ in range(STUCK)]
        await watch.until(lambda running, waiting: running == STUCK)
        await watch.until(lambda running, waiting: running == 0)
        assert (await http.post(CHAT, json=watch.body(max_tokens=5))).status_code == 200
        streams = await asyncio.gather(*(asyncio.to_thread(read, connection) for connection in stuck))
        assert [said(stream) for stream in streams] == [whole] * STUCK
        await watch.until_running(0)

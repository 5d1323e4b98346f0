"""The end of the drain: whatever a client still waits for, it is told in its API's own form to send it again."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from autoglm.common.testing import Control
from autoglm.gateway.app import BoundPorts, running
from autoglm.gateway.drain import Drain
from autoglm.gateway.settings import Settings
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.embeddings_pb2 import EmbedRequest
from autoglm.v1.embeddings_pb2_grpc import EmbeddingServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER
from autoglm.v1.transcription_pb2 import TranscribeRequest
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceStub

from ...waiting import NET_SECONDS, soon
from .conftest import FakeMesh
from .samples import image_part, png, wav
from .test_gateway_faults import read_until, start_process

STOPPING = "this gateway is shutting down; send the request again"
HI = {"model": "", "messages": [{"role": "user", "content": "hi"}]}
SEEN = {"model": "", "messages": [{"role": "user", "content": [image_part(png())]}]}
SAID = {"model": "", "input": "hi"}
CHAT = ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])])


class Gateway:
    """A gateway that drains when `stop` is set."""

    def __init__(self, mesh: FakeMesh, drain_timeout: float = 0.1) -> None:
        fixed: dict[str, Any] = {"host": "127.0.0.1", "http_port": 0, "grpc_port": 0, "poll_interval": 0.05}
        self.settings = Settings(**fixed, drain_timeout=drain_timeout, serve_address=mesh.address)
        self.drain, self.stop, self.ports = Drain(), asyncio.Event(), asyncio.Future[BoundPorts]()
        self.ended = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with running(self.settings, self.drain) as ports:
            self.ports.set_result(ports)
            await self.stop.wait()

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[tuple[httpx.AsyncClient, grpc.aio.Channel]]:
        """Connect to it, and let it end."""
        ports = await self.ports
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc_port}")
        url = f"http://127.0.0.1:{ports.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=NET_SECONDS, trust_env=False) as http, channel:
            yield http, channel
        await soon(self.ended)


def control(mesh: FakeMesh, name: str) -> Control:
    """Return a control whose requests wait until the test ends."""
    found: Control = {"chat": mesh.decoder.generate, "embed": mesh.decoder.embed, "see": mesh.vision.encode}[name]
    found.hold.clear()
    return found


@pytest.mark.parametrize(
    ("path", "body", "held"),
    [
        ("/v1/chat/completions", HI, "chat"),
        ("/v1/chat/completions", {**HI, "n": 3}, "chat"),
        ("/v1/chat/completions", SEEN, "see"),
        ("/v1/chat/completions", {**SEEN, "stream": True}, "see"),
        ("/v1/responses", SAID, "chat"),
        ("/v1/embeddings", SAID, "embed"),
    ],
)
async def test_a_whole_answer_is_503(
    mesh: FakeMesh, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, Any], held: str
) -> None:
    gateway, held_ = Gateway(mesh), control(mesh, held)
    with caplog.at_level(logging.INFO, "autoglm"):
        async with gateway.clients() as (http, _):
            asking = asyncio.create_task(http.post(path, json=body))
            await soon(held_.entered.wait())
            gateway.stop.set()
            answer = await soon(asking)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["message"]) == (503, "upstream_unavailable", STOPPING)
    assert int(answer.headers["retry-after"]) >= 1
    assert [line for line in caplog.messages if f"POST {path} 503" in line]
    assert not [line for line in caplog.messages if "Exception" in line]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_stream_ends_with_an_error(mesh: FakeMesh, path: str) -> None:
    gateway, held = Gateway(mesh), control(mesh, "chat")
    body = {**(HI if "chat" in path else SAID), "stream": True}
    async with gateway.clients() as (http, _), http.stream("POST", path, json=body) as answer:
        await soon(held.entered.wait())
        gateway.stop.set()
        text = (await soon(answer.aread())).decode()  # ends as a whole response ends
    assert f'"message":"{STOPPING}"' in text.rstrip().rsplit("\n\n", 1)[-1]
    assert ("event: error\n" in text) or ("chat" not in path)
    assert ("event: response.failed\n" in text) or ("chat" in path)
    assert "[DONE]" not in text


async def test_a_body_on_its_way_is_503(mesh: FakeMesh) -> None:
    gateway = Gateway(mesh)
    async with gateway.clients() as (http, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", (await gateway.ports).http_port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
        await soon(running_requests(http, 1))
        gateway.stop.set()
        answer = await soon(reader.read())
        writer.close()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert STOPPING.encode() in answer


async def running_requests(http: httpx.AsyncClient, count: int) -> None:
    while f"autoglm_requests_in_progress {count}.0" not in (await http.get("/metrics")).text:
        pass


async def ask(channel: grpc.aio.Channel, kind: str) -> Any:
    """Call a method of the public services."""
    image = ContentPart(image=Media(data=png()))
    match kind:
        case "stream":
            return [step async for step in ChatServiceStub(channel).StreamComplete(StreamCompleteRequest(chat=CHAT))]
        case "embed":
            return await EmbeddingServiceStub(channel).Embed(EmbedRequest(input=[ContentPart(text="hi")]))
        case "see":
            chat = ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=[image])])
            return await ChatServiceStub(channel).Complete(CompleteRequest(chat=chat))
        case _:
            return await ChatServiceStub(channel).Complete(CompleteRequest(chat=CHAT))


@pytest.mark.parametrize("kind", ["chat", "stream", "embed", "see"])
async def test_a_call_is_unavailable_with_details(mesh: FakeMesh, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    gateway, held = Gateway(mesh), control(mesh, "chat" if kind == "stream" else kind)
    with caplog.at_level(logging.INFO, "autoglm"):
        async with gateway.clients() as (_, channel):
            asking = asyncio.create_task(ask(channel, kind))
            await soon(held.entered.wait())
            gateway.stop.set()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await soon(asking)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, STOPPING)
    status, info = rpc_status.from_call(caught.value), error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.reason == "UPSTREAM_UNAVAILABLE"
    assert [line for line in caplog.messages if " upstream_unavailable " in line]


async def test_what_ends_in_time_is_whole(mesh: FakeMesh) -> None:
    gateway, held = Gateway(mesh, drain_timeout=NET_SECONDS), control(mesh, "chat")
    async with gateway.clients() as (http, channel):
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=HI))
        calling = asyncio.create_task(ask(channel, "chat"))
        await running_requests(http, 2)
        gateway.stop.set()
        held.hold.set()
        answer, called = await soon(asking), await soon(calling)
    assert answer.status_code == 200
    assert called.choices[0].text


async def test_a_recording_being_read_is_503(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = asyncio.Event()

    async def transcribe(*_: object) -> None:
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("autoglm.gateway.upstream.Mesh.transcribe", transcribe)
    gateway = Gateway(mesh)
    async with gateway.clients() as (http, channel):
        asking = asyncio.create_task(http.post("/v1/audio/transcriptions", data={"model": ""}, files={"file": wav()}))
        await soon(entered.wait())
        entered.clear()
        request = TranscribeRequest(audio=Media(data=wav()))
        calling = TranscriptionServiceStub(channel).Transcribe(request)
        await soon(entered.wait())
        gateway.stop.set()
        assert (await soon(asking)).json()["error"]["message"] == STOPPING
        with pytest.raises(grpc.aio.AioRpcError, match=STOPPING):
            await soon(calling)


async def test_a_second_signal_ends_the_drain(mesh: FakeMesh) -> None:
    process = await start_process(
        HOST="127.0.0.1", HTTP_PORT="0", GRPC_PORT="0", SERVE_ADDRESS=mesh.address, DRAIN_TIMEOUT="3600"
    )
    line = await read_until(process, "Starting FastAPI server at http://127.0.0.1:")
    await read_until(process, "OpenAI-compatible endpoint enabled at /v1/chat/completions")
    held = control(mesh, "chat")
    async with httpx.AsyncClient(trust_env=False, timeout=NET_SECONDS) as http:
        url = line.split("at ")[-1].strip() + "/v1/chat/completions"
        answering = asyncio.create_task(http.post(url, json=HI))
        await soon(held.entered.wait())
        process.send_signal(signal.SIGTERM)
        await read_until(process, "stopping")
        process.send_signal(signal.SIGINT)
        assert (await soon(answering)).json()["error"]["message"] == STOPPING
    assert await soon(process.wait()) == 0

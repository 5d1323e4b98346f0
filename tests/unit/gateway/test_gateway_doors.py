"""What somebody without a key can make the gateway hold: headers, connections, frames and messages that never end."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from autoglm.gateway import grpc_calls, grpc_options, http_protocol
from autoglm.gateway.connections import ConnectionLimit
from autoglm.gateway.settings import MIB, Settings

from ...waiting import NET_SECONDS, eventually_async, soon
from .conftest import BUNDLE, Client, Serve

CONNECTIONS = 3
GROWTH = 64 * MIB  # one gateway may grow by this much where a flood used to cost hundreds of megabytes
GET = b"GET /health/live HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def line(
    client: Client, *pieces: bytes, port: int | None = None, source: str = "127.0.0.1"
) -> AsyncIterator[Line]:
    """Connect to the HTTP server, or to another port, and send `pieces`; a peer that hangs up is no error."""
    port = port or int(client.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await soon(writer.drain())
        yield reader, writer
    finally:
        writer.transport.abort()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return all that comes until the peer closes the connection."""
    text = b""
    with contextlib.suppress(ConnectionError):
        while piece := await soon(reader.read(65536)):
            text += piece
    return text


async def is_served(client: Client) -> None:
    """Check that both servers answer others."""
    assert (await client.http.get("/health/live")).status_code == 200
    await health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(), timeout=NET_SECONDS)


@pytest.mark.parametrize(
    "pieces",
    [
        [GET + b"x: ", *[b"a" * 65536] * 100],
        [b"GET /", *[b"a" * 65536] * 100],
        [GET, *[b"x: a\r\n" * 10_000] * 100],
        [GET + b"x: " + b"a" * 70_000 + b"\r\n\r\n"],
        [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"],
        [GET + b"x: 1\r\n" * 20_000 + b"\r\n"],
    ],
    ids=["value", "target", "fields", "whole value", "whole target", "whole fields"],
)
async def test_a_header_is_bounded(shared: Client, pieces: list[bytes]) -> None:
    async with line(shared, *pieces) as (reader, _):
        answer = await rest(reader)
    assert not answer or b'"type":"request_too_large"' in answer
    await is_served(shared)


async def test_a_header_a_little_too_large_is_told(shared: Client) -> None:
    async with line(shared, GET + b"x: " + b"a" * (http_protocol.MAX_HEADER_BYTES + 1) + b"\r\n\r\n") as (reader, _):
        assert (await rest(reader)).startswith(b"HTTP/1.1 413 ")


async def test_a_large_header_within_the_bound_is_read(shared: Client) -> None:
    async with line(shared, GET + b"connection: close\r\nx: ", b"a" * 60_000, b"\r\n\r\n") as (reader, _):
        assert (await rest(reader)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "endless", [b"1;" + b"a" * 70_000, b"0\r\nx: " + b"a" * 70_000, b"0\r\n" + b"x: a\r\n" * 20_000]
)
async def test_what_is_around_a_body_is_bounded(shared: Client, endless: bytes) -> None:
    start = POST + b"transfer-encoding: chunked\r\n\r\n"
    async with line(shared, start, *[endless] * 10) as (reader, _):
        await rest(reader)
    await is_served(shared)


@pytest.mark.parametrize("path", [b"/health/live", b"/v1/none", b"/v1/models"])
async def test_requests_in_advance_are_bounded(path: bytes, shared: Client, caplog: pytest.LogCaptureFixture) -> None:
    async with line(shared, (GET.replace(b"/health/live", path) + b"\r\n") * 1000) as (reader, _):
        answers = await rest(reader)
    assert answers.count(b"HTTP/1.1 ") <= http_protocol.MAX_PIPELINED + 1
    await is_served(shared)
    assert "unexpected" not in caplog.text


async def test_what_arrives_at_once_is_parsed_in_turns(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "PARSED_BYTES", 64)
    monkeypatch.setattr(http_protocol, "TURN_EVENTS", 4)
    turns, parse = 0, http_protocol.PlainHttpProtocol._parse

    def counted(protocol: http_protocol.PlainHttpProtocol) -> None:
        nonlocal turns
        turns += 1
        parse(protocol)

    monkeypatch.setattr(http_protocol.PlainHttpProtocol, "_parse", counted)
    client = await serve()
    body = b'{"model":"%s","messages":[{"role":"user","content":"%s"}]}' % (BUNDLE.encode(), b"hi" * 500)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    request = POST + b"transfer-encoding: chunked\r\n\r\n" + chunks
    async with line(client, request * 2 + GET + b"connection: close\r\n\r\n") as (reader, _):
        assert (await rest(reader)).count(b"HTTP/1.1 200 ") == 3
    assert turns > len(body) // 64
    assert client.mesh.decoder.generate.requests[-1].messages[0].parts[0].text == "hi" * 500


@pytest.mark.parametrize(
    "sent", [[], [GET], [GET + b"x: "], [POST + b"content-length: 9\r\n\r\n{"], [GET + b"\r\n", b"\r\n"]]
)
async def test_a_client_that_stops_sending_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, sent: list[bytes]
) -> None:
    monkeypatch.setattr(http_protocol, "RECEIVE_SECONDS", 0.2)
    client = await serve()
    async with line(client, *sent) as (reader, _):
        answer = await rest(reader)
    assert (b'"deadline_exceeded"' in answer) == (bool(sent) and sent[-1] != b"\r\n")


async def test_a_body_that_comes_by_single_bytes_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "RECEIVE_SECONDS", 0.5)
    monkeypatch.setattr(http_protocol, "MIN_BODY_RATE", 1_000_000)
    client = await serve()
    async with line(client, POST + b"content-length: 1000000\r\n\r\n") as (reader, writer):
        ended = asyncio.create_task(rest(reader))
        while not ended.done():
            writer.write(b" ")
            await asyncio.wait({ended}, timeout=0.01)
        assert b'"deadline_exceeded"' in ended.result()
    running = "autoglm_requests_in_progress 0.0"
    await eventually_async(lambda: has(client, running), "the request has ended")


async def test_a_body_that_comes_fast_enough_is_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    checked, check = asyncio.Event(), http_protocol.PlainHttpProtocol._check_progress

    def checking(protocol: http_protocol.PlainHttpProtocol) -> None:
        check(protocol)
        checked.set()

    monkeypatch.setattr(http_protocol.PlainHttpProtocol, "_check_progress", checking)
    monkeypatch.setattr(http_protocol, "RECEIVE_SECONDS", 0.2)
    monkeypatch.setattr(http_protocol, "MIN_BODY_RATE", 0)
    client = await serve()
    async with line(client, POST + b"connection: close\r\ncontent-length: 2\r\n\r\n{") as (reader, writer):
        await soon(checked.wait())
        writer.write(b"}")
        assert (await rest(reader)).startswith(b"HTTP/1.1 400 ")  # read, and found to lack messages


async def test_a_client_that_does_not_read_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(http_protocol, "MAX_PIPELINED", 10_000)
    client = await serve(max_connections=1)
    with socket.create_connection(("127.0.0.1", int(client.url.rsplit(":", 1)[1]))) as unread:
        await asyncio.to_thread(unread.sendall, (b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n") * 1000)
        await eventually_async(lambda: is_let_in(client), "the connection is cut off")


async def has(client: Client, text: str) -> bool:
    return text in (await client.http.get("/metrics")).text


async def test_connections_are_bounded_in_all(serve: Serve) -> None:
    client = await serve(max_connections=CONNECTIONS)
    await client.http.get("/health/live")  # holds one of them
    async with line(client), line(client):
        async with line(client) as (reader, _):
            answer = await rest(reader)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in answer
        assert await has(client, 'autoglm_requests_rejected_total{reason="connections",tenant="-"} 1.0')
    await eventually_async(lambda: is_let_in(client), "a connection is free again")


async def is_let_in(client: Client) -> bool:
    async with line(client, GET + b"connection: close\r\n\r\n") as (reader, _):
        return (await rest(reader)).startswith(b"HTTP/1.1 200 ")


async def test_connections_of_one_address_are_bounded(serve: Serve) -> None:
    client = await serve(max_connections_per_address=CONNECTIONS - 1, forwarded_allow_ips="10.0.0.0/8")
    await client.http.get("/health/live")
    async with line(client), line(client) as (reader, _):
        assert (await rest(reader)).startswith(b"HTTP/1.1 429 ")
        async with line(client, GET + b"connection: close\r\n\r\n", source="127.0.0.2") as (other, _):
            assert (await rest(other)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("proxies", "hosts", "expected"),
    [
        ("", ["10.0.0.1"] * 3, [True, True, False]),
        ("10.0.0.0/8", ["10.0.0.1"] * 3, [True, True, True]),
        ("*", ["192.0.2.1"] * 3, [True, True, True]),
        ("", ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"], [True, True, False, True]),
        ("", ["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3", "10.0.0.4"], [True, True, True, True, False]),
        ("", ["", "", ""], [True, True, False]),
    ],
)
def test_whose_connections_are_counted(proxies: str, hosts: list[str], expected: list[bool]) -> None:
    limit = ConnectionLimit(Settings(max_connections=4, max_connections_per_address=2, forwarded_allow_ips=proxies))
    assert [limit.open(host) for host in hosts] == expected
    for host in hosts:
        limit.close(host)
    assert limit.open(hosts[0])


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def field(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


DATA, HEADERS, RESET, SETTINGS, PING, CONTINUATION, END_HEADERS = 0, 1, 3, 4, 6, 9, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
CALL = b"".join(
    field(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/grpc.health.v1.Health/Watch"),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)
OPEN = frame(HEADERS, END_HEADERS, 1, CALL)
FLOODS = {
    "pings": frame(PING, 0, 0, b"12345678") * 100_000,
    "settings": frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 100)) * 50_000,
    "empty frames": OPEN + frame(DATA, 0, 1) * 100_000,
    "resets": b"".join(
        frame(HEADERS, END_HEADERS, n, CALL) + frame(RESET, 0, n, bytes(4)) for n in range(1, 40_000, 2)
    ),
    "open calls": b"".join(frame(HEADERS, END_HEADERS, n, CALL) for n in range(1, 40_000, 2)),
    "a header value": frame(HEADERS, 0, 1, CALL + b"\0\1x\x7f\x81\xff\xff\x7f")
    + frame(CONTINUATION, 0, 1, b"a" * 16_000) * 1000,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_frames_is_bounded(client: Client, kind: str) -> None:
    await is_served(client)
    before = psutil.Process().memory_info().rss
    async with line(client, PREFACE, FLOODS[kind], port=client.grpc_port):
        await is_served(client)
    await is_served(client)
    assert psutil.Process().memory_info().rss - before < GROWTH


async def test_grpc_connections_are_bounded(serve: Serve) -> None:
    client = await serve(max_connections=CONNECTIONS)
    port = client.grpc_port
    async with AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):
            await stack.enter_async_context(line(client, port=port))
        reader, _ = await stack.enter_async_context(line(client, port=port))
        assert await rest(reader) == b""


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", PREFACE])
async def test_a_grpc_connection_without_a_call_ends(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(grpc_options, "HANDSHAKE_MILLISECONDS", 300)
    monkeypatch.setattr(grpc_options, "IDLE_MILLISECONDS", 300)
    client = await serve()
    async with line(client, sent, port=client.grpc_port) as (reader, _):
        await rest(reader)


@pytest.mark.parametrize(
    "path", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/autoglm.v1.ModelService/ListModels"]
)
async def test_a_message_that_needs_no_key_has_to_come_soon(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(grpc_calls, "SMALL_SECONDS", 0.2)
    client = await serve()
    call: Any = client.channel.stream_stream(path)()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(call.read())
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_message_that_comes_slowly_counts(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_calls, "PROMPT_SECONDS", 0.05)
    client = await serve(max_body_bytes=MIB, max_bytes_in_progress=2 * MIB)
    slow: list[Any] = [client.channel.stream_unary("/autoglm.v1.ChatService/Complete")() for _ in range(3)]
    codes = [asyncio.ensure_future(call.code()) for call in slow]
    done, _ = await soon(asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED))
    assert [code.result() for code in done] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    for call in slow:
        call.cancel()
    await eventually_async(lambda: has(client, "autoglm_requests_in_progress 0.0"), "the calls have ended")
    await asyncio.gather(*codes)
    assert (await client.chat("x" * (MIB // 2))).status_code == 200


async def test_calls_of_health_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_calls, "MAX_STANDARD_CALLS", 2)
    client = await serve()
    stub = health_pb2_grpc.HealthStub(client.channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
    for each in watching:
        await soon(each.read())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(stub.Check(health_pb2.HealthCheckRequest()))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    watching[0].cancel()
    await eventually_async(lambda: checked(stub), "a call is free again")
    watching[1].cancel()


async def checked(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        await stub.Check(health_pb2.HealthCheckRequest())
    except grpc.aio.AioRpcError:
        return False
    return True

"""What calls meet on their way through HAProxy: nothing that they notice, except bounds."""

import asyncio
import base64
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from autoglm.cli import grpc_proxy
from autoglm.cli.processes import StartError
from autoglm.common.errors import DeadlineExceeded, MeshError, RateLimited, UpstreamUnavailable, to_status
from autoglm.gateway import grpc_options
from autoglm.gateway.app import running
from autoglm.gateway.settings import MIB
from autoglm.v1.chat_pb2 import CompleteResponse, StreamCompleteRequest, StreamCompleteResponse

from ...waiting import NET_SECONDS, eventually_async, soon
from .conftest import Client, FakeMesh
from .mounts import Mount
from .proxied import HOST, Proxy, proxied, proxying
from .test_gateway_doors import CALL, CONNECTIONS, FLOODS, GROWTH, OPEN, PREFACE, field, frame, is_served, line, rest
from .test_gateway_drain import CHAT, STOPPING
from .test_gateway_grpc_calls import COMPLETE, METHODS, REFLECT, STREAM, question, refused, sent
from .test_gateway_tls import Authority, chain, settings

GONE = "the gateway is starting or restarting; try again soon"
CONFIG = grpc_proxy.config_path()
OWN = (("grpc.use_local_subchannel_pool", 1),)  # channels to one address share a connection otherwise

Edit = Callable[[str, str], None]


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Client]:
    """A gateway behind HAProxy."""
    async with proxied(mesh, tmp_path) as client:
        yield client


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Replace a piece of HAProxy's configuration."""

    def replace(old: str, new: str) -> None:
        text = grpc_proxy.config_path().read_text()
        assert text.count(old) == 1
        edited = tmp_path / "edited.cfg"
        edited.write_text(text.replace(old, new))
        monkeypatch.setattr(grpc_proxy, "config_path", lambda: edited)

    return replace


def streaming(client: Client, pieces: int = 1) -> Any:
    """Begin a call whose answer comes in pieces."""
    asked = StreamCompleteRequest(chat=CHAT).SerializeToString()
    client.mesh.decoder.pieces = ["x" * 900] * pieces
    stub: Any = client.channel.unary_stream(STREAM)
    return stub(asked, timeout=NET_SECONDS)


async def test_answers_and_streams_come_through(client: Client) -> None:
    answer = CompleteResponse.FromString(await sent(client, COMPLETE, question()))
    assert answer.choices[0].text == "你好, AutoGLM 0"
    pieces = [StreamCompleteResponse.FromString(piece) async for piece in streaming(client, 100)]
    assert len(pieces) > 100
    compressed = await sent(client, COMPLETE, question(100_000), compression=grpc.Compression.Gzip)
    assert CompleteResponse.FromString(compressed).choices


@pytest.mark.parametrize("method", METHODS)
async def test_errors_have_their_details(client: Client, method: str) -> None:
    code, reason, _ = await refused(sent(client, method, b"\x0f\xff\xff"))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST_ERROR")


async def test_a_service_that_is_down_is_told(client: Client) -> None:
    client.mesh.decoder.generate.error = UpstreamUnavailable("the decoder is gone")
    client.mesh.decoder.after = 0
    assert (await refused(sent(client, COMPLETE, question())))[1] == "UPSTREAM_UNAVAILABLE"


async def test_health_and_reflection_come_through(client: Client) -> None:
    await is_served(client)
    watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await soon(watch.read())).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    stub: Any = client.channel.stream_stream(REFLECT)
    call = stub(iter([b"\x3a\x00"]), timeout=NET_SECONDS)
    assert b"autoglm.v1.ChatService" in await soon(call.read())


async def test_messages_have_the_gateways_own_limit(mesh: FakeMesh, tmp_path: Path) -> None:
    async with proxied(mesh, tmp_path, max_body_bytes=4 * MIB) as client:
        reasons = [
            (await refused(sent(client, COMPLETE, question(data=bytes(4 * MIB + more)))))[1] for more in (-100, 100)
        ]
    assert reasons == ["UNSUPPORTED_MEDIA", "REQUEST_TOO_LARGE"]  # the first was read: it is no image


async def test_a_call_taken_back_stops_the_work(client: Client) -> None:
    generate = client.mesh.decoder.generate
    generate.hold.clear()
    call = streaming(client)
    await soon(generate.entered.wait())
    call.cancel()
    await soon(generate.left.wait())
    assert generate.cancelled == 1


async def test_a_deadline_arrives_and_is_kept(client: Client) -> None:
    generate = client.mesh.decoder.generate
    generate.hold.clear()
    stub: Any = client.channel.unary_unary(COMPLETE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(question(), timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await soon(generate.left.wait())
    (left,) = generate.time_remaining
    assert left is not None
    assert left <= 1


async def test_a_client_may_wait_longer_than_it_may_stall(mesh: FakeMesh, tmp_path: Path, edit: Edit) -> None:
    edit("timeout client 60s", "timeout client 200ms")
    async with proxied(mesh, tmp_path) as client:
        mesh.decoder.generate.hold.clear()
        call = streaming(client)
        await soon(mesh.decoder.generate.entered.wait())
        await asyncio.sleep(1)  # several times as long as a client may stall
        mesh.decoder.generate.hold.set()
        assert len([piece async for piece in call]) > 1


async def test_a_client_that_does_not_read_is_cut_off(mesh: FakeMesh, tmp_path: Path, edit: Edit) -> None:
    edit("timeout client 60s", "timeout client 200ms")
    async with proxied(mesh, tmp_path) as client:
        unread = streaming(client, 5000)
        await soon(unread.read())
        await eventually_async(lambda: is_idle(client), "the call ends")
        unread.cancel()


async def test_who_reads_slowly_delays_no_other_call(client: Client) -> None:
    slow = [aiter(streaming(client, 2000)) for _ in range(4)]
    for pieces in slow:
        await soon(anext(pieces))
    client.mesh.decoder.pieces = ["quick"]
    assert await soon(sent(client, COMPLETE, question()))
    for pieces in slow:
        assert len([piece async for piece in pieces]) >= 2000


async def is_idle(client: Client) -> bool:
    return "autoglm_requests_in_progress 0.0" in (await client.http.get("/metrics")).text


@pytest.mark.parametrize(("keyword", "stays"), [("max_connections", 3), ("max_connections_per_address", 2)])
async def test_connections_are_bounded(mesh: FakeMesh, tmp_path: Path, keyword: str, stays: int) -> None:
    given: dict[str, Any] = {"forwarded_allow_ips": "10.0.0.0/8", keyword: stays}
    async with proxied(mesh, tmp_path, **given) as client, AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(line(client, PREFACE, port=client.grpc_port)) for _ in range(stays)]
        for reader, _ in lines:
            assert await soon(reader.readexactly(9))
        assert not await is_let_in(client)
        assert await is_let_in(client, "127.0.0.2") is (keyword != "max_connections")


async def is_let_in(client: Client, source: str = HOST) -> bool:
    """Return whether HAProxy says a word to another client."""
    try:
        async with line(client, PREFACE, port=client.grpc_port, source=source) as (reader, _):
            return bool(await soon(reader.read(9)))
    except ConnectionError:
        return False


@pytest.mark.parametrize("exempt", [f"{HOST}", "127.0.0.0/8,::1", "*"])
async def test_proxies_may_have_more_connections(mesh: FakeMesh, tmp_path: Path, exempt: str) -> None:
    given: dict[str, Any] = {"forwarded_allow_ips": exempt, "max_connections_per_address": 1}
    async with proxied(mesh, tmp_path, **given) as client, AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):
            reader, _ = await stack.enter_async_context(line(client, PREFACE, port=client.grpc_port))
            assert await soon(reader.readexactly(9))


async def test_calls_are_bounded(mesh: FakeMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_options, "MAX_STANDARD_CALLS", 0)
    monkeypatch.setattr(grpc_options, "SPARE_STREAMS", 2)
    async with proxied(mesh, tmp_path, max_concurrent_requests=1) as client:
        stub = health_pb2_grpc.HealthStub(client.channel)
        watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for call in watching:
            await soon(call.read())
        other = Client(client.http, grpc.aio.insecure_channel(f"{HOST}:{client.grpc_port}", OWN), "", 0, mesh)
        code, reason, _ = await refused(sent(other, COMPLETE, question()))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED")
        for call in watching:
            call.cancel()
        await other.channel.close()


ENDLESS = frame(9, 0, 1, field(b"a" * 10, b"b" * 100) * 100)


async def test_headers_without_an_end_are_cut_off(client: Client) -> None:
    async with line(client, PREFACE, frame(1, 0, 1, CALL), *[ENDLESS] * 100, port=client.grpc_port) as (reader, _):
        await rest(reader)
    await is_served(client)


async def test_headers_that_stop_coming_are_cut_off(mesh: FakeMesh, tmp_path: Path, edit: Edit) -> None:
    edit("timeout http-request 20s", "timeout http-request 200ms")
    async with (
        proxied(mesh, tmp_path) as client,
        line(client, PREFACE, frame(1, 0, 1, CALL), port=client.grpc_port) as (reader, _),
    ):
        await rest(reader)


@pytest.mark.parametrize("kind", [*FLOODS, "headers"])
async def test_a_flood_of_frames_is_bounded(mesh: FakeMesh, tmp_path: Path, kind: str) -> None:
    flood = FLOODS.get(kind, frame(1, 0, 1, CALL) + ENDLESS * 2000)
    async with proxying(tmp_path, mesh.address) as proxy, running(proxy.settings), AsyncExitStack() as stack:
        parent = psutil.Process(proxy.process.pid)
        held = [psutil.Process(), parent, *parent.children()]
        before = sum(process.memory_info().rss for process in held)
        for _ in range(4):
            reached = Client(None, None, "", proxy.settings.grpc_port, mesh)  # type: ignore[arg-type]
            await stack.enter_async_context(line(reached, PREFACE, flood, port=proxy.settings.grpc_port))
        assert sum(process.memory_info().rss for process in held) - before < GROWTH


MESSAGES = {
    "UNAVAILABLE": UpstreamUnavailable(GONE),
    "EXHAUSTED": RateLimited("too many calls are open; try again shortly"),
    "LATE": DeadlineExceeded("the message did not arrive in time"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_haproxy_says_is_typed(name: str) -> None:
    error: MeshError = MESSAGES[name]
    text = CONFIG.read_text()
    (encoded,) = re.findall(rf'setenv {name} "(.*)"', text)
    assert status_pb2.Status.FromString(base64.b64decode(encoded + "==")) == to_status(error)
    assert f'grpc-status {error.grpc_code} hdr grpc-message "{error.message}"' in text


async def test_without_a_gateway_calls_are_refused(mesh: FakeMesh, tmp_path: Path) -> None:
    async with proxying(tmp_path, mesh.address) as proxy, grpc.aio.insecure_channel(proxy.address) as channel:
        client = Client(None, channel, "", 0, mesh)  # type: ignore[arg-type]
        expected = (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", GONE)
        assert await refused(sent(client, COMPLETE, question())) == expected
        async with running(proxy.settings):
            assert await sent(client, COMPLETE, question())
        assert await refused(sent(client, COMPLETE, question())) == expected


async def test_the_end_of_the_drain_is_told(mesh: FakeMesh, tmp_path: Path) -> None:
    mesh.decoder.generate.hold.clear()
    async with (
        proxying(tmp_path, mesh.address, drain_timeout=0.1) as proxy,
        grpc.aio.insecure_channel(proxy.address) as channel,
    ):
        client = Client(None, channel, "", 0, mesh)  # type: ignore[arg-type]
        async with running(proxy.settings):
            stream = asyncio.create_task(refused(drained(streaming(client))))
            asking = asyncio.create_task(refused(sent(client, COMPLETE, question())))
            await eventually_async(lambda: has_asked(mesh, 2), "both are answered")
        assert (await soon(asking))[1:] == ("UPSTREAM_UNAVAILABLE", STOPPING)
        assert (await soon(stream))[1:] == ("UPSTREAM_UNAVAILABLE", STOPPING)


async def has_asked(mesh: FakeMesh, count: int) -> bool:
    return len(mesh.decoder.generate.requests) == count


async def drained(call: Any) -> list[bytes]:
    return [piece async for piece in call]


def reached(proxy: Proxy, authority: Authority, client: Any = None) -> Any:
    """Open a channel over TLS, with a connection of its own."""
    return grpc.aio.secure_channel(proxy.address, authority.credentials(client), OWN)


async def enters(proxy: Proxy, authority: Authority, client: Any = None) -> bool:
    async with reached(proxy, authority, client) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        code = await stub.Check(health_pb2.HealthCheckRequest(), timeout=NET_SECONDS).code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return bool(code == grpc.StatusCode.OK)


async def refuses(proxy: Proxy, authority: Authority, client: Any) -> bool:
    return not await enters(proxy, authority, client)


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_ends_at_haproxy_and_is_renewed(mesh: FakeMesh, tmp_path: Path, mount: Mount, mutual: bool) -> None:
    ours, theirs = Authority.new(), Authority.new()
    mount.put(**ours.files(ca=ours.ca.cert_pem.bytes()))
    folder = tmp_path / "private"
    folder.mkdir()
    async with proxying(folder, mesh.address, **settings(mount, mutual)) as proxy, running(proxy.settings):
        assert await enters(proxy, ours, ours.client)
        assert await enters(proxy, ours) is not mutual
        assert not await enters(proxy, theirs, ours.client)
        async with reached(proxy, ours, ours.client) as before:
            mesh.decoder.generate.hold.clear()
            running_call = asyncio.create_task(drained(streaming(Client(None, before, "", 0, mesh))))  # type: ignore[arg-type]
            await soon(mesh.decoder.generate.entered.wait())
            mount.put(**ours.files(key=theirs.server.private_key_pem.bytes(), ca=b""))  # not its key
            proxy.renew()
            assert await enters(proxy, ours, ours.client)
            several = ours.ca.cert_pem.bytes() * 40 + theirs.ca.cert_pem.bytes()
            mount.put(cert=chain(theirs.server), key=theirs.server.private_key_pem.bytes(), ca=several)
            proxy.renew()
            await eventually_async(lambda: enters(proxy, theirs, theirs.client), "the certificates are taken")
            assert not await enters(proxy, ours, ours.client)
            mount.put(**theirs.files(ca=theirs.ca.cert_pem.bytes()))
            proxy.renew()
            if mutual:
                await eventually_async(lambda: refuses(proxy, theirs, ours.client), "a CA is no longer believed")
            assert await enters(proxy, theirs, theirs.client)
            mesh.decoder.generate.hold.set()
            assert len(await soon(running_call)) > 1  # on the connection that was open


async def test_plain_bytes_reach_nothing_over_tls(mesh: FakeMesh, tmp_path: Path, mount: Mount) -> None:
    mount.put(**Authority.new().files())
    async with proxying(tmp_path, mesh.address, **settings(mount)) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.settings.grpc_port)
        writer.write(PREFACE + OPEN)
        assert not (await rest(reader)).startswith(struct.pack(">I", 0)[:3])
        writer.close()


async def test_a_port_that_is_taken_is_told(mesh: FakeMesh, tmp_path: Path) -> None:
    async with proxying(tmp_path, mesh.address) as proxy:
        second = tmp_path / "second"
        second.mkdir()
        with pytest.raises(StartError, match=r"HAProxy cannot listen at the gRPC port: .*cannot bind socket"):
            async with proxying(second, mesh.address, grpc_port=proxy.settings.grpc_port):
                pass

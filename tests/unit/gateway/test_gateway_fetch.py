"""Media by https URL: from a real server over real TLS, and each way in which a URL may lead somewhere else."""

import asyncio
import gzip
import logging
import ssl
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
import pytest_asyncio
import trustme

from autoglm.common.testing import serving
from autoglm.gateway.media.fetch import MAX_REDIRECTS, Policy
from autoglm.gateway.settings import Settings
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER
from autoglm.v1.transcription_pb2 import TranscribeRequest
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceStub

from ...waiting import soon
from .conftest import Client, FakeMesh, Serve, running_client
from .origins import Names, Origin, World, audio, http, image
from .samples import png, wav
from .test_gateway_parsing import IMAGE_URL, error_of

UNREACHABLE = "has no address that this server is allowed to connect to"
SECRET = "sig=c2VjcmV0"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def standing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    authority, file = trustme.CA(), tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("media.test", "*.cdn.test").configure_cert(context)
    world = World(Origin(), Origin(), Names())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.getaddrinfo", world.names.getaddrinfo)
        patch.setenv("SSL_CERT_FILE", str(file))
        patch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing may care
        async with (
            await world.media.start("127.0.0.1", 0, context),
            await world.inner.start("127.0.0.2", world.media.port, context),
        ):
            yield world


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(standing: World) -> AsyncIterator[Client]:
    """A gateway that may fetch, for tests that leave nothing behind."""
    async with serving(FakeMesh()) as mesh, running_client(mesh, **standing.settings) as client:
        yield client


@pytest.fixture
def world(standing: World) -> World:
    standing.forget()
    return standing


async def refused(client: Client, url: str, status: int = 400, code: str = "invalid_request_error") -> str:
    """Return the message with which a picture at `url` is refused; it names the field and nothing of the URL."""
    before = client.mesh.calls
    response = await client.chat([image(url)])
    error = error_of(response)
    assert (response.status_code, error["type"], error["param"]) == (status, code, IMAGE_URL)
    assert SECRET not in response.text
    assert client.mesh.calls == before
    return str(error["message"])


async def test_files_of_an_allowed_host_reach_the_encoders(world: World, serve: Serve, mesh: FakeMesh) -> None:
    world.media.replies["/b.wav"] = http(wav(), content_type="text/plain", content_encoding="")
    client = await serve(**world.settings)
    for outcome in ("miss", "local"):
        response = await client.chat([image(f"{world.url}/a.png?x=%2F&{SECRET}"), audio(f"{world.url}/b.wav")])
        assert response.status_code == 200
        stages = response.json()["autoglm"]["stages"]
        assert [part["cache"] for part in stages["media"]] == [outcome] * 2
        assert stages["fetch"] > 0
        assert "fetch;dur=" in response.headers["server-timing"]
    assert mesh.vision.encode.requests[0].image == png()
    assert mesh.speech.encode.requests[0].audio == wav()
    assert sorted(world.media.paths) == [*[f"/a.png?x=%2F&{SECRET}"] * 2, "/b.wav", "/b.wav"]
    assert "autoglm_media_fetch_seconds_count 4.0" in (await client.http.get("/metrics")).text


async def test_the_host_is_told_nothing_of_the_client(world: World, serve: Serve) -> None:
    client = await serve(**world.settings | {"api_keys": "k-123"})
    world.media.replies["/a.png"] = http(png(), set_cookie="seen=1")
    client.http.headers["authorization"] = "Bearer k-123"
    for _ in range(2):
        assert (await client.chat([image(f"{world.url}/a.png")])).status_code == 200
        head = world.media.heads.pop().lower()
        sent = {line.partition(":")[0] for line in head.splitlines()[1:] if line}
        assert sent == {"host", "accept", "accept-encoding", "user-agent"}
        assert f"host: media.test:{world.media.port}" in head
        assert "accept-encoding: identity" in head


async def test_urls_over_grpc(world: World, serve: Serve, mesh: FakeMesh) -> None:
    world.media.replies["/b.wav"] = http(wav())
    client = await serve(**world.settings)
    chat, heard = ChatServiceStub(client.channel), TranscriptionServiceStub(client.channel)
    part = ContentPart(image=Media(url=f"{world.url}/a.png"))
    message = ChatMessage(role=ROLE_USER, parts=[part])
    await chat.Complete(CompleteRequest(chat=ChatRequest(messages=[message])))
    assert mesh.vision.encode.requests[0].image == png()
    assert (await heard.Transcribe(TranscribeRequest(audio=Media(url=f"{world.url}/b.wav")))).text
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await heard.Transcribe(TranscribeRequest(audio=Media(url="https://elsewhere.test:1/b.wav")))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith("audio.url: ")


async def test_nothing_is_fetched_by_default(world: World, shared: Client) -> None:
    for url in ("https://media.test/a.png", "http://media.test/a.png", "file:///etc/passwd", ""):
        assert "accepts only data: URLs; send the bytes as" in await refused(shared, f"{url}?{SECRET}")
    response = await shared.chat([audio("https://media.test/b.wav")])
    assert error_of(response)["param"] == "messages[0].content[0].audio_url.url"
    assert not world.names.asked


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://media.test:{port}/a.png", "is not an https: URL"),
        ("ftp://media.test:{port}/a.png", "is not an https: URL"),
        ("file:///etc/passwd", "is not an https: URL"),
        ("//media.test:{port}/a.png", "is not an https: URL"),
        ("a.png", "is not an https: URL"),
        ("https://user@media.test:{port}/a.png", "user name"),
        ("https://:word@media.test:{port}/a.png", "user name"),
        ("https://media.test:{port}@elsewhere.test:8443/a.png", "user name"),
        ("https://media.test:{port}\\@elsewhere.test/a.png", "is malformed"),
        ("https://media.test:{port}:443/a.png", "is malformed"),
        ("https://media.test:https/a.png", "is malformed"),
        ("https://media.test:65536/a.png", "is malformed"),
        ("https://media.test:-1/a.png", "is malformed"),
        ("https://media.test:0/a.png", "names a host or port"),
    ],
)
async def test_urls_that_the_policy_does_not_let_through(world: World, gateway: Client, url: str, told: str) -> None:
    assert told in await refused(gateway, url.format(port=world.media.port) + f"?{SECRET}")
    assert world.names.asked == world.media.heads == []


@pytest.mark.parametrize(
    "host",
    [
        *("media.test:0", "media.test:22", "media.test.:PORT", "media%2etest:PORT", "media.test.elsewhere.test:PORT"),
        *("elsewhere.test:PORT", "cdn.test:PORT", "xcdn.test:PORT", ""),
        *("127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "①②⑦.⓪.⓪.①", "93.184.215.14"),
        *("[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[fe80::1%25eth0]"),
    ],
)
async def test_hosts_that_nobody_has_allowed(world: World, gateway: Client, host: str) -> None:
    message = await refused(gateway, f"https://{host.replace('PORT', str(world.media.port))}/a.png?{SECRET}")
    assert "names a host or port that this server does not fetch from" in message
    assert world.names.asked == world.media.heads == []


@pytest.mark.parametrize(
    "addresses",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        "127.0.0.1",  # of a named host only
        *("::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "fc00::1", "fe80::1", "fec0::1", "ff0e::1"),
        *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::808:808", "2002:7f00:1::", "2001:0:7f00:1::"),
        *("93.184.215.14 10.0.0.1", "93.184.215.14 ::1", ""),
    ],
)
async def test_names_of_addresses_that_are_not_public(world: World, gateway: Client, addresses: str) -> None:
    world.names.answers["any.test"] = [addresses.split()]
    assert UNREACHABLE in await refused(gateway, f"https://any.test/a.png?{SECRET}")
    assert world.names.asked == ["any.test"]


def test_public_addresses_and_private_ones_of_hosts_with_a_name() -> None:
    policy = Policy(Settings(allowed_media_domains="*,Store.internal", allowed_private_networks="10.1.0.0/16,fd00::/8"))
    for address in ("93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert policy.connectable("any.example", 443, address)
    for address in ("10.1.2.3", "fd00::1", "::ffff:10.1.2.3"):
        assert policy.connectable("store.internal", 443, address)
        assert not policy.connectable("any.example", 443, address)
        assert not policy.connectable("store.internal", 8443, address)
    assert not policy.connectable("store.internal", 443, "10.2.0.1")


async def test_a_name_that_is_bound_anew_leads_nowhere(world: World, gateway: Client) -> None:
    world.names.answers["media.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    assert (await gateway.chat([image(f"{world.url}/a.png")])).status_code == 200
    assert world.names.asked == ["media.test"]
    assert len(world.media.heads) == 1
    assert UNREACHABLE in await refused(gateway, f"{world.url}/a.png")
    assert world.names.asked == ["media.test"] * 2
    assert not world.inner.heads


async def test_redirects_within_what_is_allowed(world: World, serve: Serve, mesh: FakeMesh) -> None:
    world.media.replies |= {
        "/1": http(b"", "302 Found", location="/2"),
        "/2": http(b"", "307 Temporary Redirect", location=f"https://a.cdn.test:{world.media.port}/3"),
        "/3": http(b"", "301 Moved Permanently", location="a.png"),
    }
    client = await serve(**world.settings)
    assert (await client.chat([image(f"{world.url}/1")])).status_code == 200
    assert mesh.vision.encode.requests[0].image == png()
    assert world.media.paths == ["/1", "/2", "/3", "/a.png"]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("http://media.test:{port}/a.png", "what the URL redirects to is not an https: URL"),
        ("data:image/png;base64,aGk=", "what the URL redirects to is not an https: URL"),
        ("https://user@media.test:{port}/a.png", "what the URL redirects to contains a user name"),
        ("https://elsewhere.test:{port}/a.png", "what the URL redirects to names a host or port"),
        ("//elsewhere.test:{port}/a.png", "what the URL redirects to names a host or port"),
        ("https://127.0.0.2:{port}/a.png", "what the URL redirects to names a host or port"),
        ("https://b.cdn.test:{port}/a.png", UNREACHABLE),
        ("https://[", "is malformed"),
        ("https://media.test:1:2/b.png", "is malformed"),
        ("https://media.test:70000/b.png", "is malformed"),
    ],
)
async def test_redirects_out_of_what_is_allowed(world: World, gateway: Client, location: str, told: str) -> None:
    target = location.format(port=world.media.port) + f"?{SECRET}"
    world.media.replies["/1"] = http(b"", "302 Found", location=target)
    assert told in await refused(gateway, f"{world.url}/1")
    assert (world.media.paths, world.inner.heads) == (["/1"], [])


@pytest.mark.parametrize("headers", [{"location": "/1"}, {}])
async def test_redirects_without_an_end(world: World, gateway: Client, headers: dict[str, str]) -> None:
    world.media.replies["/1"] = http(b"", "302 Found", **headers)
    assert f"redirects more than {MAX_REDIRECTS} times" in await refused(gateway, f"{world.url}/1")
    assert world.media.paths == ["/1"] * (1 + MAX_REDIRECTS)


async def test_certificates_that_do_not_fit(world: World, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "has no certificate that this server trusts"
    world.names.answers["other.test"] = [["127.0.0.1"]]
    other = f"other.test:{world.media.port}"
    client = await serve(**world.settings | {"allowed_media_domains": other})
    assert told in await refused(client, f"https://{other}/a.png")
    monkeypatch.delenv("SSL_CERT_FILE")
    client = await serve(**world.settings)
    assert told in await refused(client, f"{world.url}/a.png")
    assert not world.media.heads


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (http(b"", "404 Not Found"), "answered with status 404"),
        (http(png(), "403 Forbidden"), "answered with status 403"),
        (http(png(), "500 Internal Server Error"), "answered with status 500"),
        (http(png()[:9], "206 Partial Content"), "answered with status 206"),
        (http(b"", "304 Not Modified"), "answered with status 304"),
        (http(gzip.compress(png(), mtime=0), content_encoding="gzip"), "sent the file compressed"),
        (http(png(), content_encoding="br"), "sent the file compressed"),
        (http(png()[:20], content_length="1000"), "closed the connection"),
        (http(b"", content_length="-1"), "does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "does not speak HTTP"),
        (http(b"", filler="x" * 100_000), "does not speak HTTP"),
        (b"", "closed the connection"),
    ],
)
async def test_hosts_that_do_not_send_the_file(world: World, gateway: Client, reply: bytes, told: str) -> None:
    world.media.replies["/x"] = reply
    assert told in await refused(gateway, f"{world.url}/x?{SECRET}")


async def test_a_host_that_does_not_listen(world: World, serve: Serve) -> None:
    client = await serve(**world.settings | {"allowed_media_domains": "media.test:9"})
    assert "cannot be connected to" in await refused(client, "https://media.test:9/a.png")


async def test_what_is_no_picture_is_none_whatever_its_host_calls_it(world: World, gateway: Client) -> None:
    world.media.replies["/a.png"] = http(b"<html></html>", content_type="image/png")
    await refused(gateway, f"{world.url}/a.png", 415, "unsupported_media")


async def without_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a file that has no end, as fast as it is read."""
    writer.write(http(b""))
    while True:
        writer.write(bytes(1000))
        await writer.drain()


async def in_drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a file that has no end, slowly."""
    writer.write(http(b""))
    while not writer.is_closing():
        writer.write(b"\0")
        await writer.drain()
        await asyncio.sleep(0.02)  # slowness is what this server is for; nothing waits for a drop


async def test_files_that_are_too_large(world: World, serve: Serve) -> None:
    world.media.replies |= {"/declared": http(b"", content_length="101"), "/endless": without_end}
    client = await serve(**world.settings | {"max_media_bytes": 100})
    for path in ("/declared", "/endless"):
        message = await refused(client, world.url + path, 413, "request_too_large")
        assert "larger than 100 bytes" in message


async def test_files_that_are_too_large_together(world: World, serve: Serve) -> None:
    client = await serve(**world.settings | {"max_body_bytes": 1000})
    world.media.replies["/b.wav"] = http(wav(0.02))
    assert (await client.chat([audio(f"{world.url}/b.wav")])).status_code == 200
    response = await client.chat([audio(f"{world.url}/b.wav"), audio(f"{world.url}/b.wav")])
    assert response.status_code == 413
    assert "larger than 1000 bytes in total" in error_of(response)["message"]


async def test_files_count_among_the_bytes_in_progress(world: World, serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(**world.settings | {"max_body_bytes": 1000, "max_bytes_in_progress": 2000})
    world.media.replies["/b.wav"] = http(wav(0.02))
    parts = [audio(f"{world.url}/b.wav"), {"type": "text", "text": "hi " * 100}]
    mesh.decoder.generate.hold.clear()
    first = asyncio.create_task(client.chat(parts))
    await soon(mesh.decoder.generate.entered.wait())
    assert (await client.chat(parts)).status_code == 429
    mesh.decoder.generate.hold.set()
    assert [(await first).status_code, (await client.chat(parts)).status_code] == [200, 200]


async def test_a_file_that_comes_in_drops(world: World, serve: Serve) -> None:
    world.media.replies["/drops"] = in_drops
    client = await serve(**world.settings | {"media_fetch_timeout": 0.2})
    assert "did not arrive within 0.2 seconds" in await refused(client, f"{world.url}/drops?{SECRET}")
    await soon(world.media.left.wait())


async def test_the_deadline_of_the_request_comes_first(world: World, serve: Serve) -> None:
    world.media.replies["/drops"] = in_drops
    client = await serve(**world.settings | {"default_timeout": 0.2})
    response = await client.chat([image(f"{world.url}/drops")])
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")
    await soon(world.media.left.wait())


async def test_a_client_that_leaves_takes_the_connection_along(world: World, gateway: Client) -> None:
    world.media.replies["/drops"] = in_drops
    asking = asyncio.create_task(gateway.chat([image(f"{world.url}/drops")]))
    await soon(world.media.entered.wait())
    assert not world.media.left.is_set()
    asking.cancel()
    await soon(world.media.left.wait())


async def test_files_are_fetched_at_the_same_time(world: World, gateway: Client) -> None:
    both = asyncio.Barrier(2)

    async def together(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await both.wait()
        writer.write(http(png()))

    world.media.replies["/a.png"] = together
    response = await soon(gateway.chat([image(f"{world.url}/a.png"), image(f"{world.url}/a.png")]))
    assert response.status_code == 200


async def test_the_first_failure_ends_the_other_fetches(world: World, gateway: Client) -> None:
    world.media.replies |= {"/drops": in_drops, "/x": http(b"", "404 Not Found")}
    response: httpx.Response = await soon(gateway.chat([image(f"{world.url}/drops"), image(f"{world.url}/x")]))
    assert error_of(response)["param"] == "messages[0].content[1].image_url.url"


async def test_no_url_reaches_the_log(world: World, gateway: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world.media.replies |= {"/x": http(b"", "404 Not Found"), "/y": b"no HTTP\r\n\r\n"}
    for path in ("/a.png", "/x", "/y"):
        await gateway.chat([image(f"{world.url}{path}?{SECRET}")])
    await gateway.chat([image(f"https://media.test:1/?{SECRET}")])
    assert "POST /v1/chat/completions" in caplog.text
    assert SECRET not in caplog.text
    assert "media.test" not in caplog.text

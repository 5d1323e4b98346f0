"""What the gateway shows to the services, and what it makes of services that do not take it."""

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from autoglm.common.errors import MESSAGE_BYTES, AuthenticationFailed
from autoglm.common.testing import BUNDLE, Context, Control, serving
from autoglm.gateway import app
from autoglm.gateway.media.verify import VerifiedMedia
from autoglm.gateway.upstream import UNLOCKED_BYTES, serialized
from autoglm.v1.modality_pb2 import MODALITY_IMAGE
from autoglm.v1.vision_pb2 import VisionServiceEncodeRequest

from ...waiting import NET_SECONDS, eventually_async, soon
from .conftest import Client, FakeMesh, Serve, running_client
from .mounts import Mount
from .samples import audio_part, image_part, png, wav
from .test_gateway_tls import Authority, chain

FILES = ("serve_ssl_ca_certs", "serve_ssl_certfile", "serve_ssl_keyfile")


async def is_ready(client: Client) -> bool:
    return (await client.http.get("/health/ready")).status_code == 200


@pytest.mark.parametrize("token", ["between-us", "between-us, the-old-one"])
async def test_every_call_to_a_service_carries_the_token_and_no_key(serve: Serve, mesh: FakeMesh, token: str) -> None:
    client = await serve(serve_token=token, api_keys="k1")
    client.http.headers["authorization"] = "Bearer k1"
    assert (await client.chat([image_part(png()), audio_part(wav())])).status_code == 200
    for control in (mesh.vision.encode, mesh.speech.encode, mesh.decoder.generate):
        assert [metadata["authorization"] for metadata in control.metadata] == ["Bearer between-us"]


async def test_without_a_token_nothing_is_shown(client: Client, mesh: FakeMesh) -> None:
    client.http.headers["authorization"] = "Bearer k1"
    assert (await client.chat("hi")).status_code == 200
    assert "authorization" not in mesh.decoder.generate.metadata[0]


async def test_services_that_want_another_token_are_the_operators_trouble(
    serve: Serve, mesh: FakeMesh, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(serve_token="between-us")
    mesh.decoder.generate.error = AuthenticationFailed("not you")
    response = await client.chat("hi")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "upstream_unavailable")
    assert "the decoder service rejected this gateway: AUTOGLM_SERVE_TOKEN differs between them" in caplog.text
    assert "between-us" not in caplog.text


async def test_the_services_may_stand_behind_mutual_tls(mount: Mount) -> None:
    ours, theirs = Authority.new(), Authority.new()
    key, authority = ours.server.private_key_pem.bytes(), ours.ca.cert_pem.bytes()
    credentials = grpc.ssl_server_credentials([(key, chain(ours.server))], authority, require_client_auth=True)
    async with serving(FakeMesh(), credentials) as mesh:
        for shown, trusted, enters in ((ours, ours, True), (theirs, ours, False), (ours, theirs, False)):
            leaf = shown.client
            mount.put(ca=trusted.ca.cert_pem.bytes(), cert=chain(leaf), key=leaf.private_key_pem.bytes())
            files = dict(zip(FILES, map(mount.path, ("ca", "cert", "key")), strict=True))
            async with running_client(mesh, **files) as client:
                response = await client.chat("hi", timeout=NET_SECONDS)
                assert response.status_code == (200 if enters else 503)
                assert await is_ready(client) is enters
        async with running_client(mesh) as client:
            assert (await client.chat("hi")).status_code == 503


def test_a_file_for_the_services_that_is_not_there_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOGLM_SERVE_SSL_CA_CERTS", "no/such.pem")
    assert app.main() == 1
    assert capsys.readouterr().err == "autoglm gateway: no/such.pem cannot be read (No such file or directory)\n"


@pytest.mark.parametrize("where", ["grpc-status-details-bin", "details"])
async def test_one_answer_that_is_too_large_ends_no_other_call(
    client: Client, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    mesh.decoder.generate.hold.clear()
    running = asyncio.create_task(client.chat("hi"))
    await soon(mesh.decoder.generate.entered.wait())

    async def oversized(context: Context) -> None:
        metadata = ((where, bytes(100_000)),) if where.endswith("-bin") else ()
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "" if metadata else "d" * 100_000, metadata)

    monkeypatch.setattr(mesh.vision.encode, "failed", oversized)
    refused = await client.chat([image_part(png())])
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "modality_unavailable")
    mesh.decoder.generate.hold.set()
    assert (await soon(running)).status_code == 200


@pytest.mark.parametrize("text", ["x" * 20_000, "请" * 20_000, "%\r\n" * 20_000])
async def test_an_error_that_quotes_a_client_arrives_typed(shared: Client, text: str) -> None:
    for fields in ({"model": text}, {"tool_choice": text}, {"response_format": {"type": text}}, {"seed": text}):
        answer = await shared.chat("hi", **fields)
        error = answer.json()["error"]
        assert answer.status_code in (400, 404)
        assert len(error["message"].encode()) <= MESSAGE_BYTES
        assert sum(len(name) + len(value) for name, value in answer.headers.raw) < 1000


def refuse(control: Control, times: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a method answer UNAVAILABLE that often, as HAProxy does without a server; return the calls that came."""
    calls: list[int] = []

    async def failed(context: Context) -> bool:
        calls.append(len(calls))
        if len(calls) <= times:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "")
        return False

    monkeypatch.setattr(control, "failed", failed)
    return calls


@pytest.mark.parametrize("times", [1, 2])
async def test_a_call_that_is_refused_for_a_moment_is_sent_again(
    client: Client, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    mesh.decoder.after = 0
    controls = (mesh.vision.encode, mesh.decoder.generate, mesh.decoder.embed)
    calls = [refuse(control, times, monkeypatch) for control in controls]
    picture = image_part(png() + bytes(2_000_000))
    assert (await client.chat([picture])).status_code == 200
    embedded = await client.http.post("/v1/embeddings", json={"model": BUNDLE, "input": "hi"})
    assert embedded.status_code == 200
    assert [len(each) for each in calls] == [times + 1] * 3
    heard = refuse(mesh.speech.encode, times, monkeypatch)
    response = await client.http.post("/v1/audio/transcriptions", files={"file": wav()}, data={"model": BUNDLE})
    assert (response.status_code, len(heard)) == (200, times + 1)


async def test_a_service_that_is_described_again_after_a_moment_stays_up(
    client: Client, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = refuse(mesh.vision.describe, 2, monkeypatch)

    async def polled() -> bool:
        assert (await client.http.get("/health/ready")).json()["dependencies"]["vision"] == "up"
        return len(calls) > 2

    assert (await client.chat([image_part(png())])).status_code == 200
    await eventually_async(polled, "the gateway asks for the description")


async def test_an_answer_that_has_begun_is_not_begun_again(
    client: Client, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = refuse(mesh.decoder.generate, 1, monkeypatch)
    response = await client.chat("hi")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "upstream_unavailable")
    assert len(calls) == 1


async def test_a_call_is_not_sent_again_after_its_deadline(client: Client, mesh: FakeMesh) -> None:
    mesh.vision.encode.code = grpc.StatusCode.UNAVAILABLE
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": [image_part(png())]}]}
    response = await client.http.post("/v1/chat/completions", json=body, headers={"x-request-timeout": "0.1"})
    assert response.status_code in (503, 504)
    assert len(mesh.vision.encode.requests) == 1


async def test_while_a_service_is_down_calls_are_sent_once(client: Client, mesh: FakeMesh) -> None:
    assert (await client.chat("hi")).status_code == 200
    described = (mesh.decoder.describe, mesh.vision.describe, mesh.speech.describe)
    for control in (mesh.serve.listing, *described, mesh.decoder.generate):
        control.code = grpc.StatusCode.UNAVAILABLE
    mesh.decoder.after = 0
    await asyncio.gather(*(client.chat("hi") for _ in range(150)))
    before = len(mesh.decoder.generate.requests)
    assert (await client.chat("hi")).status_code == 503
    assert len(mesh.decoder.generate.requests) == before + 1


@pytest.mark.parametrize("size", [1, 127, 128, 20_000, UNLOCKED_BYTES - 1, UNLOCKED_BYTES, 3 * UNLOCKED_BYTES])
async def test_media_are_written_as_protobuf_writes_them(size: int) -> None:
    media = VerifiedMedia(MODALITY_IMAGE, bytes(size - 1) + b"\xff", b"", "image")
    request = VisionServiceEncodeRequest(timeout=Duration(seconds=7, nanos=1))
    found = VisionServiceEncodeRequest.FromString(await serialized(request, "image", media))
    assert found == VisionServiceEncodeRequest(image=media.data, timeout=request.timeout)

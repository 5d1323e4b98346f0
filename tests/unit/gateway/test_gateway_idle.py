"""An encoder that is scaled to zero: what the gateway says of it, and that its next request starts it."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from autoglm.gateway import health
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER

from ...waiting import eventually_async, soon
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav
from .test_gateway_faults import watch
from .test_gateway_parts import details

LONG = 200.0  # seconds, of which an encoder gets one to start


async def speech_is(client: Client, status: str) -> None:
    async def reported() -> bool:
        ready = await client.http.get("/health/ready")
        dependencies = ready.json()["dependencies"]
        return bool(dependencies["speech"] == status and dependencies["decoder"] == "up")

    await eventually_async(reported, f"speech is {status}")


async def metric(client: Client) -> str:
    text = (await client.http.get("/metrics")).text
    return next(line for line in text.splitlines() if line.startswith('autoglm_upstream_up{application="speech"}'))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders have a small part of a request's time to start, so that the rest is long on any machine."""
    monkeypatch.setattr(health, "START_SHARE", 0.005)


@pytest.fixture
def idle(mesh: FakeMesh) -> FakeMesh:
    """A mesh whose speech service has no replica."""
    mesh.speech.idle = True
    return mesh


async def test_it_is_no_part_that_is_down(idle: FakeMesh, client: Client) -> None:
    await speech_is(client, "idle")
    cards = (await client.http.get("/v1/models")).json()["data"]
    assert {tuple(card["modalities"]) for card in cards} == {("text", "image", "audio")}
    stub = health_pb2_grpc.HealthStub(client.channel)
    await watch(stub, "autoglm.v1.audio", health_pb2.HealthCheckResponse.SERVING)
    assert (await metric(client)).endswith(" 1.0")
    assert (await client.chat([image_part(png())])).status_code == 200
    assert idle.speech.idle


async def test_a_gateway_that_has_never_seen_it_starts_it(idle: FakeMesh, client: Client) -> None:
    await speech_is(client, "idle")
    assert (await client.chat([audio_part(wav())])).status_code == 200
    assert [request.start for request in idle.speech.describe.requests] == [True]
    await speech_is(client, "up")


async def test_a_gateway_that_has_seen_it_sends_the_recording_at_once(mesh: FakeMesh, client: Client) -> None:
    assert (await client.chat([audio_part(wav())])).status_code == 200
    mesh.speech.idle = True
    await speech_is(client, "idle")
    assert (await client.chat([audio_part(wav())])).status_code == 200  # the cache has it
    assert mesh.speech.idle
    assert (await client.chat([audio_part(wav(0.2))])).status_code == 200
    assert not mesh.speech.idle
    assert not mesh.speech.describe.requests


async def test_a_recording_waits_until_it_runs(mesh: FakeMesh, client: Client) -> None:
    await speech_is(client, "up")
    mesh.speech.idle = True
    mesh.speech.encode.hold.clear()
    await speech_is(client, "idle")
    answer = asyncio.create_task(client.chat([audio_part(wav())]))
    await soon(mesh.speech.encode.entered.wait())
    assert (await client.chat("hi")).status_code == 200
    mesh.speech.encode.hold.set()
    assert (await answer).status_code == 200


@pytest.mark.usefixtures("impatient")
async def test_a_request_that_cannot_wait_hears_that_it_starts(idle: FakeMesh, client: Client) -> None:
    idle.speech.encode.hold.clear()
    idle.speech.describe.hold.clear()
    await speech_is(client, "idle")
    chat = {"model": BUNDLE, "messages": [{"role": "user", "content": [audio_part(wav())]}]}
    headers = {"x-request-timeout": str(LONG)}
    for route, body in (
        ("/v1/chat/completions", {"json": chat}),
        ("/v1/audio/transcriptions", {"files": {"file": ("a.wav", wav())}, "data": {"model": BUNDLE}}),
    ):
        refusal = await client.http.post(route, headers=headers, **body)
        assert (refusal.status_code, refusal.headers["retry-after"]) == (503, "10"), refusal.text
        error = refusal.json()["error"]
        assert error["code"] == "modality_unavailable"
        assert error["message"].startswith("the speech service is starting")


@pytest.mark.usefixtures("impatient")
async def test_a_client_over_grpc_hears_it_before_its_deadline(mesh: FakeMesh, client: Client) -> None:
    await speech_is(client, "up")
    mesh.speech.idle = True
    mesh.speech.encode.hold.clear()
    await speech_is(client, "idle")
    part = ContentPart(audio=Media(data=wav()))
    request = CompleteRequest(chat=ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=[part])]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ChatServiceStub(client.channel).Complete(request, timeout=LONG)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert details(caught.value) == ("MODALITY_UNAVAILABLE", True)


async def test_it_is_asked_again_after_the_decoder_was_replaced(
    serve: Serve, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a whole bundle were replaced while it was idle: what the cache has was made by the old ones."""
    client = await serve()
    recording: list[Any] = [audio_part(wav())]
    assert (await client.chat(recording)).status_code == 200
    mesh.speech.idle, mesh.speech.revision = True, "r2"
    await speech_is(client, "idle")
    monkeypatch.setattr(type(mesh.decoder), "revision", "d2")

    async def asked_again() -> bool:
        assert (await client.chat(recording)).status_code == 200
        (part,) = mesh.decoder.generate.requests[-1].messages[0].parts
        return bool(part.media.encoder_revision == "r2")

    await eventually_async(asked_again, "the new encoder's embedding is used")

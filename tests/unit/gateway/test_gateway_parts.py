"""A mesh that was started without one of its parts, and parts that are added and taken away."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from autoglm.common.bundle import ALIASES
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER
from autoglm.v1.modality_pb2 import MODALITY_IMAGE, MODALITY_TEXT
from autoglm.v1.model_pb2 import ListModelsRequest
from autoglm.v1.model_pb2_grpc import ModelServiceStub
from autoglm.v1.transcription_pb2 import TranscribeRequest
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceStub

from ...waiting import soon
from .conftest import Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav
from .test_gateway_faults import watch

SEEN = health_pb2.HealthCheckResponse
NO_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,bm8gaW1hZ2U="}}


@pytest.fixture
def deaf(mesh: FakeMesh) -> FakeMesh:
    """A mesh without its speech part."""
    mesh.serve.applications = ["vision", "decoder"]
    return mesh


def chat(*parts: ContentPart) -> ChatRequest:
    return ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=parts)])


IMAGE, AUDIO = ContentPart(image=Media(data=png())), ContentPart(audio=Media(data=wav()))


async def test_it_tells_what_is_there(deaf: FakeMesh, client: Client) -> None:
    cards = (await client.http.get("/v1/models")).json()["data"]
    assert [card["modalities"] for card in cards] == [["text", "image"]] * (1 + len(ALIASES))
    stub = ModelServiceStub(client.channel)
    models = (await stub.ListModels(ListModelsRequest())).models
    assert [list(card.modalities) for card in models] == [[MODALITY_TEXT, MODALITY_IMAGE]] * (1 + len(ALIASES))
    ready = await client.http.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["dependencies"] == {"decoder": "up", "vision": "up", "redis": "off"}


async def test_its_health_knows_no_name_for_what_is_not_there(deaf: FakeMesh, client: Client) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    for name in ("", "autoglm.v1.text", "autoglm.v1.image"):
        await watch(stub, name, SEEN.SERVING)
    await watch(stub, "autoglm.v1.audio", SEEN.SERVICE_UNKNOWN)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="autoglm.v1.audio"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("stream", [True, False])
async def test_what_needs_the_part_is_refused_before_any_work(deaf: FakeMesh, client: Client, stream: bool) -> None:
    response = await client.chat([image_part(png()), NO_IMAGE, audio_part(wav())], stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "modality_unavailable")
    assert (
        error["message"]
        == "this server runs without its speech part and does not accept audio input: leave the audio out"
    )
    assert "retry-after" not in response.headers
    assert deaf.calls == 0
    assert (await client.chat("hi")).status_code == 200
    assert (await client.chat([image_part(png())])).status_code == 200


async def test_what_needs_the_part_is_refused_over_grpc(deaf: FakeMesh, client: Client) -> None:
    talk = ChatServiceStub(client.channel)
    heard = TranscriptionServiceStub(client.channel)
    for call in (
        talk.Complete(CompleteRequest(chat=chat(IMAGE, AUDIO))),
        talk.StreamComplete(StreamCompleteRequest(chat=chat(AUDIO))).read(),
        heard.Transcribe(TranscribeRequest(audio=Media(data=b"no sound"))),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "without its speech part" in (caught.value.details() or "")
        assert details(caught.value) == ("MODALITY_UNAVAILABLE", False)
    assert deaf.calls == 0
    assert (await talk.Complete(CompleteRequest(chat=chat(IMAGE)))).choices[0].text


async def test_a_part_that_is_down_is_another_thing(client: Client, mesh: FakeMesh) -> None:
    mesh.speech.describe.code = grpc.StatusCode.UNAVAILABLE
    stub = health_pb2_grpc.HealthStub(client.channel)
    await watch(stub, "autoglm.v1.audio", SEEN.NOT_SERVING)
    assert (await client.http.get("/health/ready")).json()["dependencies"]["speech"] == "down"
    response = await client.chat([NO_IMAGE, audio_part(wav())])
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"]["code"] == "modality_unavailable"
    assert "not available now" in response.json()["error"]["message"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ChatServiceStub(client.channel).Complete(CompleteRequest(chat=chat(AUDIO)))
    assert details(caught.value) == ("MODALITY_UNAVAILABLE", True)


async def test_a_part_that_is_taken_away_and_added_again(client: Client, mesh: FakeMesh) -> None:
    assert (await client.chat([image_part(png())])).status_code == 200
    stub = health_pb2_grpc.HealthStub(client.channel)
    watching = stub.Watch(health_pb2.HealthCheckRequest(service="autoglm.v1.image"))
    for applications, status, answer in (
        (["vision", "speech", "decoder"], SEEN.SERVING, 200),
        (["speech", "decoder"], SEEN.SERVICE_UNKNOWN, 503),
        (["vision", "speech", "decoder"], SEEN.SERVING, 200),
    ):
        mesh.serve.applications = applications
        assert (await soon(watching.read())).status == status
        assert (await client.chat([image_part(png())])).status_code == answer


async def test_a_serve_without_the_decoder_is_not_believed(serve: Serve, mesh: FakeMesh) -> None:
    """It starts or stops, and its list is not yet, or no longer, that of its config."""
    mesh.serve.applications = []
    client = await serve()
    assert (await client.chat([image_part(png()), audio_part(wav())])).status_code == 200


async def test_a_serve_that_does_not_tell_is_taken_to_have_all(serve: Serve, mesh: FakeMesh) -> None:
    mesh.serve.listing.code = grpc.StatusCode.UNIMPLEMENTED
    client = await serve()
    assert (await client.chat([image_part(png()), audio_part(wav())])).status_code == 200


def details(error: grpc.aio.AioRpcError) -> tuple[str, bool]:
    """Return the reason of `error`, and whether it tells when to try again."""
    status: Any = rpc_status.from_call(error)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason, any(detail.Unpack(retry) for detail in status.details)

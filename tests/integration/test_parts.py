"""A mesh of its own that was started without speech: `autoglm serve --modalities vision`."""

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from autoglm.common.errors import MeshError, ModalityUnavailable, from_rpc_error
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import ROLE_USER
from autoglm.v1.modality_pb2 import MODALITY_IMAGE, MODALITY_TEXT
from autoglm.v1.model_pb2 import ListModelsRequest
from autoglm.v1.model_pb2_grpc import ModelServiceStub
from autoglm.v1.transcription_pb2 import TranscribeRequest
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceStub

from ..asking import Asker
from ..cases import ScreenCase, screen_cases
from ..mesh import Mesh, running_mesh
from ..waiting import NET_SECONDS


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """In place of the shared mesh."""
    with running_mesh(tmp_path_factory.mktemp("deaf") / "serve.log", "--modalities", "vision") as running:
        yield running


@pytest.fixture(scope="module")
def case() -> ScreenCase:
    return screen_cases("back", "app", 1, seed=51)[0]


def test_only_its_parts_run(mesh: Mesh, ask: Asker, channel: grpc.Channel) -> None:
    assert mesh.running("ray::ServeReplica:vision:")
    assert mesh.running("ray::ServeReplica:speech:") is None
    (line,) = [line for line in mesh.lines() if "Starting services: " in line]
    assert "Starting services: vision, decoder at " in line
    assert {tuple(card["modalities"]) for card in ask.http.get("/v1/models").json()["data"]} == {("text", "image")}
    models = ModelServiceStub(channel).ListModels(ListModelsRequest()).models
    assert {tuple(card.modalities) for card in models} == {(MODALITY_TEXT, MODALITY_IMAGE)}


def test_its_health_is_whole(ask: Asker, channel: grpc.Channel) -> None:
    ready = ask.http.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["dependencies"] == {"decoder": "up", "vision": "up", "redis": "up"}
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "autoglm.v1.text", "autoglm.v1.image"):
        status = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="autoglm.v1.audio"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_text_and_screens_are_answered(ask: Asker, channel: grpc.Channel, case: ScreenCase) -> None:
    assert "AutoGLM-Phone" in ask("你是谁?")
    body = ask.post(case.image, case.words).json()
    assert body["choices"][0]["message"]["content"]
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    image = base64.b64decode(case.image["image_url"]["url"].partition(",")[2])
    chat = ask_for(ContentPart(image=Media(data=image)), ContentPart(text=case.words))
    assert ChatServiceStub(channel).Complete(chat).choices[0].text


def test_speech_is_refused_for_good(ask: Asker, channel: grpc.Channel, case: ScreenCase) -> None:
    response = ask.post(case.image, case.audio)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "modality_unavailable")
    assert "without its speech part" in response.json()["error"]["message"]
    assert "retry-after" not in response.headers
    audio = Media(data=base64.b64decode(case.audio["input_audio"]["data"]))
    talk = ChatServiceStub(channel)
    heard = TranscriptionServiceStub(channel)
    for error in (
        failure(talk.Complete, ask_for(ContentPart(audio=audio))),
        failure(heard.Transcribe, TranscribeRequest(audio=audio)),
    ):
        assert type(error) is ModalityUnavailable
        assert "without its speech part" in error.message
        assert error.retry_after is None


def ask_for(*parts: ContentPart) -> CompleteRequest:
    return CompleteRequest(chat=ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=parts)]))


def failure(method: Any, request: Any) -> MeshError:
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=NET_SECONDS)
    return from_rpc_error(caught.value)

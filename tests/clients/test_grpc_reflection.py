"""A gRPC client that brings no generated code: it learns the contract from the server's reflection."""

import base64
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from ..asking import Asker
from ..cases import screen_cases
from ..waiting import NET_SECONDS


class Reflected:
    """The services of a channel, as reflection describes them."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self.database)

    def message(self, name: str, **fields: Any) -> Any:
        """Return a message by its full name."""
        return GetMessageClass(self._pool.FindMessageTypeByName(name))(**fields)

    def call(self, service: str, method: str, **fields: Any) -> Any:
        """Call a method; returns its response, or the list of them when it streams."""
        found = self._pool.FindServiceByName(service).FindMethodByName(method)
        answer = GetMessageClass(found.output_type)
        kind: Any = self._channel.unary_stream if found.server_streaming else self._channel.unary_unary
        request = GetMessageClass(found.input_type)(**fields)
        made: Any = kind(f"/{service}/{method}", lambda sent: sent.SerializeToString(), answer.FromString)(
            request, timeout=NET_SECONDS
        )
        return list(made) if found.server_streaming else made


@pytest.fixture
def server(channel: grpc.Channel) -> Reflected:
    return Reflected(channel)


def test_reflection_names_the_public_services(server: Reflected) -> None:
    services = set(server.database.get_services())
    public = {"ChatService", "EmbeddingService", "ModelService", "TranscriptionService"}
    assert {f"autoglm.v1.{name}" for name in public} <= services
    assert "grpc.health.v1.Health" in services
    assert not [name for name in services if "Decoder" in name or "Vision" in name]


@pytest.mark.parametrize("name", ["", "autoglm.v1.text", "autoglm.v1.image", "autoglm.v1.audio"])
def test_health_knows_each_modality(channel: grpc.Channel, name: str) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=NET_SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_same_seed_gives_the_same_answer_through_both_doors(ask: Asker, server: Reflected) -> None:
    case = screen_cases("open", "home", 1, seed=21)[0]
    image = base64.b64decode(case.image["image_url"]["url"].partition(",")[2])
    for seed in range(3):
        over_http = ask(case.image, case.words, temperature=1.5, seed=seed, max_tokens=60)
        message = {"role": "ROLE_USER", "parts": [{"image": {"data": image}}, {"text": case.words}]}
        chat = {"messages": [message], "sampling": {"temperature": 1.5, "seed": seed, "max_tokens": 60}}
        whole = server.call("autoglm.v1.ChatService", "Complete", chat=chat)
        assert whole.choices[0].text == over_http
        steps = server.call("autoglm.v1.ChatService", "StreamComplete", chat=chat)
        assert "".join(step.delta.text for step in steps) == over_http
        assert steps[-1].HasField("summary")


def test_different_seeds_give_different_answers(ask: Asker) -> None:
    assert len({ask("Type nearest station", temperature=2, seed=seed, max_tokens=40) for seed in range(4)}) > 1


def test_models_are_listed(server: Reflected) -> None:
    cards = server.call("autoglm.v1.ModelService", "ListModels").models
    assert "autoglm-phone-9b" in [card.id for card in cards]


def test_texts_and_a_screen_become_vectors(server: Reflected) -> None:
    case = screen_cases("open", "home", 1, seed=23)[0]
    image = base64.b64decode(case.image["image_url"]["url"].partition(",")[2])
    parts = [{"text": "打开相机"}, {"image": {"data": image}}, {"text": "打开相机"}]
    found = server.call("autoglm.v1.EmbeddingService", "Embed", input=parts)
    first, screen, again = (list(vector.values) for vector in found.vectors)
    assert first == again != screen
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-4 for vector in (first, screen))


def test_speech_is_transcribed(server: Reflected) -> None:
    case = screen_cases("open", "home", 1, seed=22)[0]
    audio = base64.b64decode(case.audio["input_audio"]["data"])
    said = server.call("autoglm.v1.TranscriptionService", "Transcribe", audio={"data": audio})
    assert said.text
    assert said.duration.ToMilliseconds() > 300

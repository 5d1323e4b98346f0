"""What the clients send, what they make of the answers, and how they fail and ask again."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from autoglm.client import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MediaUnknown,
    MeshError,
    Message,
    ModalityUnavailable,
    Model,
    NotFound,
    Piece,
    RateLimited,
    RequestTooLarge,
    Sampling,
    Transcript,
    TranscriptSegment,
    TranscriptWord,
    UpstreamUnavailable,
)
from autoglm.client.requests import MAX_REMEMBERED, Sent
from autoglm.v1.chat_pb2 import Media, Summary
from autoglm.v1.generation_pb2 import (
    CACHE_OUTCOME_LOCAL,
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_USER,
    Gate,
    MediaStage,
    SamplingParams,
    Usage,
)
from autoglm.v1.modality_pb2 import MODALITY_AUDIO

from ...waiting import NET_SECONDS
from .conftest import Connect, Failure, FakeMesh, serving

EVERY_SAMPLING: Sampling = {
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 3,
    "min_p": 0.125,
    "max_tokens": 4,
    "max_thinking_tokens": 5,
    "stop": "END",
    "seed": 6,
    "presence_penalty": 1.5,
    "frequency_penalty": -1.5,
    "repetition_penalty": 2.0,
    "top_logprobs": 7,
    "logit_bias": {8: -1.0},
    "include_stop_str_in_output": True,
    "json_schema_strict": True,
}


@pytest.mark.parametrize(("seed", "sent"), [(6, 6), (0, 0), (-1, 2**64 - 1), (-(2**63), 2**63)])
def test_a_seed_may_be_negative(mesh: FakeMesh, connect: Connect, seed: int, sent: int) -> None:
    connect(mesh.address).chat("hi", seed=seed)
    assert mesh.requests[-1].chat.sampling.seed == sent


def test_a_whole_answer(mesh: FakeMesh, connect: Connect) -> None:
    media = MediaStage(modality=MODALITY_AUDIO, cache=CACHE_OUTCOME_LOCAL)
    media.encode.FromMilliseconds(20)
    gate = Gate(modality=MODALITY_AUDIO, mean=0.5)
    mesh.summary = Summary(usage=Usage(prompt_tokens=9, image_tokens=2), gates=[gate])
    mesh.summary.stages.media.append(media)
    mesh.summary.stages.prefill.FromMilliseconds(1500)
    answer = connect(mesh.address).chat("hi")
    assert (answer.text, answer.reasoning, answer.finish_reason, answer.model) == ("你好", "hm", "stop", "nano")
    assert (answer.usage.prompt_tokens, answer.usage.image_tokens, answer.usage.completion_tokens) == (9, 2, 0)
    (stage,) = answer.stages.media
    assert (stage.modality, stage.cache, stage.encode) == ("audio", "local", 0.02)
    assert (answer.stages.prefill, answer.stages.decode) == (1.5, 0.0)
    assert answer.gates == {"audio": 0.5}
    assert answer.request_id == mesh.metadata[0]["x-request-id"]


def test_a_stream_says_what_the_whole_answer_says(mesh: FakeMesh, connect: Connect) -> None:
    client = connect(mesh.address)
    stream = client.stream("hi")
    with pytest.raises(RuntimeError, match="read to its end"):
        _ = stream.answer
    assert list(stream) == [Piece(reasoning="hm"), Piece("你"), Piece("好")]
    whole = client.chat("hi")
    for name in ("text", "reasoning", "finish_reason", "usage", "stages", "gates", "model"):
        assert getattr(stream.answer, name) == getattr(whole, name)
    assert stream.answer.request_id == mesh.metadata[0]["x-request-id"]


def test_models_and_transcripts(mesh: FakeMesh, connect: Connect, tmp_path: Path) -> None:
    client = connect(mesh.address)
    assert client.models() == [Model("nano", "nano", ("text", "image"), 2048)]
    (tmp_path / "said.wav").write_bytes(b"RIFF")
    segment = TranscriptSegment("打开设置", 0, 0, [TranscriptWord("打", 0, 1)], -0.5, 0.25)
    said = Transcript("打开设置", 1.5, [segment])
    assert client.transcribe(tmp_path / "said.wav") == client.transcribe(b"RIFF") == said
    assert [request.audio.data for request in mesh.requests[1:]] == [b"RIFF", b"RIFF"]


def test_vectors_come_in_the_order_of_texts_images_and_recordings(
    mesh: FakeMesh, connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "screen.png").write_bytes(b"png")
    client = connect(mesh.address, api_key="k1")
    found = client.embed(["a", "b"], audio=[b"wav"], images=[tmp_path / "screen.png"], model="nano", dimensions=2)
    assert found.vectors == ((0.0, 0.5), (1.0, 0.5), (2.0, 0.5), (3.0, 0.5))
    assert (found.prompt_tokens, found.model) == (7, "nano")
    assert found.request_id == mesh.metadata[0]["x-request-id"]
    (request,) = mesh.requests
    first, second, image, audio = request.input
    assert (first.text, second.text, image.image.data, audio.audio.data) == ("a", "b", b"png", b"wav")
    assert (request.model, request.dimensions) == ("nano", 2)
    client.embed("alone")
    assert [part.text for part in mesh.requests[1].input] == ["alone"]
    assert not mesh.requests[1].HasField("dimensions")


def test_media_is_embedded_by_its_hash_while_the_mesh_knows_it(mesh: FakeMesh, connect: Connect) -> None:
    client = connect(mesh.address, max_retries=0)
    client.chat("hi", images=[b"one"])
    mesh.failures.append(MediaUnknown("gone", param="input[0].image.sha256"))
    assert client.embed(images=[b"one"]).vectors == ((0.0, 0.5),)
    assert [source(request.input[0].image) for request in mesh.requests[1:]] == ["sha256", "data"]


def test_a_conversation_goes_over_as_it_is(mesh: FakeMesh, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "screen.png").write_bytes(b"png")
    messages = [
        Message("system", "be brief"),
        Message("user", "what is here?", images=[tmp_path / "screen.png"], audio=[b"wav"]),
        Message("assistant", "a game"),
        Message("user", "open it"),
    ]
    client = connect(mesh.address, api_key="k1")
    client.chat(messages, model="nano", enable_thinking=False, return_reasoning=True)
    chat = mesh.requests[0].chat
    assert [message.role for message in chat.messages] == [ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_USER]
    image, audio, text = chat.messages[1].parts
    assert (image.image.data, audio.audio.data, text.text) == (b"png", b"wav", "what is here?")
    assert (chat.model, chat.enable_thinking, chat.return_reasoning) == ("nano", False, True)
    assert not chat.sampling.ListFields()
    assert mesh.metadata[0]["authorization"] == "Bearer k1"


def test_every_sampling_parameter_goes_over(mesh: FakeMesh, connect: Connect) -> None:
    assert Sampling.__annotations__.keys() == set(SamplingParams.DESCRIPTOR.fields_by_name)
    client = connect(mesh.address)
    client.chat("hi", **EVERY_SAMPLING)
    sampling = mesh.requests[0].chat.sampling
    assert (list(sampling.stop), dict(sampling.logit_bias)) == (["END"], {8: -1.0})
    every: Mapping[str, object] = EVERY_SAMPLING
    for name in every.keys() - {"stop", "logit_bias"}:
        assert getattr(sampling, name) == every[name]
    shapes: list[Sampling] = [
        {"json_schema": {"type": "object"}},
        {"json_schema": '{"type": "object"}'},
        {"regex": "a+"},
        {"grammar": "start: /a/"},
        {"choice": ["yes", "no"]},
    ]
    for shape in shapes:
        client.chat("hi", **shape)
    asked = [request.chat.sampling for request in mesh.requests[1:]]
    assert [json.loads(each.json_schema) for each in asked[:2]] == [{"type": "object"}] * 2
    assert (asked[2].regex, asked[3].grammar, list(asked[4].choice.texts)) == ("a+", "start: /a/", ["yes", "no"])


@pytest.mark.parametrize(
    "options", [{"temprature": 1}, {"images": [b"x"], "messages": [Message("user", "hi")]}, {"images": [Path("none")]}]
)
def test_what_cannot_be_sent_is_not(mesh: FakeMesh, connect: Connect, options: Any) -> None:
    with pytest.raises((ValueError, OSError)):
        connect(mesh.address).chat(**{"messages": "hi", **options})
    assert mesh.requests == []


@pytest.mark.parametrize("failure", [RateLimited("full", retry_after=0.06), grpc.StatusCode.UNAVAILABLE])
def test_it_asks_again_when_that_can_help(mesh: FakeMesh, connect: Connect, quick: None, failure: Failure) -> None:
    client = connect(mesh.address)
    for ask in (client.models, lambda: client.chat("hi"), lambda: list(client.stream("hi")), lambda: client.embed("a")):
        mesh.failures.append(failure)
        mesh.metadata.clear()
        ask()
        first, second = mesh.metadata
        assert first["x-request-id"] == second["x-request-id"]


@pytest.mark.parametrize(
    ("failure", "kind", "param"),
    [
        (ModalityUnavailable("this server runs without speech"), ModalityUnavailable, None),
        (InvalidRequest("too warm", param="chat.sampling.temperature"), InvalidRequest, "chat.sampling.temperature"),
        (NotFound("no such model", param="chat.model"), NotFound, "chat.model"),
        (InternalError("a fault"), InternalError, None),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, RequestTooLarge, None),
        (grpc.StatusCode.UNIMPLEMENTED, InternalError, None),
    ],
)
def test_it_does_not_ask_again_in_vain(
    mesh: FakeMesh, connect: Connect, failure: Failure, kind: type[MeshError], param: str | None
) -> None:
    client = connect(mesh.address)
    for ask in (client.models, lambda: client.chat("hi"), lambda: list(client.stream("hi"))):
        mesh.failures.append(failure)
        mesh.metadata.clear()
        with pytest.raises(kind) as caught:
            ask()
        (metadata,) = mesh.metadata
        assert (type(caught.value), caught.value.param) == (kind, param)
        assert caught.value.request_id == metadata["x-request-id"]


def test_it_asks_three_times_at_most(mesh: FakeMesh, connect: Connect) -> None:
    mesh.failures.extend([RateLimited("full", retry_after=0.05)] * 3)
    with pytest.raises(RateLimited, match="full"):
        connect(mesh.address).chat("hi")
    first, second, third = mesh.arrived
    assert second - first > 0.05
    assert third - second > 0.1
    mesh.failures.append(RateLimited("full", retry_after=0.01))
    with pytest.raises(RateLimited):
        connect(mesh.address, max_retries=0).chat("hi")
    assert len(mesh.requests) == 4


def test_the_deadline_is_one_for_all_tries(mesh: FakeMesh, connect: Connect) -> None:
    mesh.failures.append(RateLimited("full", retry_after=0.3))
    connect(mesh.address, timeout=9).chat("hi")  # from 10 on gRPC rounds
    first, second = mesh.time_remaining
    assert second < first - 0.2


def test_it_does_not_wait_beyond_its_deadline(mesh: FakeMesh, connect: Connect) -> None:
    wait = 2 * NET_SECONDS
    mesh.failures.append(UpstreamUnavailable("the decoder restarts", retry_after=wait))
    with pytest.raises(UpstreamUnavailable) as caught:
        connect(mesh.address, timeout=NET_SECONDS).chat("hi")
    assert (caught.value.retry_after, len(mesh.requests)) == (wait, 1)


def test_the_deadline_ends_a_stream(mesh: FakeMesh, connect: Connect) -> None:
    mesh.hold.clear()
    client, timeout = connect(mesh.address), 0.3
    while not mesh.requests:  # until a deadline leaves the time to get there
        with pytest.raises(DeadlineExceeded):
            list(client.stream("hi", timeout=timeout))
        timeout *= 2
    assert len(mesh.requests) == 1


def test_a_call_has_the_clients_deadline_or_its_own(mesh: FakeMesh, connect: Connect) -> None:
    client = connect(mesh.address, timeout=3000)
    client.chat("hi")
    client.chat("hi", timeout=1000)
    list(client.stream("hi", timeout=1000))
    client.transcribe(b"RIFF", timeout=1000)
    client.embed("a", timeout=1000)
    client.models(timeout=1000)
    first, *others = mesh.time_remaining
    assert 2000 < first < 3100  # gRPC rounds up what is long
    assert all(0 < left < 1100 for left in others)


def test_a_stream_that_has_begun_is_not_begun_again(mesh: FakeMesh, connect: Connect) -> None:
    mesh.failures.append(UpstreamUnavailable("the engine stopped", retry_after=0.01))
    mesh.before = 2
    stream = connect(mesh.address).stream("hi")
    assert [next(stream), next(stream)] == [Piece(reasoning="hm"), Piece("你")]
    with pytest.raises(UpstreamUnavailable, match="the engine stopped"):
        next(stream)
    assert len(mesh.requests) == 1


def test_closing_a_stream_cancels_the_call(mesh: FakeMesh, connect: Connect) -> None:
    mesh.hold.clear()
    stream = connect(mesh.address).stream("hi")
    assert next(stream) == Piece(reasoning="hm")
    assert not mesh.ended.is_set()
    stream.close()
    assert mesh.ended.wait(NET_SECONDS)
    with pytest.raises(StopIteration):
        next(stream)


def test_media_goes_over_once(mesh: FakeMesh, connect: Connect) -> None:
    client = connect(mesh.address)
    client.chat("hi", images=[b"one"])
    client.chat("hi", images=[b"one", b"two"])
    assert [source(part.image) for part in mesh.requests[1].chat.messages[0].parts[:2]] == ["sha256", "data"]
    assert mesh.requests[1].chat.messages[0].parts[0].image.sha256 == hashlib.sha256(b"one").digest()


def test_media_that_the_mesh_forgot_goes_over_again(mesh: FakeMesh, connect: Connect) -> None:
    client = connect(mesh.address, max_retries=0)
    client.chat("hi", images=[b"one"])
    mesh.failures.append(MediaUnknown("gone", param="chat.messages[0].parts[0].image.sha256"))
    assert client.chat("hi", images=[b"one"]).text == "你好"
    mesh.failures.append(MediaUnknown("gone", param="chat.messages[0].parts[0].image.sha256"))
    assert [piece.text for piece in client.stream("hi", images=[b"one"])] == ["", "你", "好"]
    sent = [source(request.chat.messages[0].parts[0].image) for request in mesh.requests]
    assert sent == ["data", "sha256", "data", "sha256", "data"]


def test_what_was_sent_long_ago_is_forgotten() -> None:
    sent = Sent()
    for number in range(MAX_REMEMBERED + 1):
        sent.media(bytes([number % 256, number // 256]), whole=False)
        assert source(sent.media(b"\0\0", whole=False)) == "sha256"  # the most recent one stays
    assert source(sent.media(b"\1\0", whole=False)) == "data"


def test_a_request_beyond_the_servers_limit(connect: Connect) -> None:
    with serving(FakeMesh(), max_receive_message_length=1000) as mesh, pytest.raises(RequestTooLarge, match="larger"):
        connect(mesh.address).chat("hi", images=[bytes(2000)])


def test_nothing_listens(connect: Connect, quick: None) -> None:
    with pytest.raises(UpstreamUnavailable, match="cannot be reached") as caught:
        connect("127.0.0.1:1").chat("hi")
    assert caught.value.request_id


def test_it_imports_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import autoglm.client; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    packages = {name.partition(".")[0] for name in loaded if "cython" not in name} - sys.stdlib_module_names
    taken_in_by_grpc = {"grpc_health", "grpc_reflection", "grpc_tools", "typing_extensions"}  # where they are installed
    assert packages - taken_in_by_grpc == {"autoglm", "google", "grpc", "grpc_status"}
    assert {".".join(name.split(".")[:2]) for name in loaded if name.startswith("autoglm.")} == {
        "autoglm.client",
        "autoglm.common",
        "autoglm.v1",
    }


def source(media: Media) -> str:
    """Return how a medium went over."""
    return str(media.WhichOneof("source"))

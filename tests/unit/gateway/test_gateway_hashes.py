"""Media that a client names by its hash, because it has sent the bytes before."""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import redis.asyncio
import yaml
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from autoglm.client import AsyncClient
from autoglm.gateway.admission.key_file import digest_of
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, CompleteResponse, ContentPart, Media
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import (
    CACHE_OUTCOME_LOCAL,
    CACHE_OUTCOME_MISS,
    CACHE_OUTCOME_REDIS,
    ROLE_USER,
    CacheOutcome,
)
from autoglm.v1.transcription_pb2 import TranscribeRequest
from autoglm.v1.transcription_pb2_grpc import TranscriptionServiceStub

from ...waiting import eventually_async
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav
from .test_gateway_cache import outcomes, stored

PICTURE = png(300, 200, "navy")
WHOLE = ContentPart(image=Media(data=PICTURE))
HASH = ContentPart(image=Media(sha256=hashlib.sha256(PICTURE).digest()))
DIGEST = hashlib.sha256(PICTURE).hexdigest()
FIELD = "chat.messages[0].parts[0].image.sha256"


def question(part: ContentPart) -> CompleteRequest:
    return CompleteRequest(chat=ChatRequest(messages=[ChatMessage(role=ROLE_USER, parts=[part])]))


async def ask(client: Client, part: ContentPart, key: str = "EMPTY") -> CompleteResponse:
    stub = ChatServiceStub(client.channel)
    metadata = (("authorization", f"Bearer {key}"),)
    answer: CompleteResponse = await stub.Complete(question(part), metadata=metadata)
    return answer


def outcome(answer: CompleteResponse) -> CacheOutcome.ValueType:
    (stage,) = answer.summary.stages.media
    return stage.cache


async def refused(asking: Any) -> tuple[grpc.StatusCode, str, str]:
    """Return code, reason and field of the failure of `asking`."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asking
    status = rpc_status.from_call(caught.value)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    return caught.value.code(), info.reason, bad.field_violations[0].field


async def test_a_hash_stands_for_what_came_before(
    client: Client, mesh: FakeMesh, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "autoglm.gateway.access"):
        first, again = await ask(client, WHOLE), await ask(client, HASH)
    assert [outcome(first), outcome(again)] == [CACHE_OUTCOME_MISS, CACHE_OUTCOME_LOCAL]
    assert again.choices == first.choices
    before, after = mesh.decoder.generate.requests
    assert before.messages == after.messages
    assert len(mesh.vision.encode.requests) == 1
    digest = hashlib.sha256(PICTURE).hexdigest()[:12]
    whole, named = (record.getMessage().partition("in=")[2] for record in caplog.records)
    assert whole == f"{question(WHOLE).ByteSize()} media=image:{digest}:{len(PICTURE)}"
    assert named == f"{question(HASH).ByteSize()} media=image:{digest}:0"


async def test_over_grpc_a_url_names_what_came_before(client: Client, mesh: FakeMesh) -> None:
    named = ContentPart(image=Media(url=f"sha256:{DIGEST}"))
    field = FIELD.replace("sha256", "url")
    assert await refused(ask(client, named)) == (grpc.StatusCode.NOT_FOUND, "MEDIA_UNKNOWN", field)
    assert mesh.calls == 0
    first, again = await ask(client, WHOLE), await ask(client, named)
    assert [outcome(first), outcome(again)] == [CACHE_OUTCOME_MISS, CACHE_OUTCOME_LOCAL]
    assert again.choices == first.choices
    short = ContentPart(image=Media(url=f"sha256:{DIGEST[1:]}"))
    assert await refused(ask(client, short)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST_ERROR", field)


async def test_a_hash_is_looked_up_in_redis_too(serve: Serve, mesh: FakeMesh, valkey: str) -> None:
    one, two = await serve(redis_url=valkey), await serve(redis_url=valkey)
    await ask(one, WHOLE)
    async with redis.asyncio.Redis.from_url(valkey) as store:
        await stored(store)
    assert outcome(await ask(two, HASH)) == CACHE_OUTCOME_REDIS
    assert len(mesh.vision.encode.requests) == 1


async def test_a_hash_of_nothing_known(client: Client, mesh: FakeMesh) -> None:
    assert await refused(ask(client, HASH)) == (grpc.StatusCode.NOT_FOUND, "MEDIA_UNKNOWN", FIELD)
    assert mesh.calls == 0


async def test_a_hash_is_of_a_modality_and_of_an_encoder(client: Client, mesh: FakeMesh) -> None:
    await ask(client, WHOLE)
    recording = ContentPart(audio=Media(sha256=HASH.image.sha256))
    assert (await refused(ask(client, recording)))[1] == "MEDIA_UNKNOWN"
    mesh.vision.revision = "r2"

    async def forgotten() -> bool:
        try:
            return not await ask(client, HASH)
        except grpc.aio.AioRpcError:
            return True

    await eventually_async(forgotten, "the hash is forgotten")
    assert (await refused(ask(client, HASH)))[1] == "MEDIA_UNKNOWN"


async def test_tenants_know_only_their_own_hashes(serve: Serve, mesh: FakeMesh, valkey: str) -> None:
    client = await serve(redis_url=valkey, api_keys="k1,k2")
    await ask(client, WHOLE, "k1")
    async with redis.asyncio.Redis.from_url(valkey) as store:
        await stored(store)
    assert await refused(ask(client, HASH, "k2")) == (grpc.StatusCode.NOT_FOUND, "MEDIA_UNKNOWN", FIELD)
    assert outcome(await ask(client, HASH, "k1")) == CACHE_OUTCOME_LOCAL


@pytest.mark.parametrize("sent", [b"", b"x" * 31, b"x" * 33])
async def test_what_is_no_hash(shared: Client, sent: bytes) -> None:
    part = ContentPart(image=Media(sha256=sent))
    assert await refused(ask(shared, part)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST_ERROR",
        FIELD,
    )


async def test_transcripts_are_not_kept(shared: Client) -> None:
    stub = TranscriptionServiceStub(shared.channel)
    recording = Media(sha256=hashlib.sha256(wav()).digest())
    asking = stub.Transcribe(TranscribeRequest(audio=recording))
    assert await refused(asking) == (grpc.StatusCode.NOT_FOUND, "MEDIA_UNKNOWN", "audio.sha256")


async def test_a_gateway_that_keeps_nothing_gets_the_bytes_each_time(serve: Serve, mesh: FakeMesh) -> None:
    gateway = await serve(cache_bytes=0)
    async with AsyncClient(f"127.0.0.1:{gateway.grpc_port}") as client:
        answers = [await client.chat("hi", images=[PICTURE], seed=7) for _ in range(2)]
    assert answers[0].text == answers[1].text
    assert len(mesh.vision.encode.requests) == 2


def two_a_minute(folder: Path) -> str:
    file = folder / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": [{"name": "two", "keys": [digest_of("t1")], "requests_per_minute": 2}]}))
    return str(file)


async def codes(client: Client, *parts: ContentPart) -> list[grpc.StatusCode]:
    """Return how calls of the tenant end, one after the other."""
    stub, metadata, found = ChatServiceStub(client.channel), (("authorization", "Bearer t1"),), []
    for part in parts:
        call = stub.Complete(question(part), metadata=metadata)
        found.append(await call.code())
    return found


OK, UNKNOWN, FULL = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED
TEXT = ContentPart(text="hi")


@pytest.mark.parametrize("redis_url", ["", "of a server", "redis://127.0.0.1:1/0"])
async def test_a_call_repeated_with_the_bytes_counts_once(
    serve: Serve, tmp_path: Path, valkey: str, redis_url: str
) -> None:
    client = await serve(api_keys_file=two_a_minute(tmp_path), redis_url=valkey if "of a" in redis_url else redis_url)
    assert await codes(client, HASH, WHOLE, TEXT, TEXT) == [UNKNOWN, OK, OK, FULL]


async def test_another_gateway_knows_that_it_was_counted(serve: Serve, tmp_path: Path, valkey: str) -> None:
    one, two = [await serve(api_keys_file=two_a_minute(tmp_path), redis_url=valkey, cache_bytes=0) for _ in range(2)]
    assert await codes(one, TEXT, HASH) == [OK, UNKNOWN]
    assert await codes(two, WHOLE, TEXT) == [OK, FULL]


@pytest.mark.parametrize("shared", [False, True])
async def test_hashes_that_nobody_sends_the_bytes_of_stay_bounded(
    serve: Serve, tmp_path: Path, valkey: str, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    client = await serve(api_keys_file=two_a_minute(tmp_path), redis_url=valkey if shared else "")
    assert await codes(client, *[HASH] * 6) == [UNKNOWN] * 4 + [FULL] * 2
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 61)
    assert await codes(client, TEXT, TEXT, TEXT) == [OK, OK, FULL]


async def test_other_failures_count(serve: Serve, tmp_path: Path) -> None:
    client = await serve(api_keys_file=two_a_minute(tmp_path))
    short = ContentPart(image=Media(sha256=b"short"))
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert await codes(client, short, short, TEXT) == [invalid, invalid, FULL]


async def test_what_is_given_back_is_told(serve: Serve, tmp_path: Path) -> None:
    client = await serve(api_keys_file=two_a_minute(tmp_path))
    await codes(client, HASH)
    answer = await client.http.post(
        "/v1/chat/completions",
        json={"model": "", "messages": [{"role": "user", "content": "hi"}]},
        headers={"authorization": "Bearer t1"},
    )
    told = [answer.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining")]
    assert told == ["2", "1"]


NAMED = {"type": "image_url", "image_url": {"url": f"sha256:{DIGEST}"}}


async def respond(client: Client, part: dict[str, Any]) -> httpx.Response:
    body = {"model": BUNDLE, "input": [{"role": "user", "content": [part]}]}
    return await client.http.post("/v1/responses", json=body)


@pytest.mark.parametrize("url", [f"sha256:{DIGEST}", f"SHA256:{DIGEST.upper()}"])
async def test_over_http_a_url_names_what_came_before(client: Client, mesh: FakeMesh, url: str) -> None:
    whole = await client.chat([image_part(PICTURE)])
    named = await client.chat([{"type": "image_url", "image_url": {"url": url}}])
    assert outcomes(named.json()) == ["local"]
    assert named.json()["choices"][0]["message"] == whole.json()["choices"][0]["message"]
    assert (await respond(client, {"type": "input_image", "image_url": url})).status_code == 200
    first, *others = mesh.decoder.generate.requests
    assert [other.messages == first.messages for other in others] == [True, True]
    assert len(mesh.vision.encode.requests) == 1


async def test_over_http_a_recording_is_named_in_each_of_its_fields(client: Client, mesh: FakeMesh) -> None:
    url = f"sha256:{hashlib.sha256(wav()).hexdigest()}"
    audio = {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}
    assert (await client.chat([audio_part(wav())])).status_code == 200
    assert outcomes((await client.chat([audio])).json()) == ["local"]
    assert outcomes((await client.chat([{"type": "audio_url", "audio_url": {"url": url}}])).json()) == ["local"]
    assert (await respond(client, audio)).status_code == 200
    assert len(mesh.speech.encode.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_over_http_a_hash_of_nothing_known(client: Client, mesh: FakeMesh, stream: bool) -> None:
    answer = await client.chat([{"type": "text", "text": "hi"}, NAMED], stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (404, "media_unknown", "media_unknown")
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert "send the bytes" in error["message"]
    answer = await respond(client, {"type": "input_image", "image_url": f"sha256:{DIGEST}"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "input[0].content[0].image_url")
    assert mesh.calls == 0


async def test_over_http_tenants_know_only_their_own_hashes(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(api_keys="k1,k2")
    answers = []
    for key, part in (("k1", image_part(PICTURE)), ("k2", NAMED), ("k1", NAMED)):
        client.http.headers["authorization"] = f"Bearer {key}"
        answers.append(await client.chat([part]))
    never_sent = await client.chat([{"type": "image_url", "image_url": {"url": f"sha256:{'0' * 64}"}}])
    assert [answer.status_code for answer in (*answers, never_sent)] == [200, 404, 200, 404]
    assert answers[1].json()["error"] == never_sent.json()["error"]


@pytest.mark.parametrize("digits", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n", "٣" * 64, f"//{DIGEST}"])
async def test_over_http_what_is_no_hash(shared: Client, digits: str) -> None:
    for part, field in (
        ({"type": "image_url", "image_url": {"url": f"sha256:{digits}"}}, "image_url.url"),
        ({"type": "audio_url", "audio_url": {"url": f"sha256:{digits}"}}, "audio_url.url"),
        ({"type": "input_audio", "input_audio": {"data": f"sha256:{digits}", "format": "wav"}}, "input_audio.data"),
    ):
        answer = await shared.chat([part])
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, f"messages[0].content[0].{field}")
        assert "64 hexadecimal digits" in error["message"]


async def test_over_http_a_request_repeated_with_the_bytes_counts_once(serve: Serve, tmp_path: Path) -> None:
    client = await serve(api_keys_file=two_a_minute(tmp_path))
    client.http.headers["authorization"] = "Bearer t1"
    parts = (NAMED, image_part(PICTURE), NAMED, NAMED)
    assert [(await client.chat([part])).status_code for part in parts] == [404, 200, 200, 429]

"""What an encoder refuses as invalid is refused again without it: for a while, for its tenant, and only that."""

from typing import Any

import grpc
import pytest

from autoglm.common.deadlines import Deadline
from autoglm.common.errors import (
    InvalidRequest,
    MeshError,
    ModalityUnavailable,
    RateLimited,
    RequestTooLarge,
    UnsupportedMedia,
)
from autoglm.gateway.media.cache import MAX_REFUSALS, EmbeddingCache
from autoglm.gateway.metrics import GatewayMetrics
from autoglm.gateway.settings import Settings
from autoglm.v1.embedding_pb2 import Embedding

from ...waiting import eventually_async
from .conftest import Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav
from .test_gateway_cache import key_of

REFUSAL = RequestTooLarge("a recording may have 1800 seconds", code="array_above_max_length")


async def refused(client: Client, *parts: Any) -> Any:
    response = await client.chat(list(parts))
    return response.status_code, response.json()["error"]


async def test_the_encoder_is_asked_once(client: Client, mesh: FakeMesh) -> None:
    mesh.speech.encode.error = REFUSAL
    first = await refused(client, audio_part(wav()))
    again = await refused(client, audio_part(wav()))
    assert first == again
    assert (first[0], first[1]["code"], first[1]["message"]) == (413, REFUSAL.code, REFUSAL.message)
    assert first[1]["param"] == "messages[0].content[0].input_audio.data"
    elsewhere = await refused(client, {"type": "text", "text": "hi"}, audio_part(wav()))
    assert elsewhere[1]["param"] == "messages[0].content[1].input_audio.data"
    assert len(mesh.speech.encode.requests) == 1
    assert (await refused(client, audio_part(wav(0.2))))[0] == 413
    assert len(mesh.speech.encode.requests) == 2


@pytest.mark.parametrize("error", [InvalidRequest("no"), UnsupportedMedia("no"), RequestTooLarge("no")])
async def test_every_refusal_of_the_media_is_remembered(client: Client, mesh: FakeMesh, error: MeshError) -> None:
    mesh.vision.encode.error = error
    found = [await refused(client, image_part(png())) for _ in range(2)]
    assert found[0] == found[1]
    assert len(mesh.vision.encode.requests) == 1


@pytest.mark.parametrize("error", [ModalityUnavailable("no"), RateLimited("no"), None])
async def test_what_is_no_fault_of_the_media_is_not(client: Client, mesh: FakeMesh, error: MeshError | None) -> None:
    mesh.vision.encode.error = error
    mesh.vision.encode.code = None if error else grpc.StatusCode.INVALID_ARGUMENT  # not a status of ours
    assert (await client.chat([image_part(png())])).status_code >= 429
    mesh.vision.encode.error = mesh.vision.encode.code = None

    async def answered() -> bool:
        return (await client.chat([image_part(png())])).status_code == 200

    await eventually_async(answered, "the picture is encoded")


async def test_one_tenant_learns_nothing_of_anothers_media(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(api_keys="k1,k2")
    mesh.vision.encode.error = UnsupportedMedia("no")
    for key in ("k1", "k2", "k1", "k2"):
        client.http.headers["authorization"] = f"Bearer {key}"
        assert (await refused(client, image_part(png())))[0] == 415
    assert len(mesh.vision.encode.requests) == 2


async def test_a_new_encoder_is_asked_again(client: Client, mesh: FakeMesh) -> None:
    mesh.vision.encode.error = UnsupportedMedia("no")
    assert (await refused(client, image_part(png())))[0] == 415
    mesh.vision.encode.error, mesh.vision.revision = None, "r2"

    async def answered() -> bool:
        return (await client.chat([image_part(png())])).status_code == 200

    await eventually_async(answered, "the new encoder is asked")


class Refusing:
    """An encoder that refuses everything."""

    calls = 0

    async def __call__(self) -> Embedding:
        self.calls += 1
        raise UnsupportedMedia("no")


async def refuse(cache: EmbeddingCache, encode: Refusing, name: str = "a") -> None:
    with pytest.raises(UnsupportedMedia):
        await cache.get(key_of(name), encode, Deadline())


async def test_a_refusal_is_forgotten_after_its_time() -> None:
    cache, encode = EmbeddingCache(Settings(cache_refusal_ttl=0.05), GatewayMetrics()), Refusing()

    async def asked_again() -> bool:
        await refuse(cache, encode)
        return encode.calls > 1

    await eventually_async(asked_again, "the encoder is asked again")


async def test_without_a_time_nothing_is_remembered() -> None:
    cache, encode = EmbeddingCache(Settings(cache_refusal_ttl=0), GatewayMetrics()), Refusing()
    for _ in range(3):
        await refuse(cache, encode)
    assert encode.calls == 3


async def test_refusals_are_bounded() -> None:
    cache, encode = EmbeddingCache(Settings(cache_refusal_ttl=3600), GatewayMetrics()), Refusing()
    for number in range(MAX_REFUSALS + 1):
        await refuse(cache, encode, str(number))
    await refuse(cache, encode, "0")
    assert encode.calls == MAX_REFUSALS + 2  # the first was forgotten for the last

"""EmbeddingService before fakes: what becomes of a call, what is refused, and that limits hold here too."""

import asyncio
import hashlib
import logging
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from autoglm.client import AsyncClient
from autoglm.common.errors import InvalidRequest, UpstreamUnavailable
from autoglm.v1.chat_pb2 import ContentPart, Media
from autoglm.v1.embeddings_pb2 import EmbedRequest, EmbedResponse
from autoglm.v1.embeddings_pb2_grpc import EmbeddingServiceStub
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE

from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import png, wav
from .test_gateway_faults import abandon
from .test_gateway_hashes import refused

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST_ERROR")
PICTURE = png(30, 20, "navy")


def text(*texts: str) -> list[ContentPart]:
    return [ContentPart(text=each) for each in texts]


def image(**source: Any) -> ContentPart:
    return ContentPart(image=Media(**source))


async def embed(client: Client, *parts: ContentPart, key: str = "EMPTY", **fields: Any) -> EmbedResponse:
    metadata = (("authorization", f"Bearer {key}"), ("x-request-id", "r-1"))
    request = EmbedRequest(input=parts, **fields)
    answer: EmbedResponse = await EmbeddingServiceStub(client.channel).Embed(request, metadata=metadata)
    return answer


def values(answer: EmbedResponse) -> list[list[float]]:
    return [list(vector.values) for vector in answer.vectors]


async def test_each_part_becomes_a_vector_in_its_place(
    client: Client, mesh: FakeMesh, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [*text("a"), image(data=PICTURE), *text("bcd"), ContentPart(audio=Media(data=wav()))]
    with caplog.at_level(logging.INFO, "autoglm.gateway.access"):
        answer = await embed(client, *parts, dimensions=2)
    assert values(answer) == [[0, 1], [1, 2], [2, 3], [3, 2]]
    assert (answer.id, answer.model, answer.prompt_tokens) == ("r-1", BUNDLE, 8)
    (request,) = mesh.decoder.embed.requests
    assert [part.media.modality for part in request.input] == [0, MODALITY_IMAGE, 0, MODALITY_AUDIO]
    assert 0 < request.timeout.ToNanoseconds() / 1e9 <= 120
    (line,) = caplog.records
    assert line.getMessage().startswith("EmbeddingService/Embed OK ")


async def test_both_apis_give_the_same_vectors(shared: Client) -> None:
    texts = ["x" * (1 + i % 7) for i in range(200)]
    over_http = (await shared.http.post("/v1/embeddings", json={"model": BUNDLE, "input": texts})).json()["data"]
    assert values(await embed(shared, *text(*texts))) == [row["embedding"] for row in over_http]


async def test_as_many_as_allowed_come_back(shared: Client) -> None:
    found = values(await embed(shared, *text(*["a"] * 2048)))
    assert [vector[0] for vector in found] == list(range(2048))


async def test_a_hash_stands_for_media_that_came_before(client: Client, mesh: FakeMesh) -> None:
    named = image(sha256=hashlib.sha256(PICTURE).digest())
    unknown = (grpc.StatusCode.NOT_FOUND, "MEDIA_UNKNOWN", "input[1].image.sha256")
    assert await refused(embed(client, *text("a"), named)) == unknown
    assert values(await embed(client, image(data=PICTURE))) == values(await embed(client, named))
    assert len(mesh.vision.encode.requests) == 1


@pytest.mark.parametrize(
    ("parts", "fields", "param"),
    [
        ([], {}, "input"),
        (text(*["a"] * 2049), {}, "input"),
        (text("a", ""), {}, "input[1].text"),
        (text(""), {}, "input[0].text"),
        ([ContentPart()], {}, "input[0]"),
        ([*text("a"), image()], {}, "input[1].image"),
        ([image(url="data:nothing")], {}, "input[0].image.url"),
        ([image(sha256=b"short")], {}, "input[0].image.sha256"),
        ([image(data=PICTURE)] * 65, {}, "input"),
        (text("a"), {"dimensions": 3}, "dimensions"),
        (text("a"), {"dimensions": 0}, "dimensions"),
    ],
)
async def test_what_has_no_vector_is_refused(
    client: Client, mesh: FakeMesh, parts: list[ContentPart], fields: dict[str, Any], param: str
) -> None:
    assert await refused(embed(client, *parts, **fields)) == (*INVALID, param)
    assert mesh.calls == 0


async def test_other_refusals_name_their_field(client: Client) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(embed(client, image(data=b"no image"))))[::2] == (invalid, "input[0].image.data")
    unknown = await refused(embed(client, *text("a"), model="gpt-9"))
    assert (unknown[0], unknown[2]) == (grpc.StatusCode.NOT_FOUND, "model")


async def test_an_adapter_has_no_vectors_of_its_own(mesh: FakeMesh, serve: Serve) -> None:
    mesh.decoder.adapters = ["calm"]
    assert await refused(embed(await serve(), *text("a"), model=f"{BUNDLE}:calm")) == (*INVALID, "model")


@pytest.mark.parametrize(("texts", "param"), [(["a", "b"], "input[1]"), (["b"], "input[0]")])
async def test_what_the_decoder_objects_to_is_the_clients_field(
    client: Client, mesh: FakeMesh, texts: list[str], param: str
) -> None:
    mesh.decoder.embed.error = InvalidRequest("too long", param=f"input[{len(texts) - 1}]")
    assert await refused(embed(client, *text(*texts))) == (*INVALID, param)


async def test_a_decoder_that_is_down_is_said(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.embed.error = UpstreamUnavailable("down")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(client, *text("a"))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_leaves_stops_the_decoder(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.embed.hold.clear()
    await abandon(mesh.decoder.embed, asyncio.create_task(embed(client, *text("a"))))


async def test_a_deadline_reaches_the_decoder(client: Client, mesh: FakeMesh) -> None:
    await EmbeddingServiceStub(client.channel).Embed(EmbedRequest(input=text("a")), timeout=50)
    (request,) = mesh.decoder.embed.requests
    assert 0 < request.timeout.ToNanoseconds() / 1e9 <= 50


async def test_keys_and_limits_hold_here_too(serve: Serve) -> None:
    client = await serve(api_keys="k1", tenant_requests_per_minute=1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(client, *text("a"), key="k2")
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    await embed(client, *text("a"), key="k1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(client, *text("a"), key="k1")
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_typed_client_embeds(client: Client, mesh: FakeMesh) -> None:
    async with AsyncClient(f"127.0.0.1:{client.grpc_port}") as typed:
        first = await typed.embed("four", images=[PICTURE], audio=[wav()])
        again = await typed.embed("four", images=[PICTURE], audio=[wav()])
    assert first.vectors == again.vectors == ((0, 4), (1, 2), (2, 2))
    assert len(mesh.vision.encode.requests) + len(mesh.speech.encode.requests) == 2


async def test_reflection_knows_the_service(shared: Client) -> None:
    def services() -> list[str]:
        with grpc.insecure_channel(f"127.0.0.1:{shared.grpc_port}") as channel:
            return list(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert "autoglm.v1.EmbeddingService" in await asyncio.to_thread(services)

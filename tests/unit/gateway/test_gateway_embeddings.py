"""POST /v1/embeddings before fakes: what becomes of a request, what is refused, and that others need not wait."""

import asyncio
import base64
import struct
from typing import Any

import httpx
import openai
import pytest
import tiktoken
import tiktoken.registry
from langchain_openai import OpenAIEmbeddings

from autoglm.common.errors import InvalidRequest, UpstreamUnavailable
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE

from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav
from .test_gateway_faults import abandon

ROUTE = "/v1/embeddings"
IMAGE_URL = "messages[0].content[0].image_url.url"


async def embed(client: Client, **fields: Any) -> httpx.Response:
    return await client.http.post(ROUTE, json={"model": BUNDLE, **fields})


def user(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


async def test_each_text_becomes_a_vector_in_its_place(client: Client, mesh: FakeMesh) -> None:
    answer = (await embed(client, input=["a", "bcd", "好"])).json()
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0, 1]},
            {"object": "embedding", "index": 1, "embedding": [1, 3]},
            {"object": "embedding", "index": 2, "embedding": [2, 1]},
        ],
        "model": BUNDLE,
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    (request,) = mesh.decoder.embed.requests
    assert [part.text for part in request.input] == ["a", "bcd", "好"]
    assert 0 < request.timeout.ToNanoseconds() / 1e9 <= 120


async def test_base64_holds_the_same_numbers(shared: Client) -> None:
    texts = ["x" * (1 + i % 7) for i in range(100)]
    numbers, packed = [
        (await embed(shared, input=texts, encoding_format=form, dimensions=2)).json()["data"]
        for form in ("float", "base64")
    ]
    assert [row["embedding"] for row in numbers] == [[i, 1 + i % 7] for i in range(100)]
    unpacked = [list(struct.unpack("<2f", base64.b64decode(row["embedding"]))) for row in packed]
    assert unpacked == [row["embedding"] for row in numbers]


@pytest.mark.parametrize(
    ("part", "modality"), [(image_part(png()), MODALITY_IMAGE), (audio_part(wav()), MODALITY_AUDIO)]
)
async def test_media_comes_as_messages_and_is_encoded_once(
    client: Client, mesh: FakeMesh, part: dict[str, Any], modality: int
) -> None:
    for _ in range(2):
        (row,) = (await embed(client, **user(part))).json()["data"]
        assert row["embedding"] == [0, 2]
    first, again = mesh.decoder.embed.requests
    assert first.input == again.input
    assert first.input[0].media.modality == modality
    assert len(mesh.vision.encode.requests) + len(mesh.speech.encode.requests) == 1


async def test_a_text_may_come_as_a_message(shared: Client) -> None:
    (row,) = (await embed(shared, **user({"type": "text", "text": "four"}))).json()["data"]
    assert row["embedding"] == [0, 4]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": "a", **user({"type": "text", "text": "b"})}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [1, 2]}, "input[0]"),
        ({"input": [[1, 2], [3]]}, "input[0]"),
        ({"input": ["a", None]}, "input[1]"),
        ({"input": "a", "model": None}, "model"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"messages": []}, "messages"),
        (user(), "messages"),
        (user({"type": "text", "text": ""}), "messages"),
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant"}]}, "messages"),
        (user({"type": "text", "text": "a"}, {"type": "text", "text": "b"}), "messages"),
        (user({"type": "text", "text": "a"}, image_part(png())), "messages"),
        (user(image_part(png()), audio_part(wav())), "messages"),
        (user({"type": "image_url", "image_url": {"url": "data:nothing"}}), IMAGE_URL),
    ],
)
async def test_what_has_no_vector_is_refused(
    client: Client, mesh: FakeMesh, fields: dict[str, Any], param: str
) -> None:
    response = await embed(client, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert mesh.calls == 0


async def test_an_adapter_has_no_vectors_of_its_own(mesh: FakeMesh, serve: Serve) -> None:
    mesh.decoder.adapters = ["calm"]
    response = await embed(await serve(), input="a", model=f"{BUNDLE}:calm")
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "model")
    assert "adapters do not change embeddings" in error["message"]


@pytest.mark.parametrize("ids", [[9906, 1917], [[9906, 1917]], [[1], [2, 3]], ["text", [1]], [0], [[]]])
async def test_token_ids_are_told_from_text(shared: Client, ids: Any) -> None:
    """LangChain and OpenAI's own examples send the ids of another model's tokenizer."""
    response = await embed(shared, input=ids)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, f"input[{int('text' in ids)}]")
    assert "token ids are of an unknown tokenizer" in error["message"]
    assert "check_embedding_ctx_length=False" in error["message"]


@pytest.fixture
def offline_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts an encoding of bytes where LangChain would load OpenAI's, which has to be downloaded."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", encoding)


async def test_langchain_is_told_what_to_do(shared: Client, offline_tokenizer: None) -> None:
    options: Any = {"model": BUNDLE, "base_url": f"{shared.url}/v1", "api_key": "EMPTY", "max_retries": 0}
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        await OpenAIEmbeddings(**options).aembed_documents(["打开相机", "hi"])
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        await OpenAIEmbeddings(**options).aembed_query("hi")
    as_told = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    assert await as_told.aembed_documents(["打开相机", "hi"]) == [[0, 4], [1, 2]]
    assert await as_told.aembed_query("hi") == [0, 2]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        (user(image_part(b"no image")), 415, IMAGE_URL),
        ({"input": "a", "model": "gpt-9"}, 404, "model"),
    ],
)
async def test_other_refusals_name_their_field(shared: Client, fields: dict[str, Any], status: int, param: str) -> None:
    response = await embed(shared, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"input": ["a", "b"]}, "input[1]"), ({"input": "b"}, "input"), (user({"type": "text", "text": "b"}), "messages")],
)
async def test_what_the_decoder_objects_to_is_the_clients_field(
    client: Client, mesh: FakeMesh, fields: dict[str, Any], param: str
) -> None:
    mesh.decoder.embed.error = InvalidRequest("too long", param=f"input[{len(fields.get('input', 'b')) - 1}]")
    response = await embed(client, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_decoder_that_is_down_is_said(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.embed.error = UpstreamUnavailable("down")
    response = await embed(client, input="a")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "upstream_unavailable")


async def test_a_client_that_hangs_up_stops_the_decoder(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.embed.hold.clear()
    await abandon(mesh.decoder.embed, asyncio.create_task(embed(client, input="a")))


async def test_keys_and_limits_hold_here_too(serve: Serve) -> None:
    client = await serve(api_keys="k1", tenant_requests_per_minute=1)
    body, key = {"model": BUNDLE, "input": "a"}, {"authorization": "Bearer k1"}
    statuses = [(await client.http.post(ROUTE, json=body, headers=headers)).status_code for headers in ({}, key, key)]
    assert statuses == [401, 200, 429]


async def test_many_vectors_are_sent_in_pieces(client: Client) -> None:
    """Between the pieces, others are served: one answer must not hold the loop up."""
    async with client.http.stream("POST", ROUTE, json={"model": BUNDLE, "input": ["a"] * 2048}) as response:
        pieces = [piece async for piece in response.aiter_raw()]
    assert len(pieces) > 10

"""Each way a request can be wrong: what the client sees, and that nothing reached the services."""

import base64
from typing import Any

import httpx
import pytest

from autoglm.v1.generation_pb2 import TextChoice

from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, png_bomb, wav

IMAGE_URL = "messages[0].content[0].image_url.url"
AUDIO_DATA = "messages[0].content[0].input_audio.data"


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, IMAGE_URL),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "x"}}]}
                ]
            },
            "messages[0].content[0].input_audio.format",
        ),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": 1}, "stop"),
        ({"seed": -(2**64)}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"enable_thinking": "no"}, "enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
        ({"return_reasoning": []}, "return_reasoning"),
    ],
)
async def test_a_wrong_field_is_named(shared: Client, fields: dict[str, Any], param: str) -> None:
    before = shared.mesh.calls
    response = await shared.chat("hi", **fields)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request_error", param)
    assert shared.mesh.calls == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_not_a_json_object(shared: Client, body: bytes) -> None:
    response = await shared.http.post("/v1/chat/completions", content=body)
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("part", "status", "code", "param"),
    [
        ({"image_url": {"url": "https://example.com/a.png"}}, 400, "invalid_request_error", IMAGE_URL),
        ({"image_url": {"url": "data:image/png;base64"}}, 400, "invalid_request_error", IMAGE_URL),
        ({"image_url": {"url": "data:image/png,abc"}}, 415, "unsupported_media", IMAGE_URL),
        ({"image_url": {"url": "data:image/png;base64,@@@"}}, 400, "invalid_request_error", IMAGE_URL),
        ({"image_url": {"url": "data:image/png;base64,é"}}, 400, "invalid_request_error", IMAGE_URL),
        ({"image_url": {"url": "data:image/png;base64,"}}, 415, "unsupported_media", IMAGE_URL),
        (image_part(b"not an image"), 415, "unsupported_media", IMAGE_URL),
        (image_part(png()[:20]), 415, "unsupported_media", IMAGE_URL),
        (image_part(wav()), 415, "unsupported_media", IMAGE_URL),
        (image_part(png_bomb(20_000, 20_000)), 413, "request_too_large", IMAGE_URL),
        (image_part(png_bomb(2**31 - 1, 2**31 - 1)), 413, "request_too_large", IMAGE_URL),
        (audio_part(b"not a recording"), 415, "unsupported_media", AUDIO_DATA),
        (audio_part(b""), 415, "unsupported_media", AUDIO_DATA),
        (audio_part(png()), 415, "unsupported_media", AUDIO_DATA),
        ({"input_audio": {"data": "****", "format": "wav"}}, 400, "invalid_request_error", AUDIO_DATA),
    ],
)
async def test_media_that_cannot_be_read(
    shared: Client, part: dict[str, Any], status: int, code: str, param: str
) -> None:
    part = {"type": next(kind for kind in ("image_url", "input_audio") if kind in part), **part}
    before = shared.mesh.calls
    response = await shared.chat([part])
    error = error_of(response)
    assert (response.status_code, error["type"], error["param"]) == (status, code, param)
    assert shared.mesh.calls == before


async def test_https_urls_are_refused_in_words(shared: Client) -> None:
    response = await shared.chat([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}])
    assert "only data: URLs" in error_of(response)["message"]


async def test_media_too_large_in_bytes(serve: Serve) -> None:
    client = await serve(max_media_bytes=100)
    response = await client.chat([audio_part(wav(1.0))])
    assert (response.status_code, error_of(response)["param"]) == (413, AUDIO_DATA)


async def test_too_many_media_parts(serve: Serve) -> None:
    client = await serve(max_media_parts=1)
    response = await client.chat([image_part(png()), audio_part(wav())])
    assert (response.status_code, error_of(response)["param"]) == (400, "messages")


async def test_a_declared_body_over_the_limit_is_refused_unread(serve: Serve) -> None:
    client = await serve(max_body_bytes=1000)
    response = await client.chat("x" * 2000)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


async def test_a_chunked_body_over_the_limit_is_refused(serve: Serve) -> None:
    client = await serve(max_body_bytes=1000)

    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 100

    response = await client.http.post("/v1/chat/completions", content=pieces())
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", ""])
async def test_a_timeout_that_is_no_time(shared: Client, value: str) -> None:
    response = await shared.http.post("/v1/chat/completions", headers={"x-request-timeout": value}, json={})
    assert (response.status_code, error_of(response)["param"]) == (400, "x-request-timeout")


async def test_an_unknown_model(shared: Client) -> None:
    response = await shared.chat("hi", model="gpt-5")
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert BUNDLE in error["message"]


async def test_unknown_fields_and_nulls_are_ignored(shared: Client) -> None:
    nulls = dict.fromkeys(("temperature", "stop", "n", "stream", "stream_options", "seed", "logprobs"))
    response = await shared.chat("hi", tools=[], response_format={"type": "text"}, **nulls)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nope", 404, "not_found"),
        ("GET", "/v1/models/nope", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "invalid_request_error"),
        ("DELETE", "/v1/models", 405, "invalid_request_error"),
    ],
)
async def test_routes_that_are_not_there(shared: Client, method: str, path: str, status: int, code: str) -> None:
    response = await shared.http.request(method, path)
    assert (response.status_code, error_of(response)["type"]) == (status, code)


async def test_what_reaches_the_decoder(client: Client, mesh: FakeMesh) -> None:
    response = await client.chat(
        [{"type": "text", "text": "打开微信"}],
        temperature=0,
        top_p=0.85,
        top_k=-1,
        max_tokens=5,
        max_completion_tokens=7,
        stop="x",
        seed=3,
        frequency_penalty=0.2,
        logprobs=True,
        chat_template_kwargs={"enable_thinking": False},
        include_reasoning=True,
    )
    assert response.status_code == 200
    (request,) = mesh.decoder.generate.requests
    sampling = request.sampling
    assert sampling.HasField("temperature")
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens, sampling.seed) == (0, 0, 7, 3)
    assert list(sampling.stop) == ["x"]
    assert sampling.HasField("top_logprobs")
    assert not sampling.HasField("presence_penalty")
    assert (request.HasField("enable_thinking"), request.enable_thinking, request.return_reasoning) == (
        True,
        False,
        True,
    )
    assert request.messages[0].parts[0].text == "打开微信"


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}},
            "json_schema",
            '{"type":"null"}',
        ),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", '{"type":"null"}'),
        ({"structured_outputs": {"json": "{}"}}, "json_schema", "{}"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"grammar": "start: x"}}, "grammar", "start: x"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", TextChoice(texts=["a", "b"])),
    ],
)
async def test_what_an_answer_has_to_look_like_reaches_the_decoder(
    client: Client, mesh: FakeMesh, fields: dict[str, Any], kind: str | None, value: object
) -> None:
    response = await client.chat("hi", logit_bias={"7": -1.5}, min_p=0.25, max_thinking_tokens=3, **fields)
    assert response.status_code == 200
    (request,) = mesh.decoder.generate.requests
    assert request.cache_salt
    assert dict(request.sampling.logit_bias) == {7: -1.5}
    assert (request.sampling.min_p, request.sampling.max_thinking_tokens) == (0.25, 3)
    assert request.sampling.WhichOneof("structured_output") == kind
    assert kind is None or getattr(request.sampling, kind) == value


async def test_several_media_in_any_order(client: Client, mesh: FakeMesh) -> None:
    parts = [image_part(png()), {"type": "text", "text": "or"}, audio_part(wav()), image_part(png(colour="blue"))]
    response = await client.chat(parts)
    assert response.status_code == 200
    (request,) = mesh.decoder.generate.requests
    sent = [part.WhichOneof("part") for part in request.messages[0].parts]
    assert sent == ["media", "text", "media", "media"]
    hashes = [part.media.media_sha256 for part in request.messages[0].parts if part.HasField("media")]
    assert len(set(hashes)) == 3
    stages = response.json()["autoglm"]["stages"]["media"]
    assert [(stage["modality"], stage["cache"]) for stage in stages] == [
        ("image", "miss"),
        ("audio", "miss"),
        ("image", "miss"),
    ]


async def test_audio_as_a_data_url(client: Client, mesh: FakeMesh) -> None:
    url = "data:audio/wav;base64," + base64.b64encode(wav()).decode()
    response = await client.chat([{"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}])
    assert response.status_code == 200
    assert mesh.speech.encode.requests[0].audio == wav()

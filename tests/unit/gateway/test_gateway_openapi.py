"""The document at /openapi.json is valid and true: real answers, and generated requests, are held against it."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import jsonschema
import openapi_spec_validator
import pytest

from autoglm.common.errors import UpstreamUnavailable

from ...exploring import explore, stream
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import audio_part, image_part, png, wav
from .test_gateway_response_tools import FLAT
from .test_gateway_tools import CALLS, NOW, WEATHER

ROUTES = (
    "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/audio/transcriptions", "/v1/models",
    "/v1/models/{model}",
)  # fmt: skip
FORM: dict[str, Any] = {"data": {"model": BUNDLE}, "files": {"file": wav()}}


def ask(content: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"json": {"model": BUNDLE, "messages": [{"role": "user", "content": content}], **fields}}


def respond(**fields: Any) -> dict[str, Any]:
    return {"json": {"model": BUNDLE, "input": "hi", **fields}}


def embed(**fields: Any) -> dict[str, Any]:
    return {"json": {"model": BUNDLE, **fields}}


def transcribe(**fields: Any) -> dict[str, Any]:
    return FORM | {"data": {"model": BUNDLE, **fields}}


async def document(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = (await client.http.get("/openapi.json")).json()
    return found


def closed(schema: Any) -> Any:
    """Return `schema` without room for a field that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return (
        inner | {"additionalProperties": False} if "properties" in schema and schema.get("type") == "object" else inner
    )


def described(document: Mapping[str, Any], operation: Mapping[str, Any], response: httpx.Response) -> dict[str, Any]:
    """Return the schema of a real answer's body, or of what its events hold; there is one for its status and type."""
    kind = response.headers["content-type"].partition(";")[0]
    known = operation["responses"][str(response.status_code)]
    for name, header in known["headers"].items():
        assert name in response.headers or not header.get("required")
    schema: dict[str, Any] = known["content"][kind]["schema"]
    if kind == "text/event-stream":
        schema = schema["properties"]["data"]["anyOf"][0]["contentSchema"]
    whole: dict[str, Any] = closed(schema | {"components": document["components"]})
    return whole


def data(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_it_is_valid_and_describes_every_route(shared: Client) -> None:
    found = await document(shared)
    openapi_spec_validator.validate(found)
    assert set(ROUTES) | {"/health/live", "/health/ready", "/metrics"} == set(found["paths"])
    for path in ROUTES:
        for operation in found["paths"][path].values():
            assert operation["security"] == [{"key": []}, {}]
            assert {"200", "400", "401", "404", "500", "503", "504"} <= set(operation["responses"])
            assert "x-request-timeout" in [parameter["name"] for parameter in operation["parameters"]]


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("post", "/v1/chat/completions", ask([image_part(png()), audio_part(wav())], return_reasoning=True)),
        ("post", "/v1/chat/completions", ask(n=2, logprobs=True, top_logprobs=1)),
        ("post", "/v1/chat/completions", ask(stream=True, return_reasoning=True, logprobs=True)),
        ("post", "/v1/chat/completions", ask(stream=True, stream_options={"include_usage": True})),
        ("post", "/v1/chat/completions", ask(n=0)),
        ("post", "/v1/responses", respond(reasoning={"effort": "low"}, metadata={"a": "b"})),
        ("post", "/v1/responses", respond(text={"format": {"type": "json_schema", "name": "n", "schema": {}}})),
        ("post", "/v1/responses", respond(stream=True)),
        ("post", "/v1/responses", respond(model="gpt-9")),
        ("post", "/v1/embeddings", embed(input=["hi", "ho"])),
        ("post", "/v1/embeddings", ask([image_part(png())], encoding_format="base64")),
        ("post", "/v1/embeddings", embed(input=[])),
        *(("post", "/v1/audio/transcriptions", transcribe(response_format=each)) for each in
          ("json", "verbose_json", "text", "srt", "vtt")),
        ("post", "/v1/audio/transcriptions", transcribe(stream="true")),
        ("post", "/v1/audio/transcriptions", {"data": {"model": BUNDLE}, "files": {"file": b"no recording"}}),
        ("get", "/v1/models", {}),
        ("get", "/v1/models/{model}", {}),
        ("get", "/health/live", {}),
        ("get", "/health/ready", {}),
        ("get", "/metrics", {}),
    ],
)  # fmt: skip
async def test_real_answers_are_as_described(shared: Client, method: str, path: str, sent: dict[str, Any]) -> None:
    await compare(shared, method, path, sent)


@pytest.mark.parametrize("stream", [False, True])
async def test_real_calls_are_as_described(client: Client, mesh: FakeMesh, stream: bool) -> None:
    mesh.decoder.calls = CALLS
    for choice in ("required", {"type": "function", "name": "weather"}):
        sent = respond(tools=FLAT, tool_choice=choice, stream=stream)
        assert "function_call" in await compare(client, "post", "/v1/responses", sent)
    await compare(client, "post", "/v1/chat/completions", ask(tools=[WEATHER, NOW], stream=stream))


async def compare(client: Client, method: str, path: str, sent: dict[str, Any]) -> str:
    """Hold a real answer against the document, and return it."""
    found = await document(client)
    response = await client.http.request(method, path.format(model=BUNDLE), **sent)
    schema = described(found, found["paths"][path][method], response)
    kind = response.headers["content-type"].partition(";")[0]
    bodies = [response.json()] if kind == "application/json" else data(response.text) or [response.text]
    for body in bodies:
        jsonschema.validate(body, schema, jsonschema.Draft202012Validator)
    return response.text


async def test_real_refusals_are_as_described(serve: Serve, mesh: FakeMesh) -> None:
    client = await serve(api_keys="k1", max_body_bytes=200)
    found = await document(client)
    key = {"authorization": "Bearer k1"}
    mesh.decoder.generate.error, mesh.decoder.after = UpstreamUnavailable("the engine stopped"), 0
    for path, sent in (("/v1/chat/completions", ask()), ("/v1/responses", respond())):
        for headers, fields, status in (({}, sent, 401), (key, ask("x" * 300), 413), (key, sent, 503)):
            response = await client.http.post(path, **fields, headers=headers)
            assert response.status_code == status
            schema = described(found, found["paths"][path]["post"], response)
            jsonschema.validate(response.json(), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v1/chat/completions", {"body": ask(stream=True)["json"]}),
        ("/v1/responses", {"body": respond(stream=True)["json"]}),
        (
            "/v1/audio/transcriptions",
            {"body": {"model": BUNDLE, "file": wav(), "stream": True}, "media_type": "multipart/form-data"},
        ),
    ],
)
async def test_real_events_are_as_described(shared: Client, path: str, sent: dict[str, Any]) -> None:
    await asyncio.to_thread(stream, shared.url, path, **sent)


async def test_a_stream_that_fails_is_as_described(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error = UpstreamUnavailable("the engine stopped")
    for path, sent in (("/v1/chat/completions", ask(stream=True)), ("/v1/responses", respond(stream=True))):
        await asyncio.to_thread(stream, client.url, path, body=sent["json"])


async def test_generated_requests_find_no_fault(shared: Client) -> None:
    """Whatever a request holds, valid or not, the answer is a described one, and never a fault of the server.

    Half of the valid requests have to get an answer: what is refused before it reaches the model shows little of it.
    """
    statuses = await asyncio.to_thread(explore, shared.url, 15)
    routes = [statuses[f"POST /v1/{route}"] for route in ("chat/completions", "responses", "embeddings")]
    assert all(400 in route.invalid and route.share >= 0.5 for route in routes), routes
    assert statuses["GET /v1/models"].valid.keys() == {200}

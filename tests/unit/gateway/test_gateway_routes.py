"""A route is one row: a test adds one, and it is admitted, served and described like the others."""

import asyncio

import jsonschema
import openapi_spec_validator
import orjson
import pytest
import pytest_asyncio
from pydantic import BaseModel

from autoglm.gateway.openai import app
from autoglm.gateway.openai.openapi import Spec
from autoglm.gateway.openai.route import Incoming, Responder, Route
from autoglm.gateway.openai.types import Strict, parse_json

from ...waiting import soon
from .conftest import BUNDLE, Client, FakeMesh, Serve


class EchoRequest(Strict):
    """A text to send back."""

    model: str
    text: str


class Echo(BaseModel):
    """The text, and the model that the request named."""

    text: str
    model: str


async def read(incoming: Incoming) -> EchoRequest:
    return parse_json(EchoRequest, incoming.body)


async def reply(request: EchoRequest, respond: Responder) -> None:
    await respond.start("application/json")
    await respond.finish(orjson.dumps({"text": request.text, "model": respond.model.name}))


ROW = Route(
    "/v1/echo",
    read,
    reply,
    Spec("create_echo", "Send a text back.", {"application/json": EchoRequest}, {"application/json": Echo}),
)
SENT = {"model": "", "text": "hi"}
KEY = {"authorization": "Bearer k1"}


@pytest_asyncio.fixture(loop_scope="session")
async def client(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A gateway with one more route, and one slot."""
    monkeypatch.setattr(app, "ROUTES", (*app.ROUTES, ROW))
    return await serve(api_keys="k1", max_concurrent_requests=1)


async def test_it_is_served_and_described(client: Client) -> None:
    answer = await client.http.post("/v1/echo", json=SENT, headers=KEY)
    assert (answer.status_code, answer.json()) == (200, {"text": "hi", "model": BUNDLE})
    document = (await client.http.get("/openapi.json")).json()
    openapi_spec_validator.validate(document)
    operation = document["paths"]["/v1/echo"]["post"]
    assert operation["description"] == "Send a text back."
    sent, known = operation["requestBody"], operation["responses"]["200"]
    for body, described in ((SENT, sent), (answer.json(), known)):
        schema = described["content"]["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.validate(body, schema, jsonschema.Draft202012Validator)


async def test_it_checks_keys_models_and_fields(client: Client) -> None:
    for sent, headers, status, param in (
        (SENT, {}, 401, None),
        ({**SENT, "text": 1}, KEY, 400, "text"),
        ({**SENT, "model": "gpt-9"}, KEY, 404, "model"),
    ):
        refused = await client.http.post("/v1/echo", json=sent, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


async def test_it_needs_a_slot(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.hold.clear()
    chat = {"model": BUNDLE, "messages": [{"role": "user", "content": "hi"}]}
    running = asyncio.create_task(client.http.post("/v1/chat/completions", json=chat, headers=KEY))
    await soon(mesh.decoder.generate.entered.wait())
    assert (await client.http.post("/v1/echo", json=SENT, headers=KEY)).status_code == 429
    mesh.decoder.generate.hold.set()
    assert (await running).status_code == 200
    assert (await client.http.post("/v1/echo", json=SENT, headers=KEY)).status_code == 200

"""The codes of errors that clients' programs act on, in each API, in streams, and on the way from a service."""

from collections.abc import AsyncIterator
from typing import Any, get_args

import grpc
import openai
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from openai.types.responses import ResponseError

from autoglm.client import AsyncClient
from autoglm.common.errors import (
    CODES,
    DOMAIN,
    InternalError,
    InvalidRequest,
    MeshError,
    NotFound,
    RateLimited,
    UpstreamUnavailable,
    from_status,
    to_status,
)
from autoglm.gateway.openai.errors import response_error_code

from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import image_part, png_bomb

FULL = InvalidRequest("too many tokens", param="messages", code="context_length_exceeded")
HI: list[Any] = [{"role": "user", "content": "hi"}]


def codes(error: openai.APIError) -> tuple[str | None, str | None, str | None]:
    return error.type, error.code, error.param


def peer(client: Client, key: str = "EMPTY") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key=key, max_retries=0)


def asked(client: openai.AsyncOpenAI, api: str, model: str = BUNDLE, **fields: Any) -> Any:
    match api:
        case "chat":
            return client.chat.completions.create(model=model, messages=HI, **fields)
        case "responses":
            return client.responses.create(model=model, input="hi", **fields)
    return client.embeddings.create(model=model, input="hi", **fields)


async def read(stream: AsyncIterator[Any], events: list[Any]) -> None:
    async for event in stream:
        events.append(event)


@pytest.mark.parametrize(
    ("api", "fields", "param"),
    [
        ("chat", {}, "messages"),
        ("chat", {"stream": True}, "messages"),
        ("responses", {}, "input"),
        ("responses", {"stream": True}, "input"),
        ("embeddings", {}, "input"),
    ],
)
async def test_a_full_context_has_its_code(
    client: Client, mesh: FakeMesh, api: str, fields: dict[str, Any], param: str
) -> None:
    mesh.decoder.generate.error, mesh.decoder.after, mesh.decoder.reasons = FULL, 0, False
    mesh.decoder.embed.error = InvalidRequest("long", param="input[0]", code="context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as caught:
        await asked(peer(client), api, **fields)
    assert codes(caught.value) == ("invalid_request_error", "context_length_exceeded", param)


@pytest.mark.parametrize("api", ["chat", "responses", "embeddings"])
async def test_an_unknown_model_has_its_code(shared: Client, api: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await asked(peer(shared), api, "gpt-4o")
    assert codes(caught.value) == ("not_found", "model_not_found", "model")
    assert BUNDLE in str(caught.value)
    with pytest.raises(openai.NotFoundError) as caught:
        await peer(shared).models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


async def test_a_route_that_is_not_there_is_no_unknown_model(shared: Client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await peer(shared).completions.create(model=BUNDLE, prompt="hi")
    assert codes(caught.value) == ("not_found", "not_found", None)


async def test_a_wrong_key_has_its_code(serve: Serve) -> None:
    client = await serve(api_keys="k1")
    with pytest.raises(openai.AuthenticationError) as caught:
        await asked(peer(client, "k2"), "chat")
    assert codes(caught.value) == ("authentication_error", "invalid_api_key", None)


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (image_part(b"GIF of no kind"), "invalid_image_format"),
        (image_part(png_bomb(60_000, 60_000)), "image_too_large"),
        ({"type": "image_url", "image_url": {"url": "https://media.example/a.png"}}, "invalid_image_url"),
    ],
)
async def test_an_image_that_cannot_be_read_has_its_code(shared: Client, part: dict[str, Any], code: str) -> None:
    error = (await shared.chat([part])).json()["error"]
    assert (error["code"], error["param"]) == (code, "messages[0].content[0].image_url.url")


async def test_what_is_not_supported_has_its_code(shared: Client) -> None:
    for api, fields, code, param in (
        ("responses", {"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
        ("responses", {"background": True}, "unsupported_parameter", "background"),
        ("embeddings", {"dimensions": 77}, "unsupported_value", "dimensions"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await asked(peer(shared), api, **fields)
        assert codes(caught.value) == ("invalid_request_error", code, param)


async def test_a_grpc_client_learns_the_code(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = FULL, 0
    async with AsyncClient(f"127.0.0.1:{client.grpc_port}") as peer:
        with pytest.raises(InvalidRequest) as caught:
            await peer.chat("hi")
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(NotFound) as unknown:
            await peer.chat("hi", model="gpt-4o")
        assert unknown.value.code == "model_not_found"
    cause = unknown.value.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    status, info = rpc_status.from_call(cause), error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata["code"]) == ("NOT_FOUND", DOMAIN, "model_not_found")


@pytest.mark.parametrize("error", [UpstreamUnavailable("gone"), RateLimited("full"), FULL, InternalError("oh")])
async def test_a_failed_response_has_a_code_of_openai(client: Client, mesh: FakeMesh, error: MeshError) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = error, 2
    strict = openai.AsyncOpenAI(
        base_url=f"{client.url}/v1", api_key="EMPTY", max_retries=0, _strict_response_validation=True
    )
    stream, events = await strict.responses.create(model=BUNDLE, input="hi", stream=True), list[Any]()
    with pytest.raises(openai.APIError) as caught:
        await read(stream, events)
    failed = events[-1]
    assert failed.type == "response.failed"
    assert failed.response.error.code == response_error_code(error)
    assert caught.value.code == error.code


def test_the_codes_of_failed_responses_are_those_of_openai() -> None:
    known = get_args(ResponseError.model_fields["code"].annotation)
    kinds = [kind("x") for kind in MeshError.__subclasses__()]
    assert {response_error_code(kind) for kind in kinds} <= set(known)


@pytest.mark.parametrize("code", CODES)
def test_a_code_survives_the_way_between_processes(code: Any) -> None:
    sent = InvalidRequest("no", param="messages", code=code).at("input")
    error = from_status(to_status(sent))
    assert (type(error), error.code, error.param, error.message) == (InvalidRequest, code, "input", "no")


def test_an_error_of_another_release_keeps_its_type() -> None:
    for metadata in ({}, {"code": "of_a_later_release"}):
        status = status_pb2.Status(message="no")
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain=DOMAIN, metadata=metadata))
        error = from_status(status)
        assert (type(error), error.code) == (NotFound, "not_found")

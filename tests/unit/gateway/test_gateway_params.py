"""An error names the client's own field, by its path in the request, for every field of each API."""

import json
from typing import Any

import grpc
import pytest

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import SAMPLING_RANGES
from autoglm.gateway.openai.chat.request import ChatCompletionRequest
from autoglm.gateway.openai.responses.request import ResponseRequest
from autoglm.v1.chat_pb2 import ChatRequest, CompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import SamplingParams, TextChoice

from .conftest import Client, FakeMesh
from .test_gateway_answers import field_of
from .test_gateway_parsing import error_of
from .test_gateway_response_tools import allowed
from .test_gateway_responses import respond
from .test_gateway_tools import chat, offer

WRONG: list[Any] = [{"a": {"b": [1]}}, [[1]], "\u0000", 7.5]  # every field refuses some of these
BANANA = {"type": "object", "properties": {"a": {"items": {"type": "banana"}}}}
INNER = ".properties.a.items.type"
TOOL = {"name": "now", "parameters": BANANA}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": BANANA}}


def fields_of(kind: Any) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]


async def refused_params(client: Client, path: str, body: dict[str, Any], name: str) -> list[str]:
    """Return what is blamed where `name` has each of the wrong values that are refused."""
    params = []
    for wrong in WRONG:
        response = await client.http.post(path, json=body | {name: wrong})
        if response.status_code == 400:
            params.append(error_of(response)["param"])
            assert "dictionary" not in response.text
            assert "instance of" not in response.text
    return params


@pytest.mark.parametrize("name", fields_of(ChatCompletionRequest))
async def test_every_field_of_chat_is_named(shared: Client, name: str) -> None:
    body = {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": "hi"}]}
    params = await refused_params(shared, "/v1/chat/completions", body, name)
    assert params
    assert all(param == name or param.startswith((f"{name}.", f"{name}[")) for param in params)
    assert not any("[key]" in param or "dict[" in param for param in params)


@pytest.mark.parametrize("name", fields_of(ResponseRequest))
async def test_every_field_of_responses_is_named(shared: Client, name: str) -> None:
    params = await refused_params(shared, "/v1/responses", {"model": "autoglm-phone-9b", "input": "hi"}, name)
    assert params
    assert all(param == name or param.startswith((f"{name}.", f"{name}[")) for param in params)


async def grpc_field(client: Client, asked: ChatRequest) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ChatServiceStub(client.channel).Complete(CompleteRequest(chat=asked))
    return field_of(caught.value)


async def test_every_number_of_grpc_is_named(shared: Client) -> None:
    for name, allowed_range in SAMPLING_RANGES.items():
        field = SamplingParams.DESCRIPTOR.fields_by_name[name]
        value = 1e9 if field.cpp_type == field.CPPTYPE_FLOAT else int(allowed_range.high) + 1
        if value in (2**63, 2**64):
            continue  # no number of its type is out of range
        asked = chat(sampling=SamplingParams(**{name: value}))  # type: ignore[arg-type]
        assert await grpc_field(shared, asked) == f"chat.sampling.{name}"


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (SamplingParams(logit_bias={3: 101}), "logit_bias"),
        (SamplingParams(stop=[""]), "stop"),
        (SamplingParams(choice=TextChoice()), "choice"),
        (SamplingParams(json_schema="{"), "json_schema"),
        (SamplingParams(json_schema="true"), "json_schema"),
        (SamplingParams(json_schema=json.dumps(BANANA)), f"json_schema{INNER}"),
    ],
)
async def test_the_other_parameters_of_grpc_are_named(shared: Client, sampling: SamplingParams, field: str) -> None:
    assert await grpc_field(shared, chat(sampling=sampling)) == f"chat.sampling.{field}"


async def test_a_keyword_of_a_grpc_tool_is_named(shared: Client) -> None:
    asked = chat(tools=[offer("a"), offer("b", json.dumps(BANANA))])
    assert await grpc_field(shared, asked) == f"chat.tools[1].function.parameters{INNER}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": FORMAT}, f"response_format.json_schema.schema{INNER}"),
        ({"structured_outputs": {"json": BANANA}}, f"structured_outputs.json{INNER}"),
        ({"structured_outputs": {"json": json.dumps(BANANA)}}, f"structured_outputs.json{INNER}"),
        ({"structured_outputs": {"json": "[1"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"tools": [{"type": "function", "function": TOOL}]}, f"tools[0].function.parameters{INNER}"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five"),
        ({"logit_bias": {"-5": 1}}, "logit_bias.-5"),
    ],
)
async def test_a_keyword_of_a_chat_schema_is_named(shared: Client, fields: dict[str, Any], param: str) -> None:
    error = error_of(await shared.chat("hi", **fields))
    assert error["param"] == param
    assert error["message"].startswith(param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": BANANA}}}, f"text.format.schema{INNER}"),
        ({"tools": [{"type": "function", **TOOL}]}, f"tools[0].parameters{INNER}"),
    ],
)
async def test_a_keyword_of_a_schema_in_responses_is_named(shared: Client, fields: dict[str, Any], param: str) -> None:
    assert error_of(await respond(shared, "hi", **fields))["param"] == param


NOW = {"name": "now", "strict": True}
LATER = {"name": "later"}
SCHEMA = {"type": "object"}
DECODERS = [  # what the decoder blames, a request of each API, and the client's field
    ("messages", {}, "messages", {}, "input", {}, "chat.messages"),
    (
        "sampling.json_schema.properties.a.format",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        "response_format.json_schema.schema.properties.a.format",
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}},
        "text.format.schema.properties.a.format",
        {"sampling": SamplingParams(json_schema="{}", json_schema_strict=True)},
        "chat.sampling.json_schema.properties.a.format",
    ),
    (
        "tools[1].function.parameters.not",
        {"tools": [{"type": "function", "function": each} for each in (LATER, NOW)]},
        "tools[1].function.parameters.not",
        {"tools": [{"type": "function", **each} for each in (LATER, NOW)]},
        "tools[1].parameters.not",
        {"tools": [offer("later"), offer("now")]},
        "chat.tools[1].function.parameters.not",
    ),
]


@pytest.mark.parametrize(("blamed", "fields", "param", "response", "path", "asked", "field"), DECODERS)
async def test_what_the_decoder_blames_is_named_in_each_api(
    client: Client,
    mesh: FakeMesh,
    blamed: str,
    fields: dict[str, Any],
    param: str,
    response: dict[str, Any],
    path: str,
    asked: dict[str, Any],
    field: str,
) -> None:
    mesh.decoder.generate.error = InvalidRequest("this cannot be done", param=blamed)
    mesh.decoder.after = 0
    assert error_of(await client.chat("hi", **fields))["param"] == param
    assert error_of(await respond(client, "hi", **response))["param"] == path
    assert await grpc_field(client, chat(**asked)) == field


@pytest.mark.parametrize(
    ("given", "name", "text"),
    [("regex", "regex", "[a"), ("grammar", "grammar", "start: b"), ("json", "json_schema", "{}")],
)
async def test_the_field_of_structured_outputs_is_named(
    client: Client, mesh: FakeMesh, given: str, name: str, text: str
) -> None:
    mesh.decoder.generate.error = InvalidRequest("this is no grammar", param=f"sampling.{name}")
    mesh.decoder.after = 0
    error = error_of(await client.chat("hi", structured_outputs={given: text}))
    assert error["param"] == f"structured_outputs.{given}"


async def test_the_fields_of_a_bias_and_of_a_template_are_named(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.after = 0
    for blamed, param in (("sampling.logit_bias", "logit_bias"), ("tools", "tools"), (None, "messages")):
        mesh.decoder.generate.error = InvalidRequest("this cannot be done", param=blamed)
        assert error_of(await client.chat("hi", logit_bias={"9999": 1}))["param"] == param


async def test_a_tool_is_named_by_its_place_among_all_tools(client: Client, mesh: FakeMesh) -> None:
    """Even where the decoder sees only those that may be called."""
    mesh.decoder.generate.error = InvalidRequest("not cannot be enforced", param="tools[0].function.parameters.not")
    mesh.decoder.after = 0
    tools = [{"type": "function", "name": name} for name in ("first", "second", "third")]
    response = await respond(client, "hi", tools=tools, tool_choice=allowed("required", "third"))
    assert error_of(response)["param"] == "tools[2].parameters.not"


async def test_strictness_and_stop_strings_reach_the_decoder(client: Client, mesh: FakeMesh) -> None:
    strict = {"type": "function", "function": {"name": "now", "strict": True}}
    loose = {"type": "function", "function": {"name": "later", "strict": None}}
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    await client.chat("hi", tools=[strict, loose], response_format=format_, include_stop_str_in_output=True)
    await client.chat("hi", structured_outputs={"json": SCHEMA})
    tool = {"type": "function", "name": "now", "strict": True}
    text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    await respond(client, "hi", tools=[tool], text=text, include_stop_str_in_output=True)
    asked = chat(sampling=SamplingParams(json_schema="{}", json_schema_strict=True, include_stop_str_in_output=True))
    await ChatServiceStub(client.channel).Complete(CompleteRequest(chat=asked))
    requests = mesh.decoder.generate.requests
    assert [each.sampling.json_schema_strict for each in requests] == [True, False, True, True]
    assert [each.sampling.include_stop_str_in_output for each in requests] == [True, False, True, True]
    assert [[tool.function.strict for tool in each.tools] for each in requests] == [[True, False], [], [True], []]

"""Bodies and messages with too many, too long or too deep things: what the client sees, that nothing was made of them,
and that others are served while a large one is read."""

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import orjson
import pytest
import pytest_asyncio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from autoglm.common.errors import InvalidRequest
from autoglm.gateway import json_bounds, limits
from autoglm.gateway.json_bounds import check_values, num_values
from autoglm.gateway.message_bounds import check_fields
from autoglm.gateway.openai import types
from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart
from autoglm.v1.embeddings_pb2 import EmbedRequest
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    Function,
    FunctionCall,
    SamplingParams,
    TextChoice,
    Tool,
    ToolCall,
)

from ...waiting import NET_SECONDS
from .conftest import BUNDLE, Client, FakeMesh, Serve
from .samples import image_part, png
from .test_gateway_parsing import error_of

MANY = 70_000  # more values than a body may have
HI = [{"role": "user", "content": "hi"}]
ARRAY, STRING, OBJECT = "array_above_max_length", "string_above_max_length", "object_above_max_properties"
CONTEXT = "context_length_exceeded"


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def function(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def calls(count: int) -> list[dict[str, Any]]:
    made = [{"id": str(i), **function(arguments="{}")} for i in range(count)]
    return [*HI, {"role": "assistant", "tool_calls": made}]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


FORMAT = "response_format.json_schema.schema"
CHATS: dict[str, tuple[dict[str, Any], str, str]] = {
    "messages": ({"messages": HI * 2049}, "messages", ARRAY),
    "very many messages": ({"messages": HI * MANY}, "messages", ARRAY),
    "parts of a message": (
        {"messages": [{"role": "user", "content": [text("a")] * 4097}]},
        "messages[0].content",
        ARRAY,
    ),
    "very many parts": ({"messages": [{"role": "user", "content": [text("a")] * MANY}]}, "messages", ARRAY),
    "parts of all messages": ({"messages": [{"role": "user", "content": [text("a")] * 9}] * 500}, "messages", ARRAY),
    "calls of a message": ({"messages": calls(4097)}, "messages[1].tool_calls", ARRAY),
    "calls of all messages": ({"messages": calls(2050) + calls(2050)}, "messages", ARRAY),
    "tools": ({"tools": [function(f"f{i}") for i in range(129)]}, "tools", ARRAY),
    "very many tools": ({"tools": [function("f")] * MANY}, "tools", ARRAY),
    "properties of a tool": (
        {"tools": [function(parameters={"type": "object", "properties": {str(i): {} for i in range(MANY)}})]},
        "tools",
        ARRAY,
    ),
    "empty arrays in a tool": ({"tools": [function(parameters={"enum": [[]] * MANY})]}, "tools", ARRAY),
    "arrays in arrays in a tool": ({"tools": [function(parameters={"x": [[[0, 1]] * 9] * 9000})]}, "tools", ARRAY),
    "a description in a tool": (
        {"tools": [function(parameters={"type": "object", "description": "a" * 300_000})]},
        "tools[0].function.parameters",
        STRING,
    ),
    "levels of a tool": (
        {"tools": [function(parameters=nested(200))]},
        "tools[0].function.parameters",
        "invalid_request_error",
    ),
    "names of tools to choose from": (
        {
            "tools": [function()],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function()] * 129}},
        },
        "tool_choice.allowed_tools.tools",
        ARRAY,
    ),
    "a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "a" * 300_000}}}},
        FORMAT,
        STRING,
    ),
    "values of a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [0] * MANY}}}},
        "response_format",
        ARRAY,
    ),
    "values of a schema as text": (
        {"structured_outputs": {"json": '{"enum":[' + "0," * MANY + "0]}"}},
        "structured_outputs.json",
        ARRAY,
    ),
    "texts to choose from": ({"structured_outputs": {"choice": ["a"] * 4097}}, "structured_outputs.choice", ARRAY),
    "a text to choose": ({"structured_outputs": {"choice": ["a" * 300_000]}}, "structured_outputs.choice", STRING),
    "a regular expression": ({"structured_outputs": {"regex": "a" * 300_000}}, "structured_outputs.regex", STRING),
    "a grammar": ({"structured_outputs": {"grammar": "a" * 300_000}}, "structured_outputs.grammar", STRING),
    "stop strings": ({"stop": ["a"] * 5}, "stop", ARRAY),
    "very many stop strings": ({"stop": ["a"] * MANY}, "stop", ARRAY),
    "a stop string": ({"stop": "a" * 1025}, "stop[0]", STRING),
    "a second stop string": ({"stop": ["a", "b" * 1_000_000]}, "stop[1]", STRING),
    "metadata": ({"metadata": {str(i): "a" for i in range(17)}}, "metadata", OBJECT),
    "a value of metadata": ({"metadata": {"a": "b" * 513}}, "metadata.a", STRING),
    "biased tokens": ({"logit_bias": {str(i): 1 for i in range(4097)}}, "logit_bias", OBJECT),
    "very many biased tokens": ({"logit_bias": {str(i): 1 for i in range(MANY)}}, "logit_bias", ARRAY),
    "a user": ({"user": "a" * 513}, "user", STRING),
    "a cache key": ({"prompt_cache_key": "a" * 1_000_000}, "prompt_cache_key", STRING),
    "a field that is ignored": ({"unknown": [{}] * MANY}, "unknown", ARRAY),
}


def refusals(response: httpx.Response) -> tuple[int, str | None, str]:
    error = error_of(response)
    return response.status_code, error["param"], error["code"]


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_with_too_much(name: str, shared: Client) -> None:
    fields, param, code = CHATS[name]
    before = shared.mesh.calls
    assert refusals(await shared.chat("hi", **fields)) == (400, param, code)
    assert shared.mesh.calls == before


ITEM = {"type": "message", "role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESPONSES: dict[str, tuple[dict[str, Any], str, str]] = {
    "items": ({"input": [ITEM] * 2049}, "input", ARRAY),
    "very many items": ({"input": [ITEM] * MANY}, "input", ARRAY),
    "calls": ({"input": [CALL] * 2049}, "input", ARRAY),
    "parts": (
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * 4097}]},
        "input[0].content",
        ARRAY,
    ),
    "parts of all items": (
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * 9}] * 500},
        "input",
        ARRAY,
    ),
    "parts of an output": (
        {
            "input": [
                CALL,
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_text", "text": "a"}] * 4097,
                },
            ]
        },
        "input[1].output",
        ARRAY,
    ),
    "tools": ({"input": "hi", "tools": [{"type": "function", "name": f"f{i}"} for i in range(129)]}, "tools", ARRAY),
    "a schema": (
        {"input": "hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": "a" * 300_000}}}},
        "text.format.schema",
        STRING,
    ),
    "metadata": ({"input": "hi", "metadata": {str(i): "a" for i in range(17)}}, "metadata", OBJECT),
    "an identifier": ({"input": "hi", "safety_identifier": "a" * 513}, "safety_identifier", STRING),
}


@pytest.mark.parametrize("name", RESPONSES)
async def test_a_response_to_too_much(name: str, shared: Client) -> None:
    fields, param, code = RESPONSES[name]
    before = shared.mesh.calls
    response = await shared.http.post("/v1/responses", json={"model": BUNDLE, **fields})
    assert refusals(response) == (400, param, code)
    assert shared.mesh.calls == before


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ["a"] * 2049}, "input"),
        ({"input": ["a"] * MANY}, "input"),
        ({"messages": HI * 2049}, "messages"),
        ({"messages": [{"role": "user", "content": [text("a")] * 4097}]}, "messages[0].content"),
    ],
)
async def test_too_much_to_embed(fields: dict[str, Any], param: str, shared: Client) -> None:
    before = shared.mesh.calls
    response = await shared.http.post("/v1/embeddings", json={"model": BUNDLE, **fields})
    assert refusals(response) == (400, param, ARRAY)
    assert shared.mesh.calls == before


@pytest.mark.parametrize("field", ["prompt", "language", "keywords[]"])
async def test_a_long_field_of_a_form(field: str, shared: Client) -> None:
    before = shared.mesh.calls
    form = {"model": BUNDLE, field: "a" * (limits.MAX_FORM_FIELD_BYTES + 1)}
    response = await shared.http.post("/v1/audio/transcriptions", data=form, files={"file": b"x"})
    assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")
    assert shared.mesh.calls == before


@pytest.mark.parametrize("opening", ['{"a":', "[", '[{"a":['])
async def test_a_deep_body(opening: str, shared: Client) -> None:
    for depth in (2000, 200_000):
        body = '{"model":"m","messages":' + opening * depth
        response = await shared.http.post("/v1/chat/completions", content=body)
        assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")


async def test_a_body_with_too_many_values_is_not_parsed(shared: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types, "parse_json", lambda *_: pytest.fail("the body was parsed"))
    for fields in ({"messages": HI * MANY}, {"tools": [{}] * MANY}, {"x": [0] * MANY}, {"x": [[]] * MANY}):
        assert (await shared.chat("hi", **fields)).status_code == 400


async def test_a_text_full_of_commas_is_no_value(shared: Client) -> None:
    said = 'a,"b\\",[{}]\\' * 20_000
    assert (await shared.chat(said)).status_code == 200
    assert shared.mesh.decoder.generate.requests[-1].messages[0].parts[0].text == said


def values(value: Any) -> int:
    """Count as the definition says: every value but the first one of each array or object, and those."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else max(1, len(inner)) + sum(map(values, inner))


def documents(seed: int, count: int) -> Iterator[Any]:
    """Yield documents of strings full of marks, quotes and escapes, in arrays and objects."""
    choose = random.Random(seed)

    def string() -> str:
        return "".join(choose.choices('a"\\,[{}]\n你', k=choose.randrange(9)))

    def value(depth: int) -> Any:
        kind = choose.randrange(3) if depth < 4 else 0
        if kind == 0:
            return choose.choice([None, True, -1.5e3, string()])
        size = choose.randrange(4)
        if kind == 1:
            return [value(depth + 1) for _ in range(size)]
        return {string(): value(depth + 1) for _ in range(size)}

    yield from (value(0) for _ in range(count))


@pytest.mark.parametrize("step", [1, 2, 7, 65536])
def test_values_are_counted_whatever_the_strings_hold(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_bounds, "STEP", step)
    for number, document in enumerate(documents(seed=7, count=300)):
        said = json.dumps(document, ensure_ascii=bool(number % 2), indent=number % 3 or None)
        assert num_values(said) == values(document), said


@pytest.mark.parametrize("field", ["messages", "x,[{", 'a"b\\'])
async def test_the_field_with_the_values_is_named(field: str) -> None:
    body = orjson.dumps({"model": "m", "before": "[" * 100_000, field: [{"a": 0}] * MANY, "after": [0]})
    with pytest.raises(InvalidRequest) as caught:
        await check_values(bytearray(body))
    assert (caught.value.param, caught.value.code) == (field, ARRAY)


def said(*texts: str) -> ChatMessage:
    return ChatMessage(role=ROLE_USER, parts=[ContentPart(text=each) for each in texts])


def made(count: int) -> ChatMessage:
    return ChatMessage(role=ROLE_ASSISTANT, tool_calls=[ToolCall(id="c", function=FunctionCall(name="f"))] * count)


def tool(name: str = "f", parameters: str = "") -> Tool:
    return Tool(function=Function(name=name, parameters=parameters))


def sampling(**fields: Any) -> ChatRequest:
    return ChatRequest(messages=[said("hi")], sampling=SamplingParams(**fields))


GRPC: dict[str, tuple[ChatRequest, str, str]] = {
    "messages": (ChatRequest(messages=[said("a")] * 2049), "chat.messages", ARRAY),
    "very many messages": (ChatRequest(messages=[said("a")] * MANY), "chat.messages", ARRAY),
    "empty messages": (ChatRequest(messages=[ChatMessage()] * 900_000), "chat.messages", ARRAY),
    "parts of a message": (ChatRequest(messages=[said(*"a" * 4097)]), "chat.messages", ARRAY),
    "empty parts": (ChatRequest(messages=[ChatMessage(parts=[ContentPart()] * 900_000)]), "chat.messages", ARRAY),
    "parts of all messages": (ChatRequest(messages=[said(*"a" * 9)] * 500), "chat.messages", ARRAY),
    "calls": (ChatRequest(messages=[said("hi"), made(4097)]), "chat.messages", ARRAY),
    "empty results": (ChatRequest(messages=[ChatMessage(role=ROLE_TOOL)] * 2049), "chat.messages", ARRAY),
    "tools": (ChatRequest(messages=[said("hi")], tools=[tool(f"f{i}") for i in range(129)]), "chat.tools", ARRAY),
    "empty tools": (ChatRequest(messages=[said("hi")], tools=[Tool()] * 900_000), "chat.tools", ARRAY),
    "the parameters of a tool": (
        ChatRequest(messages=[said("hi")], tools=[tool(parameters='{"description":"' + "a" * 300_000 + '"}')]),
        "chat.tools[0].function.parameters",
        STRING,
    ),
    "values of tools": (
        ChatRequest(
            messages=[said("hi")], tools=[tool(f"f{i}", '{"enum":[' + "0," * 40_000 + "0]}") for i in range(3)]
        ),
        "chat.tools[1].function.parameters",
        ARRAY,
    ),
    "values of a schema": (
        sampling(json_schema='{"enum":[' + "[]," * MANY + "0]}"),
        "chat.sampling.json_schema",
        ARRAY,
    ),
    "a schema": (sampling(json_schema='{"const":"' + "a" * 300_000 + '"}'), "chat.sampling.json_schema", STRING),
    "a regular expression": (sampling(regex="a" * 300_000), "chat.sampling.regex", STRING),
    "a grammar": (sampling(grammar="a" * 300_000), "chat.sampling.grammar", STRING),
    "texts to choose from": (sampling(choice=TextChoice(texts=["a"] * 4097)), "chat.sampling.choice", ARRAY),
    "a text to choose": (sampling(choice=TextChoice(texts=["a" * 300_000])), "chat.sampling.choice", STRING),
    "stop strings": (sampling(stop=["a"] * 5), "chat.sampling.stop", ARRAY),
    "very many stop strings": (sampling(stop=["a"] * MANY), "chat.sampling", ARRAY),
    "a stop string": (sampling(stop=["a", "b" * 1025]), "chat.sampling.stop[1]", STRING),
    "biased tokens": (sampling(logit_bias=dict.fromkeys(range(4097), 1.0)), "chat.sampling.logit_bias", ARRAY),
    "very many biased tokens": (
        sampling(logit_bias=dict.fromkeys(range(MANY), 1.0)),
        "chat.sampling.logit_bias",
        ARRAY,
    ),
}


async def refused(client: Client, method: str, request: CompleteRequest | EmbedRequest) -> tuple[str, str, str]:
    """Return the reason, the field and the code that a call is refused with."""
    stub: Any = client.channel.unary_unary(f"/autoglm.v1.{method}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(request.SerializeToString(), timeout=NET_SECONDS)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, bad):
            detail.Unpack(message)
    return info.reason, bad.field_violations[0].field, info.metadata["code"]


@pytest.mark.parametrize("name", GRPC)
async def test_a_grpc_chat_with_too_much(name: str, shared: Client) -> None:
    chat, param, code = GRPC[name]
    before = shared.mesh.calls
    found = await refused(shared, "ChatService/Complete", CompleteRequest(chat=chat))
    assert found == ("INVALID_REQUEST_ERROR", param, code)
    assert shared.mesh.calls == before


@pytest.mark.parametrize("parts", [[ContentPart(text="a")] * 2049, [ContentPart()] * 900_000])
async def test_too_much_to_embed_over_grpc(parts: list[ContentPart], shared: Client) -> None:
    before = shared.mesh.calls
    found = await refused(shared, "EmbeddingService/Embed", EmbedRequest(model=BUNDLE, input=parts))
    assert found == ("INVALID_REQUEST_ERROR", "input", ARRAY)
    assert shared.mesh.calls == before


def test_a_message_with_few_fields_may_be_large() -> None:
    chat = ChatRequest(messages=[said("a" * 1_000_000, "你" * 1_000_000)] * 9, tools=[tool("f", "{}")] * 128)
    check_fields(CompleteRequest(chat=chat).SerializeToString(), CompleteRequest.DESCRIPTOR)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\xff\xff\xff\xff\x0f" + b"a" * 200_000,  # a length beyond the end
        b"\xff" * 200_000,  # a number without an end
        b"\x0a\x80\x80\x0c\x12" + b"\xff" * 200_000,
        b"\x0f" * 200_000,  # a wire type that is not there
        b"\x09" * 200_000 + b"\x09",  # cut off in the last field
    ],
)
def test_a_large_message_that_is_none_is_refused_before_it_is_parsed(data: bytes) -> None:
    with pytest.raises(DecodeError):
        check_fields(data, CompleteRequest.DESCRIPTOR)
    with pytest.raises(DecodeError):
        CompleteRequest.FromString(data)


LONG = 5000  # bytes of text, more than the fake decoder's context can hold below
TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "a message": ({"messages": [{"role": "user", "content": "a" * LONG}]}, "messages"),
    "characters of several bytes": ({"messages": [{"role": "user", "content": "好" * (LONG // 3)}]}, "messages"),
    "a system prompt": ({"messages": [{"role": "system", "content": "a" * LONG}, *HI]}, "messages"),
    "messages together": ({"messages": [{"role": "user", "content": "a" * 100}] * 50}, "messages"),
    "parts together": ({"messages": [{"role": "user", "content": [text("a" * 100)] * 50}]}, "messages"),
    "the arguments of a call": (
        {
            "messages": [
                *HI,
                {"role": "assistant", "tool_calls": [{"id": "c", **function(arguments="[" * LONG)}]},
                {"role": "tool", "tool_call_id": "c", "content": "ok"},
            ]
        },
        "messages",
    ),
    "the name of a call": (
        {"messages": [*HI, {"role": "assistant", "tool_calls": [{"id": "c", **function("f" * LONG)}]}]},
        "messages",
    ),
    "the description of a tool": ({"tools": [function(description="a" * LONG)]}, "tools"),
    "the parameters of a tool": ({"tools": [function(parameters={"description": "a" * LONG})]}, "tools"),
}


@pytest_asyncio.fixture(loop_scope="session")
async def narrow(serve: Serve, mesh: FakeMesh) -> Client:
    """A gateway whose decoder's context holds few bytes."""
    mesh.decoder.max_text_bytes, mesh.decoder.context_length = 4000, 200
    return await serve()


async def test_text_that_cannot_fit_is_not_sent_to_the_decoder(narrow: Client, mesh: FakeMesh) -> None:
    for name, (fields, param) in TEXTS.items():
        for stream in (False, True):
            response = await narrow.chat("hi", stream=stream, **fields)
            assert refusals(response) == (400, param, CONTEXT), name
            assert "200 tokens" in error_of(response)["message"]
    assert mesh.calls == 0


@pytest.mark.parametrize("fields", [{"input": "a" * LONG}, {"input": "hi", "instructions": "a" * LONG}])
async def test_a_response_to_text_that_cannot_fit(fields: dict[str, Any], narrow: Client, mesh: FakeMesh) -> None:
    response = await narrow.http.post("/v1/responses", json={"model": BUNDLE, "stream": True, **fields})
    assert refusals(response) == (400, "input", CONTEXT)
    assert mesh.calls == 0


async def test_text_that_cannot_be_embedded_is_not_sent(narrow: Client, mesh: FakeMesh) -> None:
    long = "a" * LONG
    for fields, param in (
        ({"input": long}, "input"),
        ({"input": ["a", long, long]}, "input[1]"),
        ({"messages": [{"role": "user", "content": long}]}, "messages"),
    ):
        response = await narrow.http.post("/v1/embeddings", json={"model": BUNDLE, **fields})
        assert refusals(response) == (400, param, CONTEXT)
    parts = [ContentPart(text="a"), ContentPart(text=long)]
    found = await refused(narrow, "EmbeddingService/Embed", EmbedRequest(input=parts))
    assert found == ("INVALID_REQUEST_ERROR", "input[1]", CONTEXT)
    assert mesh.calls == 0


async def test_text_that_cannot_fit_over_grpc(narrow: Client, mesh: FakeMesh) -> None:
    for chat, param in (
        (ChatRequest(messages=[said("a" * LONG)]), "chat.messages"),
        (ChatRequest(messages=[said(*["a" * 100] * 50)]), "chat.messages"),
        (ChatRequest(messages=[said("hi")], tools=[tool(parameters='{"title":"' + "a" * LONG + '"}')]), "chat.tools"),
    ):
        found = await refused(narrow, "ChatService/Complete", CompleteRequest(chat=chat))
        assert found == ("INVALID_REQUEST_ERROR", param, CONTEXT)
    assert mesh.calls == 0


async def test_media_do_not_count_as_text(narrow: Client) -> None:
    assert (await narrow.chat([image_part(png(64, 64)), text("hi")])).status_code == 200


async def test_what_a_conversation_of_an_agent_has_is_taken(shared: Client) -> None:
    turns = [*HI, {"role": "assistant", "content": "ok"}] * 1000
    tools = [function(f"f{i}", parameters={"type": "object", "properties": {"x": {}}}) for i in range(128)]
    fields = {"messages": [*turns, *HI], "tools": tools, "metadata": {str(i): "v" * 512 for i in range(16)}}
    assert (await shared.chat("hi", stop=["a" * 1024] * 4, **fields)).status_code == 200


class Blocker:
    """Makes a function wait in its thread until it may go on."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.reached, self.release, self._work = threading.Event(), threading.Event(), work

    def __call__(self, *given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.release.wait(NET_SECONDS)
        return self._work(*given)


ESCAPED = "data:image/png;base64," + quote("/" * 200_000, safe="")
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "json": ("autoglm.gateway.openai.types.parse_json", {"content": "a" * 200_000}),
    "escapes": (
        "autoglm.gateway.media.verify._unescaped",
        {"content": [{"type": "image_url", "image_url": {"url": ESCAPED}}]},
    ),
    "tools": (
        "autoglm.gateway.tool_checks.read_schema",
        {"content": "hi", "tools": [function(parameters={"type": "object", "title": "a" * 200_000})]},
    ),
}


def blocked(name: str, monkeypatch: pytest.MonkeyPatch) -> Blocker:
    module, _, attribute = name.rpartition(".")
    blocker = Blocker(getattr(__import__(module, fromlist=[attribute]), attribute))
    monkeypatch.setattr(name, blocker)
    return blocker


@pytest.mark.parametrize("name", LARGE)
async def test_others_are_answered_while_a_large_body_is_read(
    name: str, shared: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, fields = LARGE[name]
    blocker = blocked(target, monkeypatch)
    large = asyncio.create_task(shared.chat(**fields))
    assert await asyncio.to_thread(blocker.reached.wait, NET_SECONDS)
    assert (await shared.chat("hi")).status_code == 200
    assert not large.done()
    blocker.release.set()
    assert (await large).status_code in (200, 415)


async def test_a_large_body_is_left_at_its_deadline(shared: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = blocked("autoglm.gateway.openai.types.parse_json", monkeypatch)
    body = {"model": BUNDLE, "messages": [{"role": "user", "content": "a" * 200_000}]}
    response = await shared.http.post("/v1/chat/completions", json=body, headers={"x-request-timeout": "0.2"})
    blocker.release.set()
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("target", ["grpc_calls.check_fields", "servicer.to_conversation"])
async def test_others_are_answered_while_a_large_message_is_read(
    target: str, shared: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = blocked(f"autoglm.gateway.{target}", monkeypatch)
    stub: Any = shared.channel.unary_unary("/autoglm.v1.ChatService/Complete")
    request = CompleteRequest(chat=ChatRequest(messages=[said("a" * 200_000)]))
    large = asyncio.ensure_future(stub(request.SerializeToString(), timeout=NET_SECONDS))
    assert await asyncio.to_thread(blocker.reached.wait, NET_SECONDS)
    small = CompleteRequest(chat=ChatRequest(messages=[said("hi")]))
    assert await stub(small.SerializeToString(), timeout=NET_SECONDS)
    assert not large.done()
    blocker.release.set()
    assert await large

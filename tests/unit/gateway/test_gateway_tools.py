"""Tools at both servers: what reaches the decoder, what comes back, and each way they can be wrong."""

import json
from typing import Any

import grpc
import openai
import pytest

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import (
    FINISH_REASON_TOOL_CALLS,
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    TOOL_CHOICE_MODE_AUTO,
    TOOL_CHOICE_MODE_REQUIRED,
    Function,
    FunctionCall,
    Tool,
    ToolCall,
    ToolChoice,
)

from .conftest import BUNDLE, Client, FakeMesh
from .test_gateway_answers import events, field_of
from .test_gateway_parsing import error_of

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}
NAMED = {"type": "function", "function": {"name": "now"}}
CALLS = [
    ToolCall(id="call_1", function=FunctionCall(name="weather", arguments='{"city": "Paris"}')),
    ToolCall(id="call_2", function=FunctionCall(name="now", arguments="{}")),
]
TURN: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
    {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]}  # fmt: skip
HI = {"role": "user", "content": "hi"}


DEEP_TEXT = '{"items":' * 300 + "{}" + "}" * 300
DEEP = json.loads(DEEP_TEXT)


def changed(turn: dict[str, Any], **function: Any) -> dict[str, Any]:
    """Return `turn` with another function in its first call."""
    first, *rest = turn["tool_calls"]
    return {**turn, "tool_calls": [{**first, "function": {**first["function"], **function}}, *rest]}


async def test_tools_reach_the_decoder(client: Client, mesh: FakeMesh) -> None:
    results = [{"role": "tool", "tool_call_id": f"call_{n}", "content": text} for n, text in ((2, "noon"), (1, ""))]
    asked = {"messages": [HI, TURN, *results], "tools": [WEATHER, NOW], "tool_choice": NAMED}
    response = await client.chat("", **asked, parallel_tool_calls=False)
    assert response.status_code == 200
    (request,) = mesh.decoder.generate.requests
    weather, now = request.tools
    assert (weather.function.name, weather.function.description) == ("weather", "of a city")
    assert json.loads(weather.function.parameters) == SCHEMA
    assert (now.function.name, now.function.parameters) == ("now", "")
    assert request.tool_choice == ToolChoice(function="now")
    assert request.parallel_tool_calls is False
    _, turn, nothing, noon = request.messages  # in the order of the calls
    assert (turn.role, list(turn.tool_calls), len(turn.parts)) == (ROLE_ASSISTANT, CALLS, 0)
    assert (noon.role, noon.parts[0].text, nothing.parts[0].text) == (ROLE_TOOL, "noon", "")


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, None),
        ("auto", ToolChoice(mode=TOOL_CHOICE_MODE_AUTO)),
        ("required", ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED)),
    ],
)
async def test_choices(client: Client, mesh: FakeMesh, choice: str | None, sent: ToolChoice | None) -> None:
    assert (await client.chat("hi", tools=[NOW], tool_choice=choice)).status_code == 200
    (request,) = mesh.decoder.generate.requests
    assert (request.tool_choice if request.HasField("tool_choice") else None) == sent
    assert request.parallel_tool_calls


async def test_tools_that_may_not_be_used_are_not_offered(client: Client, mesh: FakeMesh) -> None:
    assert (await client.chat("hi", tools=[NOW], tool_choice="none")).status_code == 200
    (request,) = mesh.decoder.generate.requests
    assert (list(request.tools), request.HasField("tool_choice")) == ([], False)


async def test_calls_in_a_whole_answer(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.calls = CALLS
    (choice,) = (await client.chat("hi", tools=[NOW], seed=7)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {**TURN, "content": "你好, AutoGLM 7", "refusal": None}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
async def test_a_format_is_of_words_and_excludes_no_call(client: Client, mesh: FakeMesh, choice: Any) -> None:
    """Instructor sends both: the format is the text's, and an answer that has to be a call has no text."""
    mesh.decoder.calls = CALLS[1:]
    response = await client.chat("hi", tools=[NOW], tool_choice=choice, response_format={"type": "json_object"})
    assert response.json()["choices"][0]["finish_reason"] == "tool_calls"


async def test_calls_in_a_stream(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.calls = CALLS
    response = await client.chat("hi", tools=[NOW], stream=True)
    chunks = [json.loads(event)["choices"][0] for event in events(response.text)[:-1]]
    assert [chunk["delta"]["tool_calls"][0] for chunk in chunks if "tool_calls" in chunk["delta"]] == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city": "Paris"}'}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]


async def test_openai_python_adds_up_a_stream_of_two_choices(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.calls = CALLS
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="EMPTY", max_retries=0) as peer:
        asked: Any = {"model": BUNDLE, "messages": [HI], "tools": [WEATHER, NOW], "n": 2}
        async with peer.chat.completions.stream(**asked) as stream:
            whole = await stream.get_final_completion()
    for choice in whole.choices:
        assert choice.finish_reason == "tool_calls"
        assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()] == [
            (call.id, call.function.name, call.function.arguments) for call in CALLS
        ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a" * 65}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools[0].function.name"),
        ({"tools": [NOW, WEATHER, NOW]}, "tools[2].function.name"),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": 1}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "later"}}},
            "tool_choice",
        ),
        ({"tools": [NOW], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].tool_call_id"),
        ({"messages": [HI, {"role": "tool", "content": "hi", "tool_call_id": "x"}]}, "messages[1].tool_call_id"),
        (
            {"messages": [TURN, *[{"role": "tool", "content": "hi", "tool_call_id": "call_1"}] * 2]},
            "messages[2].tool_call_id",
        ),
        ({"messages": [{**TURN, "role": "user"}]}, "messages[0].tool_calls"),
        ({"messages": [changed(TURN, arguments={})]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [changed(TURN, name=None)]}, "messages[0].tool_calls[0].function.name"),
    ],
)
async def test_a_wrong_tool_is_named(shared: Client, fields: dict[str, Any], param: str) -> None:
    before = shared.mesh.calls
    response = await shared.chat("hi", **fields)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert shared.mesh.calls == before


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        (DEEP, ""),
        ({"type": "string"}, ".type"),
        ({"type": ["array", "null"]}, ".type"),
        ({"type": "dict"}, ".type"),
        ({"properties": []}, ".properties"),
        ({"properties": {"a": 1}}, ".properties.a"),
        ({"properties": {"a": {"pattern": 1}}}, ".properties.a.pattern"),
        ({"properties": {"a": {"anyOf": [{}, {"type": "text"}]}}}, ".properties.a.anyOf[1].type"),
        ({"properties": {"a": {"enum": "a"}}}, ".properties.a.enum"),
        ({"required": "a"}, ".required"),
    ],
)
async def test_a_schema_that_is_none_is_named(shared: Client, schema: Any, keyword: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": False}}
    response = await shared.chat("hi", tools=[tool])
    assert (response.status_code, error_of(response)["param"]) == (400, f"tools[0].function.parameters{keyword}")


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["object", "null"], "properties": {"a": True, "b": False}},
        {"type": "object", "required": ["elsewhere"]},
        {"properties": {"<a>": {"format": "idn-hostname"}}, "x-order": 1},
        {"properties": {"a": {"$ref": "https://example.com/a.json"}, "b": {"$ref": "#/nowhere"}}},
        {"properties": {"a": {"items": [{"type": "string"}], "additionalItems": False}}},
        {"properties": {"a": {"minimum": 0, "exclusiveMinimum": True}}},
        {"$schema": "https://example.com/own", "anyOf": [{"required": ["a"]}, {"not": {}}]},
    ],
)
async def test_any_other_schema_describes_a_tool(shared: Client, schema: Any) -> None:
    """Unknown keywords and formats are legal; what can be enforced of them is the decoder's to say."""
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    before = len(shared.mesh.decoder.generate.requests)
    for choice in (None, "auto", "required"):
        assert (await shared.chat("hi", tools=[tool], tool_choice=choice)).status_code == 200
    assert {json.dumps(json.loads(request.tools[0].function.parameters)) for request in
            shared.mesh.decoder.generate.requests[before:]} == {json.dumps(schema)}  # fmt: skip


def chat(*messages: ChatMessage, **fields: Any) -> ChatRequest:
    first = ChatMessage(role=ROLE_USER, parts=[ContentPart(text="hi")])
    return ChatRequest(messages=[first, *messages], **fields)


def offer(name: str, parameters: str = "") -> Tool:
    return Tool(function=Function(name=name, parameters=parameters))


async def test_grpc_takes_tools_and_gives_calls(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.calls = CALLS
    asked = chat(
        ChatMessage(role=ROLE_ASSISTANT, tool_calls=CALLS),
        ChatMessage(role=ROLE_TOOL, tool_call_id="call_1", parts=[ContentPart(text="sunny")]),
        tools=[offer("now")],
        tool_choice=ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED),
        parallel_tool_calls=False,
    )
    stub = ChatServiceStub(client.channel)
    (choice,) = (await stub.Complete(CompleteRequest(chat=asked))).choices
    steps = [step.delta async for step in stub.StreamComplete(StreamCompleteRequest(chat=asked))]
    assert list(choice.tool_calls) == [call for step in steps for call in step.tool_calls] == CALLS
    assert choice.finish_reason == steps[-1].finish_reason == FINISH_REASON_TOOL_CALLS
    request = mesh.decoder.generate.requests[0]
    assert (list(request.tools), request.tool_choice) == ([offer("now")], asked.tool_choice)
    assert not request.parallel_tool_calls
    assert (request.messages[1].tool_calls[0], request.messages[2].role) == (CALLS[0], ROLE_TOOL)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (chat(tools=[Tool()]), "chat.tools[0].function.name"),
        (chat(tools=[offer("a"), offer("a")]), "chat.tools[1].function.name"),
        (chat(tools=[offer("a", "{")]), "chat.tools[0].function.parameters"),
        (chat(tool_choice=ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED)), "chat.tool_choice"),
        (chat(tools=[offer("a")], tool_choice=ToolChoice(function="b")), "chat.tool_choice"),
        (chat(tools=[offer("a")], tool_choice=ToolChoice(mode=9)), "chat.tool_choice"),  # type: ignore[arg-type]
        (chat(ChatMessage(role=ROLE_TOOL)), "chat.messages[1].tool_call_id"),
        (chat(ChatMessage(role=ROLE_USER, tool_calls=CALLS)), "chat.messages[1].tool_calls"),
    ],
)
async def test_grpc_names_the_wrong_tool(shared: Client, asked: ChatRequest, field: str) -> None:
    stub = ChatServiceStub(shared.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Complete(CompleteRequest(chat=asked))
    assert field_of(caught.value) == field

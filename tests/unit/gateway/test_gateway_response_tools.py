"""Functions in OpenAI's Responses API: what reaches the decoder, what comes back, and each way they can be wrong."""

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from autoglm.common.errors import UpstreamUnavailable
from autoglm.gateway.openai.responses.render import ResponsesRenderer
from autoglm.gateway.openai.responses.request import ResponseRequest
from autoglm.gateway.pipeline import Step
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    TOOL_CHOICE_MODE_AUTO,
    TOOL_CHOICE_MODE_REQUIRED,
    ToolChoice,
)

from .conftest import BUNDLE, Client, FakeMesh
from .test_gateway_parsing import error_of
from .test_gateway_responses import events, respond
from .test_gateway_tools import CALLS, DEEP, SCHEMA

WEATHER = {"type": "function", "name": "weather", "description": "of a city", "parameters": SCHEMA, "strict": True}
NOW = {"type": "function", "name": "now"}
FLAT = [WEATHER, NOW]
NAMED = {"type": "function", "name": "now"}
SEARCH = {"type": "web_search"}
HI = {"role": "user", "content": "hi"}
ITEMS: list[dict[str, Any]] = [
    {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Paris"}'},
    {"type": "function_call", "call_id": "call_2", "name": "now", "arguments": "{}"},
]


def output(call_id: str, said: Any = "sunny") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": said}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}


async def test_tools_reach_the_decoder(client: Client, mesh: FakeMesh) -> None:
    results = [output("call_2", [{"type": "input_text", "text": "noon"}]), output("call_1", "")]
    fields = {"tools": FLAT, "tool_choice": NAMED, "parallel_tool_calls": False}
    response = await respond(client, [HI, *ITEMS, *results], **fields)
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
    ("choice", "names", "sent"),
    [
        (None, ["weather", "now"], None),
        ("auto", ["weather", "now"], ToolChoice(mode=TOOL_CHOICE_MODE_AUTO)),
        ("required", ["weather", "now"], ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED)),
        ("none", [], None),
        (allowed("auto", "now"), ["now"], ToolChoice(mode=TOOL_CHOICE_MODE_AUTO)),
        (allowed("required", "now", "weather"), ["weather", "now"], ToolChoice(mode=TOOL_CHOICE_MODE_REQUIRED)),
    ],
)
async def test_choices(client: Client, mesh: FakeMesh, choice: Any, names: list[str], sent: ToolChoice | None) -> None:
    body = (await respond(client, "hi", tools=FLAT, tool_choice=choice)).json()
    (request,) = mesh.decoder.generate.requests
    assert [tool.function.name for tool in request.tools] == names
    assert (request.tool_choice if request.HasField("tool_choice") else None) == sent
    assert request.parallel_tool_calls
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (choice or "auto", True)
    assert body["tools"] == [WEATHER, {**NOW, "description": None, "parameters": None, "strict": None}]


async def test_calls_in_a_whole_answer(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.calls = CALLS
    body = (await respond(client, "hi", tools=FLAT, parallel_tool_calls=False)).json()
    reasoning, message, *calls = body["output"]
    assert (body["status"], body["parallel_tool_calls"]) == ("completed", False)
    assert (reasoning["type"], message["content"][0]["text"]) == ("reasoning", "你好, AutoGLM 0")
    assert [{**call, "id": ""} for call in calls] == [{**item, "id": "", "status": "completed"} for item in ITEMS]
    assert all(call["id"].startswith("fc_") for call in calls)
    assert len({item["id"] for item in body["output"]}) == 4


async def test_calls_in_a_stream_have_their_events_alone(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.calls, mesh.decoder.pieces, mesh.decoder.reasons = CALLS, [], False
    found = events((await respond(client, "hi", tools=FLAT, stream=True)).text)
    arguments = "response.function_call_arguments"
    call = ["response.output_item.added", f"{arguments}.delta", f"{arguments}.done", "response.output_item.done"]
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        *call,
        *call,
        "response.completed",
    ]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["output_index"] for event in found[2:-1]] == [0, 0, 0, 0, 1, 1, 1, 1]
    for (added, delta, done, ended), item in zip(
        (found[2:6], found[6:10]), found[-1]["response"]["output"], strict=True
    ):
        assert added["item"] == {**item, "arguments": "", "status": "in_progress"}
        assert delta["item_id"] == done["item_id"] == item["id"]
        assert delta["delta"] == done["arguments"] == item["arguments"]
        assert ended["item"] == item


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_goes_back_as_it_came(client: Client, mesh: FakeMesh, stream: bool) -> None:
    mesh.decoder.calls = CALLS
    response = await respond(client, "hi", tools=FLAT, stream=stream)
    earlier = (events(response.text)[-1]["response"] if stream else response.json())["output"]
    again = await respond(client, [HI, *earlier, output("call_1"), output("call_2"), HI], tools=FLAT)
    assert again.status_code == 200
    _, turn, *_ = messages = mesh.decoder.generate.requests[-1].messages
    assert [message.role for message in messages] == [ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL, ROLE_TOOL, ROLE_USER]
    assert ([part.text for part in turn.parts], list(turn.tool_calls)) == (["你好, AutoGLM 0"], CALLS)


async def test_what_is_said_beside_a_call_is_of_its_turn(client: Client, mesh: FakeMesh) -> None:
    said = {"role": "assistant", "content": ""}
    first, second = ITEMS
    await respond(client, [HI, said, first, {"role": "assistant", "content": "so"}, output("call_1"), second])
    _, turn, _, later = mesh.decoder.generate.requests[-1].messages
    assert ([part.text for part in turn.parts], list(turn.tool_calls)) == (["", "so"], CALLS[:1])
    assert list(later.tool_calls) == CALLS[1:]


def test_text_behind_a_call_is_an_item_of_its_own() -> None:
    echo = ResponseRequest.model_validate({"model": "m", "input": "hi"}).echo()
    answer = ResponsesRenderer("r", "m", echo)
    found = events(b"".join(map(answer.chunk, [
        Step(0, text="a"), Step(0, text="b", calls=CALLS[:1]), Step(0, text="c"),
    ])).decode())  # fmt: skip
    *_, failed, _ = events(answer.failed(UpstreamUnavailable("the engine stopped")).decode())
    items = failed["response"]["output"]
    assert [(item["type"], item["status"]) for item in items] == [
        ("message", "completed"),
        ("function_call", "completed"),
        ("message", "incomplete"),
    ]
    assert [item["content"][0]["text"] for item in (items[0], items[2])] == ["ab", "c"]
    assert len({item["id"] for item in items}) == 3
    assert [event["item"] for event in found if event["type"] == "response.output_item.done"] == items[:2]


class Weather(BaseModel):
    """What it is like outside."""

    city: str


async def test_openai_python_parses_calls(client: Client, mesh: FakeMesh) -> None:
    mesh.decoder.calls, mesh.decoder.reasons = CALLS[:1], False
    asked: Any = {"model": BUNDLE, "input": "hi", "tools": [openai.pydantic_function_tool(Weather, name="weather")]}
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="EMPTY", max_retries=0) as peer:
        whole = await peer.responses.parse(**asked)
        async with peer.responses.stream(**asked) as stream:
            streamed = await stream.get_final_response()
    for response in (whole, streamed):
        message, call = response.output
        assert (message.type, response.output_text) == ("message", "你好, AutoGLM 0")
        assert call.type == "function_call"
        assert (call.call_id, call.parsed_arguments) == ("call_1", Weather(city="Paris"))


async def test_a_format_beside_tools(client: Client, mesh: FakeMesh) -> None:
    fields = {"tools": FLAT, "text": {"format": {"type": "json_object"}}}
    assert (await respond(client, "hi", **fields)).status_code == 200
    (request,) = mesh.decoder.generate.requests
    assert (len(request.tools), json.loads(request.sampling.json_schema)) == (2, {"type": "object"})
    mesh.decoder.calls = CALLS[:1]
    forced = (await respond(client, "hi", tool_choice="required", **fields)).json()
    assert forced["output"][-1]["type"] == "function_call"


@pytest.mark.parametrize(
    ("given", "fields", "param"),
    [
        ("hi", {"tools": [1]}, "tools[0]"),
        ("hi", {"tools": [NOW, SEARCH]}, "tools[1].type"),
        ("hi", {"tools": [{"type": "function"}]}, "tools[0].name"),
        ("hi", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ("hi", {"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ("hi", {"tools": [NOW, WEATHER, NOW]}, "tools[2].name"),
        ("hi", {"tools": [{"type": "function", "name": f"f{n}"} for n in range(129)]}, "tools"),
        ("hi", {"tools": [{**NOW, "parameters": {"type": "string"}}]}, "tools[0].parameters.type"),
        ("hi", {"tools": [{**NOW, "parameters": DEEP}]}, "tools[0].parameters"),
        ("hi", {"tools": [NOW], "tool_choice": "any"}, "tool_choice"),
        ("hi", {"tools": [NOW], "tool_choice": 1}, "tool_choice"),
        ("hi", {"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ("hi", {"tools": [NOW], "tool_choice": {"type": "function", "name": "later"}}, "tool_choice"),
        ("hi", {"tools": [NOW], "tool_choice": SEARCH}, "tool_choice.type"),
        ("hi", {"tools": [NOW], "tool_choice": allowed("auto")}, "tool_choice.tools"),
        ("hi", {"tools": [NOW], "tool_choice": allowed("auto", "now", "later")}, "tool_choice.tools"),
        ("hi", {"tools": [NOW], "tool_choice": allowed("none", "now")}, "tool_choice.mode"),
        ("hi", {"tools": [NOW], "tool_choice": {**allowed("auto"), "tools": [SEARCH]}}, "tool_choice.tools[0].type"),
        ("hi", {"tool_choice": allowed("auto", "now")}, "tool_choice.tools"),
        ("hi", {"tool_choice": allowed("required", "now")}, "tool_choice"),
        ("hi", {"tools": [NOW], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ([{**ITEMS[0], "call_id": None}], {}, "input[0].call_id"),
        ([HI, {**ITEMS[0], "name": 1}], {}, "input[1].name"),
        ([{**ITEMS[0], "arguments": {}}], {}, "input[0].arguments"),
        ([HI, output("call_1")], {}, "input[1].call_id"),
        ([output("call_1"), ITEMS[0]], {}, "input[0].call_id"),
        ([*ITEMS, output("call_1"), output("call_1")], {}, "input[3].call_id"),
        ([*ITEMS, output("call_1", 5)], {}, "input[2].output"),
        ([*ITEMS, output("call_1", [{"type": "input_file"}])], {}, "input[2].output[0].type"),
    ],
)
async def test_a_wrong_tool_is_named(shared: Client, given: Any, fields: dict[str, Any], param: str) -> None:
    before = shared.mesh.calls
    response = await respond(shared, given, **fields)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert shared.mesh.calls == before

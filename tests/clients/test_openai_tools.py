"""Function calling as published clients do it: openai-python, gRPC and LangChain. The bundle was never trained for it;
what has to be a call is one all the same, by a grammar."""

import json
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import grpc
import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import SecretStr

from autoglm.v1.chat_pb2 import ChatMessage, ChatRequest, CompleteRequest, ContentPart, StreamCompleteRequest
from autoglm.v1.chat_pb2_grpc import ChatServiceStub
from autoglm.v1.generation_pb2 import (
    FINISH_REASON_TOOL_CALLS,
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    Function,
    SamplingParams,
    Tool,
    ToolChoice,
)

from ..asking import MODEL

POINT = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "minItems": 2, "maxItems": 2}
TAP = {"type": "object", "properties": {"point": POINT}, "required": ["point"]}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "北京"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "tap", "description": "Tap the screen.", "parameters": TAP}},
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}},
]
FLAT = [{"type": "function", **tool["function"]} for tool in TOOLS]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
QUESTION: Any = {"role": "user", "content": "How is the weather in Paris?"}


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:
        yield client


def check(name: str, arguments: str) -> None:
    """Fail the test unless a call fits its schema."""
    given = json.loads(arguments)
    if name == "tap":
        x, y = given.pop("point")
        assert 0 <= x <= 999
        assert 0 <= y <= 999
    else:
        assert name == "weather"
        assert given.pop("city") in ("Paris", "北京")
        assert given.pop("days") <= 9
    assert given == {}


@pytest.mark.parametrize("thinking", [None, True])
def test_a_call_can_be_required(client: openai.OpenAI, thinking: bool | None) -> None:
    extra = {"enable_thinking": thinking, "return_reasoning": True}
    answer = client.chat.completions.create(
        model=MODEL, messages=[QUESTION], tools=TOOLS, tool_choice="required", n=2, seed=1, extra_body=extra,
        max_tokens=400,
    )  # fmt: skip
    for choice in answer.choices:
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert choice.message.tool_calls
        assert bool((choice.message.model_extra or {}).get("reasoning_content")) == bool(thinking)
        for call in choice.message.tool_calls:
            assert call.type == "function"
            assert call.id.startswith("call_")
            check(call.function.name, call.function.arguments)


def test_one_function_is_called_and_its_result_read(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": TOOLS, "temperature": 0}
    first = client.chat.completions.create(messages=[QUESTION], tool_choice=NAMED, **asked).choices[0].message
    assert first.tool_calls is not None
    (call,) = first.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    check(call.function.name, call.function.arguments)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
    history: Any = [QUESTION, first.model_dump(exclude_none=True), result]
    last = client.chat.completions.create(messages=history, **asked).choices[0]
    assert (last.finish_reason, last.message.tool_calls) == ("stop", None)
    assert last.message.content


def test_a_streamed_call_is_the_whole_ones(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": [QUESTION], "tools": TOOLS, "tool_choice": "required", "temperature": 0,
        "parallel_tool_calls": False,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    with client.chat.completions.stream(**asked) as stream:
        choice = stream.get_final_completion().choices[0]
    (call,) = choice.message.tool_calls or []
    assert (choice.finish_reason, bool(choice.message.content)) == ("tool_calls", False)
    assert [(call.function.name, call.function.arguments)] == [(c.function.name, c.function.arguments) for c in whole]


def test_a_call_that_is_cut_off_is_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[QUESTION], tools=TOOLS, tool_choice=NAMED, max_tokens=25
    )
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert (choice.message.content or "").lstrip().startswith("<tool_call>weather\n")


def test_an_answer_may_still_be_text(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "你是谁?"}]
    for choice in ("auto", "none"):
        asked: dict[str, Any] = {"model": MODEL, "messages": messages, "tools": TOOLS, "tool_choice": choice}
        (given,) = client.chat.completions.create(**asked, temperature=0).choices
        assert (given.finish_reason, given.message.tool_calls) == ("stop", None)
        assert given.message.content


def test_only_who_offers_tools_gets_calls(client: openai.OpenAI) -> None:
    """What the model says of its own accord is made sure of here by a choice of one text."""
    called = "<tool_call>tap\n<arg_key>point</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>"
    said = f"Let me see.\n{called}\n{called}"
    asked: dict[str, Any] = {
        "model": MODEL, "messages": [QUESTION], "extra_body": {"structured_outputs": {"choice": [said]}}
    }  # fmt: skip
    (plain,) = client.chat.completions.create(**asked).choices
    (both,) = client.chat.completions.create(**asked, tools=TOOLS).choices
    (one,) = client.chat.completions.create(**asked, tools=TOOLS, parallel_tool_calls=False).choices
    assert (plain.finish_reason, plain.message.content, plain.message.tool_calls) == ("stop", said, None)
    for choice, count in ((both, 2), (one, 1)):
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
        calls = [call.model_dump()["function"] for call in choice.message.tool_calls or ()]
        assert calls == [{"name": "tap", "arguments": '{"point": [1, 2]}'}] * count


def test_a_schema_is_followed_as_far_as_it_can_be_unless_it_is_strict(client: openai.OpenAI) -> None:
    places: Any = {"type": "array", "items": {"const": "here"}, "maxItems": 1, "uniqueItems": True}
    schema = {"type": "object", "properties": {"places": places}, "required": ["places"]}
    function: Any = {"name": "visit", "parameters": schema}
    asked: dict[str, Any] = {"model": MODEL, "messages": [QUESTION], "tool_choice": "required", "max_tokens": 90}
    (choice,) = client.chat.completions.create(**asked, tools=[{"type": "function", "function": function}]).choices
    for call in choice.message.tool_calls or ():
        assert json.loads(call.model_dump()["function"]["arguments"])["places"] in ([], ["here"])
    strict: Any = {"type": "function", "function": {**function, "strict": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems cannot be enforced") as raised:
        client.chat.completions.create(**asked, tools=[strict])
    assert raised.value.param == "tools[0].function.parameters.properties.places.uniqueItems"
    places["minItems"] = "x"
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**asked | {"tool_choice": "auto"}, tools=[strict])
    assert raised.value.param == "tools[0].function.parameters.properties.places.minItems"


def test_the_same_over_grpc(channel: grpc.Channel) -> None:
    stub = ChatServiceStub(channel)
    question = ChatMessage(role=ROLE_USER, parts=[ContentPart(text=QUESTION["content"])])
    asked = ChatRequest(
        messages=[question],
        tools=[Tool(function=Function(name="weather", parameters=json.dumps(WEATHER)))],
        tool_choice=ToolChoice(function="weather"),
        sampling=SamplingParams(temperature=0),
    )
    (choice,) = stub.Complete(CompleteRequest(chat=asked)).choices
    steps = [step.delta for step in stub.StreamComplete(StreamCompleteRequest(chat=asked))]
    (call,) = choice.tool_calls
    check(call.function.name, call.function.arguments)
    assert [made.function for step in steps for made in step.tool_calls] == [call.function]
    assert choice.finish_reason == steps[-1].finish_reason == FINISH_REASON_TOOL_CALLS
    asked.messages.add(role=ROLE_ASSISTANT, tool_calls=[call])
    asked.messages.add(role=ROLE_TOOL, tool_call_id=call.id, parts=[ContentPart(text="clear")])
    asked.ClearField("tool_choice")
    assert stub.Complete(CompleteRequest(chat=asked)).choices[0].text


def only_call(response: Response) -> ResponseFunctionToolCall:
    """Return the call that is all of a response."""
    (call,) = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (response.status, call.status) == ("completed", "completed")
    check(call.name, call.arguments)
    return call


def test_the_same_in_the_responses_api(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": FLAT, "temperature": 0}
    named: Any = {"input": [QUESTION], "tool_choice": {"type": "function", "name": "weather"}, **asked}
    whole = only_call(client.responses.create(**named))
    with client.responses.stream(**named) as stream:
        events = list(stream)
        first = stream.get_final_response()
    call = only_call(first)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments == whole.arguments
    assert call.name == whole.name == "weather"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "clear"}'}
    history: Any = [QUESTION, *first.output, result]
    last = client.responses.create(input=history, **asked)
    assert [item.type for item in last.output] == ["message"]
    assert last.output_text


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("responses", [False, True])
def test_langchain_binds_tools(base_url: str, responses: bool, way: str) -> None:
    model = ChatOpenAI(
        model=MODEL, base_url=base_url, api_key=SecretStr("EMPTY"), temperature=0, use_responses_api=responses
    )
    bound = model.bind_tools(TOOLS, tool_choice="any", parallel_tool_calls=False)
    question = HumanMessage("How is the weather in Paris?")
    answer = bound.invoke([question]) if way == "invoke" else reduce(add, bound.stream([question]))
    (call,) = answer.tool_calls
    check(call["name"], json.dumps(call["args"]))
    said = model.bind_tools(TOOLS).invoke([question, answer, ToolMessage("clear", tool_call_id=call["id"])])
    assert said.text

"""Bodies with too many, too long or too deep things: what the client sees, and that nothing was made of them."""

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from autoglm.common.errors import InvalidRequest
from autoglm.gateway import json_bounds, limits
from autoglm.gateway.json_bounds import check_values, num_values
from autoglm.gateway.openai import types
from autoglm.gateway.openai.chat.request import ChatCompletionRequest

from .conftest import BUNDLE, Client
from .test_gateway_parsing import error_of

MANY = 70_000  # more values than a body may have
HI = [{"role": "user", "content": "hi"}]
ARRAY, STRING, OBJECT = "array_above_max_length", "string_above_max_length", "object_above_max_properties"


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
    "the id of a call": (
        {"messages": [*HI, {"role": "assistant", "tool_calls": [{"id": "c" * 4097, **function(arguments="{}")}]}]},
        "messages[1].tool_calls",
        STRING,
    ),
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
    "a regular expression": ({"structured_outputs": {"regex": "a" * 32_769}}, "structured_outputs.regex", STRING),
    "a grammar": ({"structured_outputs": {"grammar": "a" * 131_073}}, "structured_outputs.grammar", STRING),
    "bytes of an expression": ({"structured_outputs": {"regex": "好" * 10_923}}, "structured_outputs.regex", STRING),
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


@pytest.mark.parametrize(
    "field", [{"messages": HI * MANY}, {"tools": [{}] * MANY}, {"x": [0] * MANY}, {"y": [[]] * MANY}], ids=list
)
async def test_a_body_with_too_many_values_is_not_parsed(
    field: dict[str, Any], shared: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await shared.chat("hi", **field)).status_code == 400
    monkeypatch.setattr(types, "parse_json", lambda *_: pytest.fail("the body was parsed"))
    with pytest.raises(InvalidRequest):
        types.read_json(ChatCompletionRequest, id, orjson.dumps({"model": "m", **field}))


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
def test_the_field_with_the_values_is_named(field: str) -> None:
    body = orjson.dumps({"model": "m", "before": "[" * 100_000, field: [{"a": 0}] * MANY, "after": [0]})
    with pytest.raises(InvalidRequest) as caught:
        check_values(bytearray(body))
    assert (caught.value.param, caught.value.code) == (field, ARRAY)

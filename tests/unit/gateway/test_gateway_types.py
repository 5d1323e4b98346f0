"""Answers against openai-python's published types, which its client checks where strict validation is on."""

import json
from collections.abc import AsyncIterator
from typing import Any, get_args

import openai
import orjson
import pytest
import pytest_asyncio
from openai._models import validate_type
from openai.types.responses import Response, ResponseStreamEvent

from autoglm.common.errors import InvalidRequest, MeshError, RateLimited, UpstreamUnavailable
from autoglm.gateway.openai.responses.render import ResponsesRenderer
from autoglm.gateway.openai.responses.request import ResponseRequest
from autoglm.gateway.pipeline import Step, Summary, collect
from autoglm.v1.generation_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    LogprobEntry,
    Stages,
    TokenLogprob,
    Usage,
)

from .conftest import BUNDLE, Client, FakeMesh
from .samples import audio_part, image_part, png, wav
from .test_gateway_response_tools import FLAT
from .test_gateway_responses import events
from .test_gateway_tools import CALLS, NOW, WEATHER

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
CHATS: list[dict[str, Any]] = [
    {},
    {"n": 2, "logprobs": True, "top_logprobs": 3, "seed": -1},
    {"logprobs": True},
    {"extra_body": {"return_reasoning": True, "thinking": {"type": "enabled"}}, "service_tier": "flex"},
    {"tools": [WEATHER, NOW], "tool_choice": "auto"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, "store": True},
    {"reasoning_effort": "low", "verbosity": "low", "metadata": {"a": "b"}, "modalities": ["text"]},
]
RESPONSES: list[dict[str, Any]] = [
    {},
    LOGPROBS,
    {"reasoning": {"effort": "high", "summary": "auto"}, "include": ["reasoning.encrypted_content"]},
    {"tools": FLAT, "tool_choice": {"type": "function", "name": "now"}, "max_tool_calls": 3},
    {"tools": FLAT, "parallel_tool_calls": False, "metadata": {"a": "b"}, "user": "u", "service_tier": "flex"},
    {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "high"}},
    {"text": {"format": {"type": "json_object"}}, "instructions": "be brief", "safety_identifier": "s"},
    {"prompt_cache_key": "k", "truncation": "auto", "extra_body": {"seed": -1, "top_k": 4, "enable_thinking": False}},
]

_UNION, *_ = get_args(ResponseStreamEvent)
EVENTS = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(_UNION)}


@pytest_asyncio.fixture(loop_scope="session")
async def strict(client: Client) -> AsyncIterator[openai.AsyncOpenAI]:
    """openai-python, which raises APIResponseValidationError for an answer that is not as its types say."""
    async with openai.AsyncOpenAI(
        base_url=f"{client.url}/v1", api_key="EMPTY", max_retries=0, _strict_response_validation=True
    ) as peer:
        yield peer


@pytest.mark.parametrize("calls", [[], CALLS])
@pytest.mark.parametrize("fields", CHATS)
async def test_chat(strict: openai.AsyncOpenAI, mesh: FakeMesh, fields: dict[str, Any], calls: Any) -> None:
    mesh.decoder.calls = calls if "tools" in fields else []
    parts: list[Any] = [image_part(png()), audio_part(wav()), {"type": "text", "text": "hi"}]
    asked: dict[str, Any] = {"model": BUNDLE, "messages": [{"role": "user", "content": parts}], **fields}
    whole = await strict.chat.completions.create(**asked)
    assert whole.service_tier == ("default" if "service_tier" in fields else None)
    stream = await strict.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage == whole.usage
    assert {choice.finish_reason for chunk in chunks for choice in chunk.choices} - {None} == {
        whole.choices[0].finish_reason
    }


@pytest.mark.parametrize("calls", [[], CALLS])
@pytest.mark.parametrize("fields", RESPONSES)
async def test_responses(strict: openai.AsyncOpenAI, mesh: FakeMesh, fields: dict[str, Any], calls: Any) -> None:
    mesh.decoder.calls = calls if "tools" in fields else []
    whole = await strict.responses.create(model=BUNDLE, input="hi", **fields)
    stream = await strict.responses.create(model=BUNDLE, input="hi", stream=True, **fields)
    found = [event async for event in stream]
    assert [type(event) for event in found] == [EVENTS[event.type] for event in found]
    last = found[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == whole.output_text
    assert [item.type for item in last.response.output] == [item.type for item in whole.output]


@pytest.mark.parametrize("path", ["chat", "responses"])
async def test_an_answer_that_is_cut_short(strict: openai.AsyncOpenAI, mesh: FakeMesh, path: str) -> None:
    mesh.decoder.finish_reason = FINISH_REASON_LENGTH
    if path == "responses":
        response = await strict.responses.create(model=BUNDLE, input="hi", max_output_tokens=16)
        assert response.status == "incomplete"
    else:
        answer = await strict.chat.completions.create(model=BUNDLE, messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].finish_reason == "length"


async def test_models(strict: openai.AsyncOpenAI) -> None:
    models = [model async for model in strict.models.list()]
    assert (await strict.models.retrieve(models[0].id)) == models[0]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UpstreamUnavailable("the engine stopped"), "server_error"),
        (RateLimited("too much at once"), "rate_limit_exceeded"),
        (InvalidRequest("the prompt is too long"), "invalid_prompt"),
    ],
)
async def test_a_stream_that_fails(client: Client, mesh: FakeMesh, error: MeshError, code: str) -> None:
    mesh.decoder.generate.error, mesh.decoder.after = error, 2
    response = await client.http.post("/v1/responses", json={"model": BUNDLE, "input": "hi", "stream": True})
    found = events(response.text)
    for event in found:
        validate_type(type_=EVENTS[event["type"]], value=event)
    failed = Response.model_validate(found[-2]["response"])
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.type) == ("failed", code, error.code)


def entry(token: str | bytes, logprob: float = -0.5) -> LogprobEntry:
    data = token if isinstance(token, bytes) else token.encode()
    chosen = TokenLogprob(token=data.decode(errors="replace"), logprob=logprob, token_bytes=data)
    return LogprobEntry(chosen=chosen, top=[chosen])


def tokens(logprobs: list[dict[str, Any]]) -> list[bytes]:
    return [bytes(each["bytes"]) for each in logprobs]


SPLIT = "我".encode()


def step(text: str, token: str | bytes) -> Step:
    return Step(0, text, logprobs=[entry(token)])


STEPS = {
    "plain": ([step("a", "a"), step("b", "b")], [b"a", b"b"]),
    "a character of two tokens": (
        [step("", SPLIT[:1]), step("我", SPLIT[1:])],
        [SPLIT[:1], SPLIT[1:]],
    ),
    "reasoning between marks": (
        [
            step("", "<think>"),
            Step(0, reasoning="a", logprobs=[entry("a")]),
            step("", "</think>"),
            step("", "\n"),
            step("ab", "ab"),
        ],
        [b"ab"],
    ),
    "no reasoning between marks": (
        [
            step("", "<think>"),
            step("", "</think>"),
            step("x", "x"),
        ],
        [b"x"],
    ),
    "text that waits for a stop string": (
        [step("", "E"), step("", "N"), step("ENx", "x")],
        [b"E", b"N", b"x"],
    ),
    "a stop string": (
        [step("a", "a"), step("", "E"), step("", "ND")],
        [b"a"],
    ),
    "a token that is half a stop string": ([step("a", "aEND")], [b"aEND"]),
    "a call": (
        [
            step("a", "a"),
            step("", "<tool_call>"),
            Step(0, calls=CALLS[:1], logprobs=[entry("now")]),
        ],
        [b"a"],
    ),
}


@pytest.mark.parametrize("name", STEPS)
async def test_log_probabilities_are_of_the_text(name: str) -> None:
    steps, expected = STEPS[name]
    summary = Summary(Usage(), Stages(), [])
    steps = [*steps, Step(0, finish_reason=FINISH_REASON_STOP, summary=summary)]
    echo = ResponseRequest.model_validate({"model": "m", "input": "hi"}).echo()
    found = events(b"".join(map(ResponsesRenderer("r", "m", echo).chunk, steps)).decode())
    deltas = [event["logprobs"] for event in found if event["type"] == "response.output_text.delta"]
    (done,) = (event["logprobs"] for event in found if event["type"] == "response.output_text.done")
    (message,) = (item for item in found[-1]["response"]["output"] if item["type"] == "message")
    assert tokens([each for delta in deltas for each in delta]) == tokens(done) == expected
    assert message["content"][0]["logprobs"] == done

    async def stream() -> AsyncIterator[Step]:
        for step in steps:
            yield step

    choices, _ = await collect(stream(), 1)
    whole = orjson.loads(ResponsesRenderer("r", "m", echo).body(choices, summary))
    (message,) = (item for item in whole["output"] if item["type"] == "message")
    assert message["content"][0]["logprobs"] == done


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
        ({"top_logprobs": 3}, 3),
        ({"top_logprobs": 0}, None),
        ({"include": ["reasoning.encrypted_content"]}, None),
        ({"include": []}, None),
    ],
)
async def test_log_probabilities_of_a_response(strict: openai.AsyncOpenAI, fields: Any, count: int | None) -> None:
    response = await strict.responses.create(model=BUNDLE, input="hi", **fields)
    message = response.output[-1]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    found = [(each.token, len(each.top_logprobs)) for each in part.logprobs or ()]
    assert found == ([] if count is None else [(token, count) for token in ("你好", ", ", "AutoGLM", " 0")])
    assert response.top_logprobs == fields.get("top_logprobs", 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_has_both_of_its_names(client: Client, stream: bool) -> None:
    response = await client.chat("hi", return_reasoning=True, stream=stream)
    if stream:
        chunks = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-2]]
        messages = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    else:
        messages = [response.json()["choices"][0]["message"]]
    assert "".join(message.get("reasoning", "") for message in messages) == "hm"
    assert all(message.get("reasoning") == message.get("reasoning_content") for message in messages)

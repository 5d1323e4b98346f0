"""What docs/openai-api.md says of each field is what the server does with it: honoured, refused, or without effect."""

from collections.abc import Mapping
from typing import Any

import openai_fields
import pytest
from google.protobuf.json_format import MessageToDict
from openai_fields import CHAT, RESPONSES, ComparedApi

from autoglm.gateway.openai.fields import CHAT_REFUSED, NO_EFFECT, RESPONSES_REFUSED

from .conftest import BUNDLE, Client
from .test_gateway_parsing import error_of
from .test_gateway_response_tools import FLAT
from .test_gateway_tools import NOW, WEATHER

PATHS = {CHAT: "/v1/chat/completions", RESPONSES: "/v1/responses"}
LEAST: dict[ComparedApi, dict[str, Any]] = {
    CHAT: {"model": BUNDLE, "messages": [{"role": "user", "content": "hi"}]},
    RESPONSES: {"model": BUNDLE, "input": "hi"},
}
SCHEMA = {"type": "object", "properties": {}}
JSON_SCHEMA = {"type": "json_schema", "name": "n", "schema": SCHEMA, "json_schema": {"name": "n", "schema": SCHEMA}}

# A value that changes an answer for each field that is honoured.
HONOURED: dict[str, Any] = {
    "chat_template_kwargs.enable_thinking": False,
    "enable_thinking": False,
    "frequency_penalty": 1,
    "include": ["message.output_text.logprobs"],
    "include_reasoning": True,
    "include_stop_str_in_output": True,
    "input": "ho",
    "instructions": "be brief",
    "logit_bias": {"5": 1},
    "logprobs": True,
    "max_completion_tokens": 5,
    "max_output_tokens": 5,
    "max_thinking_tokens": 5,
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "ho"}],
    "min_p": 0.5,
    "model": "another",
    "n": 2,
    "parallel_tool_calls": False,
    "presence_penalty": 1,
    "reasoning.effort": "none",
    "reasoning.enabled": False,
    "reasoning.max_tokens": 5,
    "reasoning_effort": "none",
    "repetition_penalty": 2,
    "response_format": JSON_SCHEMA,
    "return_reasoning": True,
    "seed": -1,
    "stop": "x",
    "stream": True,
    "stream_options.include_usage": True,
    "structured_outputs.choice": ["a", "b"],
    "structured_outputs.grammar": "start: /a/",
    "structured_outputs.json": SCHEMA,
    "structured_outputs.regex": "a",
    "temperature": 0.5,
    "text.format": JSON_SCHEMA,
    "thinking.budget_tokens": 5,
    "thinking.type": "disabled",
    "thinking_token_budget": 5,
    "tool_choice": "required",
    "tools": [],
    "top_k": 3,
    "top_logprobs": 3,
    "top_p": 0.5,
}
# What has to be there for the field to say anything, the same with it and without.
BESIDE: dict[tuple[ComparedApi, str], dict[str, Any]] = {
    (CHAT, "top_logprobs"): {"logprobs": True},
    (CHAT, "stream_options.include_usage"): {"stream": True},
    **{(CHAT, name): {"tools": [WEATHER, NOW]} for name in ("tools", "tool_choice", "parallel_tool_calls")},
    **{(RESPONSES, name): {"tools": FLAT} for name in ("tools", "tool_choice", "parallel_tool_calls")},
    **{(api, "thinking.budget_tokens"): {"thinking": {"type": "enabled"}} for api in (CHAT, RESPONSES)},
    (RESPONSES, "return_reasoning"): {"return_reasoning": False},
    (RESPONSES, "include_reasoning"): {"include_reasoning": False},
}
# A value that OpenAI takes for each field without effect.
WITHOUT_EFFECT: dict[str, Any] = {
    "access_programs": {"cyber": "standard"},
    "image": {"context_compression": "enabled"},
    "max_tool_calls": 3,
    "metadata": {"a": "b"},
    "prediction": {"type": "content", "content": "hi"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "reasoning.context": "all_turns",
    "reasoning.generate_summary": "auto",
    "reasoning.mode": "pro",
    "reasoning.summary": "detailed",
    "safety_identifier": "s",
    "service_tier": "priority",
    "store": True,
    "text.verbosity": "low",
    "truncation": "auto",
    "user": "u",
    "verbosity": "high",
}


def fields(verdict: str) -> list[tuple[ComparedApi, str]]:
    known = [(api, path) for api in PATHS for path in sorted(api.openai_fields | api.own_fields)]
    return [(api, path) for api, path in known if api.verdict(path)[0] == verdict]


def named(pairs: list[tuple[ComparedApi, Any]]) -> list[Any]:
    return [pytest.param(api, path, id=f"{PATHS[api]}-{path}") for api, path in pairs]


def merged(body: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return `body` with `value` at `path`."""
    name, dot, rest = path.partition(".")
    return {**body, name: merged(body.get(name, {}), rest, value) if dot else value}


async def outcome(client: Client, api: ComparedApi, body: Mapping[str, Any]) -> Any:
    """Return what a client or the decoder can tell two requests apart by."""
    seen = client.mesh.decoder.generate.requests
    before = len(seen)
    response = await client.http.post(PATHS[api], json=body)
    sent = [MessageToDict(request) | {"requestId": "", "timeout": ""} for request in seen[before:]]
    return response.status_code, response.headers["content-type"], response.text.count("data: "), sent


def test_every_field_of_openai_has_a_verdict() -> None:
    assert (CHAT.undecided(), RESPONSES.undecided()) == (set(), set())


def test_a_new_field_of_openai_is_noticed() -> None:
    class Published(dict[str, int]):
        """OpenAI's fields of tomorrow."""

        temperature: float
        telepathy: str

    assert ComparedApi(CHAT.request, Published).undecided() == {"telepathy"}


def test_every_field_has_an_example() -> None:
    assert {path for _, path in fields("honoured")} == set(HONOURED)
    assert {path for _, path in fields("no effect")} == set(WITHOUT_EFFECT) == set(NO_EFFECT)


def test_the_page_is_current() -> None:
    page = openai_fields.PAGE.read_text(encoding="utf-8")
    assert openai_fields.written(page) == page
    assert all(table in page for table in openai_fields.tables().values())


@pytest.mark.parametrize(("api", "path"), named(fields("honoured")))
async def test_an_honoured_field_changes_the_answer(shared: Client, api: ComparedApi, path: str) -> None:
    without = {**LEAST[api], **BESIDE.get((api, path), {})}
    assert await outcome(shared, api, merged(without, path, HONOURED[path])) != await outcome(shared, api, without)


@pytest.mark.parametrize(("api", "path"), named(fields("no effect")))
async def test_a_field_without_effect_is_taken(shared: Client, api: ComparedApi, path: str) -> None:
    plain = await outcome(shared, api, LEAST[api])
    assert plain[0] == 200
    assert await outcome(shared, api, merged(LEAST[api], path, WITHOUT_EFFECT[path])) == plain


@pytest.mark.parametrize(("api", "path"), named(fields("refused")))
async def test_a_refused_field_is_named_with_the_reason(shared: Client, api: ComparedApi, path: str) -> None:
    response = await shared.http.post(PATHS[api], json=merged(LEAST[api], path, {"something": 1}))
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, path)
    assert error["message"] == f"{path}: {api.request.refused[path].why}"


@pytest.mark.parametrize("api", [CHAT, RESPONSES])
async def test_what_asks_for_nothing_is_not_refused(shared: Client, api: ComparedApi) -> None:
    for path, refused in {CHAT: CHAT_REFUSED, RESPONSES: RESPONSES_REFUSED}[api].items():
        for value in (None, *refused.harmless):
            response = await shared.http.post(PATHS[api], json=merged(LEAST[api], path, value))
            assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("api", "path", "value"),
    [
        (CHAT, "modalities", ["audio"]),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "functions", [{"name": "now"}]),
        (CHAT, "function_call", {"name": "now"}),
        (CHAT, "web_search_options", {}),
        (CHAT, "min_tokens", 1),
        (CHAT, "min_tokens", False),
        (CHAT, "ignore_eos", True),
        (CHAT, "ignore_eos", 0),
        (RESPONSES, "n", 2),
        (RESPONSES, "n", True),
        (RESPONSES, "background", True),
        (RESPONSES, "context_management", [{"type": "compaction", "compact_threshold": 1000}]),
        (RESPONSES, "stream_options.include_obfuscation", True),
        (RESPONSES, "max_tokens", 16),
    ],
)
async def test_what_asks_for_something_is_refused(shared: Client, api: ComparedApi, path: str, value: Any) -> None:
    response = await shared.http.post(PATHS[api], json=merged(LEAST[api], path, value))
    assert (response.status_code, error_of(response)["param"]) == (400, path)


@pytest.mark.parametrize("include", [["reasoning.text"], ["message.output_text.logprobs", 1], "logprobs"])
async def test_an_unknown_inclusion_is_named(shared: Client, include: Any) -> None:
    response = await shared.http.post(PATHS[RESPONSES], json=LEAST[RESPONSES] | {"include": include})
    assert (response.status_code, error_of(response)["param"].partition("[")[0]) == (400, "include")


async def test_a_response_says_what_became_of_it(shared: Client) -> None:
    given = {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "max_tool_calls": 3, "top_logprobs": 2}
    taken = {"store": False, "service_tier": "default", "truncation": "disabled"}
    sent = {**LEAST[RESPONSES], **given, "store": True, "service_tier": "flex", "truncation": "auto"}
    for effort in ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}):
        body = (await shared.http.post(PATHS[RESPONSES], json=sent | effort)).json()
        assert body == body | given | taken | {"reasoning": {"effort": "low", "summary": None}}

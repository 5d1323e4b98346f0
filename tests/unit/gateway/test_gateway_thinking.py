"""Every name of the switch for reasoning and of its budget, in both APIs, and what happens where two disagree."""

from typing import Any

import pytest

from autoglm.gateway.tool_checks import MODES

from .conftest import BUNDLE, Client
from .test_gateway_parsing import error_of
from .test_gateway_ranges import asked
from .test_gateway_tools import NOW, WEATHER

SWITCHES: list[tuple[dict[str, Any], bool | None]] = [
    ({}, None),
    ({"enable_thinking": True}, True),
    ({"enable_thinking": False}, False),
    ({"enable_thinking": None, "thinking": None, "reasoning": None, "reasoning_effort": None}, None),
    ({"chat_template_kwargs": {"enable_thinking": False}}, False),
    ({"chat_template_kwargs": {"enable_thinking": None, "other": 1}}, None),
    ({"thinking": {"type": "enabled"}}, True),
    ({"thinking": {"type": "disabled"}}, False),
    *(
        ({"reasoning_effort": effort}, effort != "none")
        for effort in ("none", "minimal", "low", "high", "xhigh", "max")
    ),
    ({"reasoning": {"effort": "none"}}, False),
    ({"reasoning": {"effort": "medium", "summary": "auto"}}, True),
    ({"reasoning": {"enabled": False}}, False),
    ({"reasoning": {"enabled": True, "exclude": False}}, True),
    ({"reasoning": {}}, None),
    ({"enable_thinking": True, "thinking": {"type": "enabled"}, "reasoning_effort": "low"}, True),
    ({"thinking": {"type": "disabled"}, "reasoning": {"effort": "none"}}, False),
]
CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"enable_thinking": True, "thinking": {"type": "disabled"}}, "enable_thinking", "thinking.type"),
    ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, "thinking.type", "reasoning_effort"),
    ({"reasoning_effort": "high", "reasoning": {"effort": "none"}}, "reasoning_effort", "reasoning.effort"),
    ({"reasoning": {"effort": "low", "enabled": False}}, "reasoning.effort", "reasoning.enabled"),
    (
        {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}},
        "enable_thinking",
        "chat_template_kwargs.enable_thinking",
    ),
    ({"max_thinking_tokens": 3, "thinking_token_budget": 4}, "max_thinking_tokens", "thinking_token_budget"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 3}, "reasoning": {"max_tokens": 4}},
        "thinking.budget_tokens",
        "reasoning.max_tokens",
    ),
    ({"return_reasoning": True, "include_reasoning": False}, "return_reasoning", "include_reasoning"),
]


@pytest.mark.parametrize("path", ["chat", "responses"])
@pytest.mark.parametrize(("fields", "thinking"), SWITCHES)
async def test_switches(shared: Client, path: str, fields: dict[str, Any], thinking: bool | None) -> None:
    request = await asked(shared, path, **fields)
    assert (request.enable_thinking if request.HasField("enable_thinking") else None) == thinking


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(("fields", "first", "second"), CONTRADICTIONS)
async def test_contradictions_name_both(
    shared: Client, path: str, fields: dict[str, Any], first: str, second: str
) -> None:
    given = {"input": "hi"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "hi"}]}
    response = await shared.http.post(path, json={"model": BUNDLE, **given, **fields})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, second)
    assert error["message"] == f"{first} and {second} contradict each other"


@pytest.mark.parametrize("path", ["chat", "responses"])
@pytest.mark.parametrize(
    "fields",
    [
        {"max_thinking_tokens": 5},
        {"thinking_token_budget": 5.0},
        {"thinking": {"type": "enabled", "budget_tokens": 5}},
        {"reasoning": {"max_tokens": 5}},
        {"max_thinking_tokens": 5, "reasoning": {"max_tokens": 5}},
    ],
)
async def test_budgets(shared: Client, path: str, fields: dict[str, Any]) -> None:
    assert (await asked(shared, path, **fields)).sampling.max_thinking_tokens == 5


@pytest.mark.parametrize(
    ("path", "fields", "apart"),
    [
        ("chat", {}, False),
        ("chat", {"include_reasoning": True}, True),
        ("chat", {"return_reasoning": False}, False),
        ("responses", {}, True),
        ("responses", {"return_reasoning": True}, True),
        ("responses", {"include_reasoning": False}, False),
    ],
)
async def test_reasoning_apart(shared: Client, path: str, fields: dict[str, Any], apart: bool) -> None:
    assert (await asked(shared, path, **fields)).return_reasoning == apart


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "some"}, "reasoning_effort"),
        ({"reasoning": "low"}, "reasoning"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        ({"reasoning": {"exclude": True}}, "reasoning.exclude"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {}}, "thinking.type"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": "9"}}, "thinking.budget_tokens"),
    ],
)
async def test_bad_switches_name_their_field(shared: Client, path: str, fields: dict[str, Any], param: str) -> None:
    given = {"input": "hi"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "hi"}]}
    response = await shared.http.post(path, json={"model": BUNDLE, **given, **fields})
    assert (response.status_code, error_of(response)["param"]) == (400, param)


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (allowed("auto", "now"), ["now"]),
        (allowed("required", "now", "weather"), ["weather", "now"]),
        (allowed("required", "weather", "weather"), ["weather"]),
    ],
)
async def test_allowed_tools_in_a_chat(shared: Client, choice: dict[str, Any], names: list[str]) -> None:
    request = await asked(shared, "chat", tools=[WEATHER, NOW], tool_choice=choice)
    assert [tool.function.name for tool in request.tools] == names
    assert request.tool_choice.mode == MODES[choice["allowed_tools"]["mode"]]


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        (allowed("auto", "later"), "tool_choice.allowed_tools.tools"),
        (allowed("none", "now"), "tool_choice.allowed_tools.mode"),
        (allowed("auto"), "tool_choice.allowed_tools.tools"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.allowed_tools"),
        ({"type": "custom", "custom": {"name": "now"}}, "tool_choice.type"),
    ],
)
async def test_bad_allowed_tools(shared: Client, choice: dict[str, Any], param: str) -> None:
    response = await shared.chat("hi", tools=[WEATHER, NOW], tool_choice=choice)
    assert (response.status_code, error_of(response)["param"]) == (400, param)

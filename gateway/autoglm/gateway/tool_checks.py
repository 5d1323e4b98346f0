"""Checks of tools, and of calls to them, that both servers share: what the types of their requests cannot rule out."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import Conversation, ConversationMessage
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    TOOL_CHOICE_MODE_AUTO,
    TOOL_CHOICE_MODE_NONE,
    TOOL_CHOICE_MODE_REQUIRED,
    TOOL_CHOICE_MODE_UNSPECIFIED,
    ToolChoice,
)

MAX_TOOLS = 128
MODES = {"none": TOOL_CHOICE_MODE_NONE, "auto": TOOL_CHOICE_MODE_AUTO, "required": TOOL_CHOICE_MODE_REQUIRED}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_KEYWORDS = {"enum": list, "pattern": str, "minLength": int, "maxLength": int, "$ref": str}


def with_usable_tools(conversation: Conversation) -> Conversation:
    """Return `conversation` as the decoder takes it: without tools if none may be called.

    Raises InvalidRequest for invalid tools, or a tool choice that they cannot satisfy.
    """
    _check_tools(conversation)
    if conversation.tool_choice is None or conversation.tool_choice.mode != TOOL_CHOICE_MODE_NONE:
        return conversation
    return replace(conversation, tools=(), tool_choice=None)


def _check_tools(conversation: Conversation) -> None:
    paths, choice, names = conversation.paths, conversation.tool_choice, set()
    if len(conversation.tools) > MAX_TOOLS:
        param = f"{paths.root}tools"
        raise InvalidRequest(f"{param} contains more than {MAX_TOOLS} tools", param=param)
    for number, tool in enumerate(conversation.tools):
        param = paths.tool(number)
        _check_name(tool.function.name, f"{param}.name")
        if tool.function.name in names:
            raise InvalidRequest(f"{param}.name is already the name of another tool", param=f"{param}.name")
        names.add(tool.function.name)
        _check_parameters(tool.function.parameters, f"{param}.parameters")
    if choice is not None:
        _check_choice(choice, names, f"{paths.root}tool_choice")


def _check_choice(choice: ToolChoice, names: set[str], param: str) -> None:
    if not names:
        raise InvalidRequest(f"{param} requires tools", param=param)
    named = choice.WhichOneof("choice") == "function"
    if named and choice.function not in names:
        raise InvalidRequest(f"{param} names a function that is not in tools", param=param)
    if not named and choice.mode not in (*MODES.values(), TOOL_CHOICE_MODE_UNSPECIFIED):
        raise InvalidRequest(f"{param} must be a known mode", param=param)


def _check_name(name: str, param: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{param} must be 1 to 64 letters, digits, _ or -", param=param)


def _check_parameters(text: str, param: str) -> None:
    """Check what a call's format is made from; the decoder, which enforces the schema, checks the rest."""
    schema = _object(text or "{}", param)
    if schema.get("type", "object") != "object":
        raise InvalidRequest(f"{param} must be a JSON Schema of type object", param=param)
    for name in ("properties", "$defs", "definitions"):
        if not _are_schemas(schema.get(name, {})):
            raise InvalidRequest(f"{param}: {name} must be an object of JSON Schemas", param=param)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if any("<" in name for name in properties):
        raise InvalidRequest(f"{param}: a property's name must not contain <", param=param)
    if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
        raise InvalidRequest(f"{param}: required must list property names", param=param)


def _are_schemas(group: object) -> bool:
    return isinstance(group, dict) and all(isinstance(each, bool) or _is_schema(each) for each in group.values())


def _is_schema(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name, kind()), kind) for name, kind in _KEYWORDS.items()
    )


def check_calls(messages: Sequence[ConversationMessage], param: str) -> None:
    """Raise InvalidRequest unless only the assistant makes calls, and every result belongs to a call just before it."""
    waiting: set[str] = set()
    for number, message in enumerate(messages):
        where = f"{param}[{number}]"
        if message.role == ROLE_TOOL:
            if message.call_id not in waiting:
                raise InvalidRequest(
                    f"{where}.tool_call_id must match a call in the assistant message before it",
                    param=f"{where}.tool_call_id",
                )
            waiting.remove(message.call_id)
        else:
            _check_calls(message, f"{where}.tool_calls")
            waiting = {call.id for call in message.calls}


def _check_calls(message: ConversationMessage, param: str) -> None:
    if message.calls and message.role != ROLE_ASSISTANT:
        raise InvalidRequest(f"{param} are allowed only in assistant messages", param=param)
    if len({call.id for call in message.calls} - {""}) < len(message.calls):
        raise InvalidRequest(f"{param} must each have a unique, non-empty id", param=param)
    for number, call in enumerate(message.calls):
        check_call(call.function.name, call.function.arguments, f"{param}[{number}].function")


def check_call(name: str, arguments: str, param: str) -> None:
    """Raise InvalidRequest unless the call at `param` has a function's name, and a JSON object as its arguments."""
    _check_name(name, f"{param}.name")
    _object(arguments, f"{param}.arguments")


def _object(text: str, param: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
        orjson.dumps(value)  # its depth limit is lower than that of loads, and holds for the services too
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param} must be a JSON object", param=param)
    return value

"""The functions that a request offers the model, and calls of them.

OpenAI's types are those of the HTTP door; what they cannot rule out is checked for both doors.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, Tag

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import Conversation, Message
from autoglm.v1 import generation_pb2
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    TOOL_CHOICE_MODE_AUTO,
    TOOL_CHOICE_MODE_NONE,
    TOOL_CHOICE_MODE_REQUIRED,
    TOOL_CHOICE_MODE_UNSPECIFIED,
)

MAX_TOOLS = 128
MODES = {"none": TOOL_CHOICE_MODE_NONE, "auto": TOOL_CHOICE_MODE_AUTO, "required": TOOL_CHOICE_MODE_REQUIRED}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_KEYWORDS = {"enum": list, "pattern": str, "minLength": int, "maxLength": int, "$ref": str}


class Strict(BaseModel):
    """A type of a request: no value is converted, and unknown fields are ignored, as OpenAI's own server does."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class FunctionDefinition(Strict):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """Something that the model may use: a function."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Strict):
    """Which function."""

    name: str


class NamedChoice(Strict):
    """The function that the model has to call."""

    type: Literal["function"]
    function: FunctionName


Mode = Literal["none", "auto", "required"]
BY_CHOICE = Discriminator(
    lambda value: "~mode" if isinstance(value, str) else "~named" if isinstance(value, dict) else None,
    custom_error_type="choice_kind",
    custom_error_message="Input should be none, auto, required or a function",
)
ToolChoice = Annotated[Annotated[Mode, Tag("~mode")] | Annotated[NamedChoice, Tag("~named")], BY_CHOICE]


class FunctionCall(Strict):
    """A function's name with arguments, a JSON object as text."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call that the assistant made."""

    id: str
    type: Literal["function"]
    function: FunctionCall


def offered(functions: Sequence[FunctionDefinition], path: str) -> list[generation_pb2.Tool]:
    """Return the tools of a request, each with its function at `path`; raises InvalidRequest for a schema that is
    nested too deep."""
    return [_tool(function, f"tools[{i}]{path}.parameters") for i, function in enumerate(functions)]


def _tool(function: FunctionDefinition, param: str) -> generation_pb2.Tool:
    return generation_pb2.Tool(
        function=generation_pb2.Function(
            name=function.name,
            description=function.description or "",
            parameters="" if function.parameters is None else schema_text(function.parameters, param),
        )
    )


def chosen(choice: str | FunctionName | None) -> generation_pb2.ToolChoice | None:
    """Return the tool choice of a request."""
    if choice is None:
        return None
    if isinstance(choice, str):
        return generation_pb2.ToolChoice(mode=MODES[choice])
    return generation_pb2.ToolChoice(function=choice.name)


def called(call_id: str, function: FunctionCall) -> generation_pb2.ToolCall:
    """Return a call of an earlier turn."""
    made = generation_pb2.FunctionCall(name=function.name, arguments=function.arguments)
    return generation_pb2.ToolCall(id=call_id, function=made)


def schema_text(schema: dict[str, Any], param: str) -> str:
    """Return a JSON Schema as text; raises InvalidRequest for one that is nested too deep."""
    try:
        orjson.dumps({"response": {"text": {"format": {"schema": schema}}}})  # so deep an answer repeats it
        return orjson.dumps(schema).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{param} is nested too deep", param=param) from None


def usable(conversation: Conversation) -> Conversation:
    """Return `conversation` as the decoder takes it: without tools where none may be used.

    Raises InvalidRequest for tools that cannot be offered, or of which none can be chosen as was asked for.
    """
    _check_tools(conversation)
    if conversation.tool_choice is None or conversation.tool_choice.mode != TOOL_CHOICE_MODE_NONE:
        return conversation
    return replace(conversation, tools=(), tool_choice=None)


def _check_tools(conversation: Conversation) -> None:
    prefix, choice, names = conversation.prefix, conversation.tool_choice, set()
    if len(conversation.tools) > MAX_TOOLS:
        raise InvalidRequest(f"{prefix}tools holds more than {MAX_TOOLS}", param=f"{prefix}tools")
    for number, tool in enumerate(conversation.tools):
        param = f"{prefix}tools[{number}]{conversation.function}"
        _check_name(tool.function.name, f"{param}.name")
        if tool.function.name in names:
            raise InvalidRequest(f"{param}.name is that of another tool", param=f"{param}.name")
        names.add(tool.function.name)
        _check_parameters(tool.function.parameters, f"{param}.parameters")
    if choice is not None:
        _check_choice(choice, names, conversation)


def _check_choice(choice: generation_pb2.ToolChoice, names: set[str], conversation: Conversation) -> None:
    param = f"{conversation.prefix}tool_choice"
    if not names:
        raise InvalidRequest(f"{param} needs tools", param=param)
    named = choice.WhichOneof("choice") == "function"
    if named and choice.function not in names:
        raise InvalidRequest(f"{param} names a function that is none of tools", param=param)
    if not named and choice.mode not in (*MODES.values(), TOOL_CHOICE_MODE_UNSPECIFIED):
        raise InvalidRequest(f"{param} must be a known mode", param=param)
    forced = named or choice.mode == TOOL_CHOICE_MODE_REQUIRED
    if forced and conversation.sampling.WhichOneof("structured_output"):
        raise InvalidRequest(f"{param} asks for a call, and another field for a format of the answer", param=param)


def _check_name(name: str, param: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{param} must have 1 to 64 letters, digits, _ or -", param=param)


def _check_parameters(text: str, param: str) -> None:
    """Check what the form of a call is made from; the rest is for the decoder, which knows what it can enforce."""
    schema = _object(text or "{}", param)
    if schema.get("type", "object") != "object":
        raise InvalidRequest(f"{param} must be the schema of an object", param=param)
    for name in ("properties", "$defs", "definitions"):
        if not _are_schemas(schema.get(name, {})):
            raise InvalidRequest(f"{param}: {name} must be an object of JSON Schemas", param=param)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if any("<" in name for name in properties):
        raise InvalidRequest(f"{param}: a property's name must not have a <", param=param)
    if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
        raise InvalidRequest(f"{param}: required must list names of properties", param=param)


def _are_schemas(group: object) -> bool:
    return isinstance(group, dict) and all(isinstance(each, bool) or _is_schema(each) for each in group.values())


def _is_schema(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name, kind()), kind) for name, kind in _KEYWORDS.items()
    )


def check_calls(messages: Sequence[Message], param: str) -> None:
    """Raise InvalidRequest unless every call is one that the assistant made, and every result is of one just before."""
    waiting: set[str] = set()
    for number, message in enumerate(messages):
        where = f"{param}[{number}]"
        if message.role == ROLE_TOOL:
            if message.call_id not in waiting:
                raise InvalidRequest(
                    f"{where}.tool_call_id must be that of a call in the assistant's message before it",
                    param=f"{where}.tool_call_id",
                )
            waiting.remove(message.call_id)
        else:
            _check_calls(message, f"{where}.tool_calls")
            waiting = {call.id for call in message.calls}


def _check_calls(message: Message, param: str) -> None:
    if message.calls and message.role != ROLE_ASSISTANT:
        raise InvalidRequest(f"{param} belong in messages of the assistant", param=param)
    if len({call.id for call in message.calls} - {""}) < len(message.calls):
        raise InvalidRequest(f"{param} must each have an id of their own", param=param)
    for number, call in enumerate(message.calls):
        check_call(call.function, f"{param}[{number}].function")


def check_call(function: FunctionCall | generation_pb2.FunctionCall, param: str) -> None:
    """Raise InvalidRequest unless `function`, which is at `param`, has a name and a JSON object."""
    _check_name(function.name, f"{param}.name")
    _object(function.arguments, f"{param}.arguments")


def _object(text: str, param: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
        orjson.dumps(value)  # goes less deep than reading does, and so can everybody behind
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param} must be a JSON object", param=param)
    return value

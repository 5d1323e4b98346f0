"""Checks of tools, and of calls to them, that both servers share: what the types of their requests cannot rule out."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from autoglm.common.errors import InvalidRequest
from autoglm.common.format_sizes import MAX_SCHEMA_BYTES
from autoglm.gateway.conversation import Conversation, ConversationMessage
from autoglm.gateway.json_bounds import num_values
from autoglm.gateway.limits import MAX_ID_LENGTH, MAX_TOOLS, MAX_VALUES, check_bytes, check_count, check_length
from autoglm.gateway.schema_checks import read_schema
from autoglm.v1.generation_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    TOOL_CHOICE_MODE_AUTO,
    TOOL_CHOICE_MODE_NONE,
    TOOL_CHOICE_MODE_REQUIRED,
    TOOL_CHOICE_MODE_UNSPECIFIED,
    ToolChoice,
)

MODES = {"none": TOOL_CHOICE_MODE_NONE, "auto": TOOL_CHOICE_MODE_AUTO, "required": TOOL_CHOICE_MODE_REQUIRED}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def with_usable_tools(conversation: Conversation) -> Conversation:
    """Return `conversation` as the decoder takes it: results in the order of their calls, no tools if none may be
    called.

    Raises InvalidRequest for invalid tools, a tool choice that they cannot satisfy, or a result without a call.
    """
    _check_tools(conversation)
    _check_results(conversation.messages)
    conversation = replace(conversation, messages=_in_order_of_calls(conversation.messages))
    choice = conversation.tool_choice
    if conversation.tools and (choice is None or choice.mode != TOOL_CHOICE_MODE_NONE):
        return conversation
    return replace(conversation, tools=(), tool_choice=None)


def _check_tools(conversation: Conversation) -> None:
    paths, choice, names, values = conversation.paths, conversation.tool_choice, set(), 0
    check_count(len(conversation.tools), MAX_TOOLS, "tools", f"{paths.root}tools")
    for number, tool in enumerate(conversation.tools):
        param = paths.tool(number)
        _check_name(tool.function.name, f"{param}.name")
        if tool.function.name in names:
            raise InvalidRequest(f"{param}.name is already the name of another tool", param=f"{param}.name")
        names.add(tool.function.name)
        check_bytes(tool.function.parameters, MAX_SCHEMA_BYTES, f"{param}.parameters")
        values += num_values(tool.function.parameters)
        check_count(values, MAX_VALUES, "values", f"{param}.parameters")
        _check_parameters(tool.function.parameters, f"{param}.parameters")
    if choice is not None:
        _check_choice(choice, names, f"{paths.root}tool_choice")


def _check_choice(choice: ToolChoice, names: set[str], param: str) -> None:
    named = choice.WhichOneof("choice") == "function"
    if not names and (named or choice.mode == TOOL_CHOICE_MODE_REQUIRED):
        raise InvalidRequest(f"{param} requires a call, but there are no tools", param=param)
    if named and choice.function not in names:
        raise InvalidRequest(f"{param} names a function that is not in tools", param=param)
    if not named and choice.mode not in (*MODES.values(), TOOL_CHOICE_MODE_UNSPECIFIED):
        raise InvalidRequest(f"{param} must be a known mode", param=param)


def _check_name(name: str, param: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{param} must be 1 to 64 letters, digits, _ or -", param=param)


def _check_parameters(text: str, param: str) -> None:
    """Check that `parameters` is a JSON Schema of objects; what can be enforced of it is the decoder's to say."""
    kinds = read_schema(text or "{}", param).get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        raise InvalidRequest(f"{param}.type must be object", param=f"{param}.type")


def _check_results(messages: Sequence[ConversationMessage]) -> None:
    """Raise InvalidRequest unless only the assistant makes calls, and every result belongs to an earlier call that has
    none yet. The names and arguments of calls are a model's words, and never refused."""
    waiting = Counter[str]()
    for message in messages:
        param = message.param
        if message.calls and message.role != ROLE_ASSISTANT:
            raise InvalidRequest(f"{param} is allowed only in assistant messages", param=param)
        for call in message.calls:
            check_length(call.id, MAX_ID_LENGTH, param)
        waiting.update(call.id for call in message.calls)
        if message.role == ROLE_TOOL:
            if not waiting[message.call_id]:
                raise InvalidRequest(f"{param} must match an earlier call without a result", param=param)
            waiting[message.call_id] -= 1


def _in_order_of_calls(messages: Sequence[ConversationMessage]) -> list[ConversationMessage]:
    """Return `messages`, of which results in a row come in the order of their calls: the model does not see ids."""
    ordered, order = list[ConversationMessage](), dict[str, int]()
    for are_results, group in groupby(messages, key=lambda message: message.role == ROLE_TOOL):
        turns = list(group)
        order |= {call.id: number for number, call in enumerate(call for turn in turns for call in turn.calls)}
        ordered += sorted(turns, key=lambda turn: order[turn.call_id]) if are_results else turns
    return ordered

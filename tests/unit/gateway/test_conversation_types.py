"""docs/conversations.md against openai-python's types: every field, part and item is what its table says it is."""

import collections.abc
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Required, Union, get_args, get_origin

import orjson
import pytest
from openai.types.chat import chat_completion_content_part_param as chat_parts
from openai.types.chat.chat_completion_assistant_message_param import ContentArrayOfContentPart
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from openai.types.chat.chat_completion_message_tool_call_union_param import ChatCompletionMessageToolCallUnionParam
from openai.types.responses import response_function_call_output_item_param as output_parts
from openai.types.responses import response_input_content_param as input_parts
from openai.types.responses import response_output_message_param as answer_parts
from openai.types.responses.response_computer_tool_call_output_screenshot_param import (
    ResponseComputerToolCallOutputScreenshotParam,
)
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from typing_extensions import get_type_hints, is_typeddict

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import Conversation, ConversationMessage, TextPart
from autoglm.gateway.openai.chat import request as chat
from autoglm.gateway.openai.responses import request as responses
from autoglm.gateway.openai.types import parse_json

from .samples import audio_part, image_part, png, wav

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "conversations.md"
URL = image_part(png())["image_url"]["url"]
SPOKEN = audio_part(wav())["input_audio"]["data"]
TEXTS = {"url": URL, "image_url": URL, "data": SPOKEN}
STORED = "file_id"  # tested by itself
HI = {"role": "user", "content": "hi"}


def verdicts(api: str) -> dict[str, str]:
    """Return what the tables of an API say of each name."""
    (section,) = re.findall(
        rf"^## {api}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    rows = re.findall(r"^\| (`.*?`) \| (\w[\w ]*) \|", section, re.MULTILINE)
    return {name: verdict for names, verdict in rows for name in re.findall(r"`(\w+)`", names)}


def members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def sample(kind: Any, name: str = "", whole: bool = True) -> Any:
    """Return a value of one of openai-python's types; `whole` gives it the fields that it may leave out."""
    origin = get_origin(kind)
    if origin is Required:
        return sample(get_args(kind)[0], name, whole)
    if origin is Literal:
        return get_args(kind)[0]
    if origin in (Union, types.UnionType):
        return sample(next(each for each in get_args(kind) if each is not type(None)), name, whole)
    if is_typeddict(kind):
        wanted = {key: each for key, each in fields(kind) if whole or key in TEXTS or get_origin(each) is Required}
        return {key: sample(each, key, whole) for key, each in wanted.items()}
    if origin in (list, collections.abc.Iterable, collections.abc.Sequence) or getattr(origin, "_is_protocol", False):
        return [sample(get_args(kind)[0], name, whole)]
    if origin is dict or kind is object:
        return {"some": "text"}
    plain: Mapping[Any, Any] = {str: TEXTS.get(name, "some"), int: 1, float: 0.5, bool: True}
    return plain[kind]


def fields(kind: Any) -> Iterator[tuple[str, Any]]:
    yield from ((key, each) for key, each in get_type_hints(kind, include_extras=True).items() if key != STORED)


def type_of(kind: Any) -> str:
    """Return the value of the field `type`."""
    return str(sample(dict(fields(kind))["type"]))


def talk(*messages: Any) -> Conversation:
    request = parse_json(chat.ChatCompletionRequest, orjson.dumps({"model": "m", "messages": messages}))
    return chat.to_conversation(request, 9)


def respond(*items: Any) -> Conversation:
    request = parse_json(responses.ResponseRequest, orjson.dumps({"model": "m", "input": items}))
    return responses.to_conversation(request, 9)


def said(message: ConversationMessage) -> list[Any]:
    """Return what a turn says: its texts, media and calls."""
    parts = [part.text if isinstance(part, TextPart) else part.modality for part in message.parts]
    return parts + [(call.id, call.function.name, call.function.arguments) for call in message.calls]


ROLES = {sample(dict(fields(kind))["role"]): kind for kind in members(ChatCompletionMessageParam)}
CHAT = verdicts("Chat Completions")
RESPONSES = verdicts("Responses")
CALLED: dict[str, Any] = {"role": "assistant", "tool_calls": [
    {"id": "some", "type": "function", "function": {"name": "f", "arguments": "{}"}},
]}  # fmt: skip
ASKED: dict[str, Any] = {"role": "assistant", "function_call": {"name": "some", "arguments": "{}"}}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("role", ROLES)
def test_every_message_of_chat(role: str, whole: bool) -> None:
    assert {key for key, _ in fields(ROLES[role])} <= set(CHAT)
    *_, turn = talk(HI, CALLED, ASKED, {**sample(ROLES[role], whole=whole), "role": role}).messages
    expected: dict[str, list[Any]] = {"assistant": ["some", "some", ("some", "some", "some"), ("some", "some", "some")]}
    assert said(turn) == (expected.get(role, ["some"]) if whole or role != "assistant" else [])


@pytest.mark.parametrize("field", [name for name, verdict in CHAT.items() if verdict == "no effect"])
def test_a_field_without_effect(field: str) -> None:
    for role in ("user", "assistant"):
        plain, given = talk({"role": role, "content": "a"}), talk({"role": role, "content": "a", field: "text"})
        assert plain == given


CHAT_PARTS = {
    type_of(kind): kind for union in (chat_parts.ChatCompletionContentPartParam, ContentArrayOfContentPart)
    for kind in members(union)
}  # fmt: skip


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("kind", CHAT_PARTS)
def test_every_part_of_chat(kind: str, role: str) -> None:
    message = {"role": role, "content": [sample(CHAT_PARTS[kind])], "tool_call_id": "some"}
    if CHAT[kind] == "refused":
        assert refusal_of(talk, HI, CALLED, message) == "messages[2].content[0].type"
    else:
        assert len(said(talk(HI, CALLED, message).messages[-1])) == 1


@pytest.mark.parametrize("call", members(ChatCompletionMessageToolCallUnionParam))
def test_every_call_of_chat(call: Any) -> None:
    ((made,),) = (turn.calls for turn in talk({"role": "assistant", "tool_calls": [sample(call)]}).messages)
    assert (made.id, made.function.name) == ("some", "some")
    assert "some" in made.function.arguments


ITEMS = {type_of(kind): kind for kind in members(ResponseInputItemParam)}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", ITEMS)
def test_every_item_of_responses(kind: str, whole: bool) -> None:
    call = {"type": "function_call", "call_id": "some", "name": "f", "arguments": "{}"}
    item = {"call_id": "some", **sample(ITEMS[kind], whole=whole), "type": kind}
    if RESPONSES[kind] == "refused":
        assert refusal_of(respond, HI, call, HI, item) == "input[3].type"
    elif RESPONSES[kind] == "skipped":
        assert respond(HI, call, HI, item) == respond(HI, call, HI)
    else:
        *_, turn = respond(HI, call, HI, item).messages
        assert len(said(turn)) == 1


RESPONSE_PARTS = {
    type_of(kind): kind for union in (
        input_parts.ResponseInputContentParam, answer_parts.Content, output_parts.ResponseFunctionCallOutputItemParam,
        ResponseComputerToolCallOutputScreenshotParam,
    ) for kind in members(union)
}  # fmt: skip


@pytest.mark.parametrize("role", ["developer", "user", "assistant"])
@pytest.mark.parametrize("kind", RESPONSE_PARTS)
def test_every_part_of_responses(kind: str, role: str) -> None:
    message = {"role": role, "content": [sample(RESPONSE_PARTS[kind])]}
    if RESPONSES[kind] == "refused":
        assert refusal_of(respond, message) == "input[0].content[0].type"
    else:
        assert len(said(respond(message).messages[0])) == 1


def refusal_of(ask: Any, *given: Any) -> str | None:
    """Return the field that is refused."""
    with pytest.raises(InvalidRequest) as caught:
        ask(*given)
    return caught.value.param

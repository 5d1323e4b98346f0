"""Request types that several routes of OpenAI's API share, and how a body is parsed into them.

Types are strict and unknown fields are ignored, as on OpenAI's own server. A body that pydantic rejects becomes an
InvalidRequest whose `param` is the field's path, such as `messages[0].content[1].image_url.url`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, ValidationError
from pydantic_core import ErrorDetails

from autoglm.common.errors import Code, InvalidRequest
from autoglm.common.recordings import AudioFormat
from autoglm.gateway.conversation import SAMPLING_RANGES, Conversation, MediaPart, Range
from autoglm.gateway.json_bounds import check_values
from autoglm.gateway.media.verify import at_url, in_base64, is_data_url, is_hash
from autoglm.gateway.tool_checks import MODES
from autoglm.v1 import generation_pb2
from autoglm.v1.generation_pb2 import ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_TOOL, ROLE_USER, Role
from autoglm.v1.modality_pb2 import MODALITY_AUDIO

ROLES: dict[str, Role.ValueType] = {
    "system": ROLE_SYSTEM,
    "developer": ROLE_SYSTEM,
    "user": ROLE_USER,
    "assistant": ROLE_ASSISTANT,
    "tool": ROLE_TOOL,
    "function": ROLE_TOOL,
}
# Parts and items that only the server which made them can read, or that belong in another field.
UNSUPPORTED_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("file", "input_file"), "files are not supported; send their text, or their pages as images"),
    "item_reference": "this server does not store items; send the item itself",
    "compaction": "only the server that wrote it can read it; send the earlier items",
    "compaction_trigger": "this server does not shorten conversations; leave earlier items out",
    "additional_tools": "send the tools in the field tools",
    "configuration_update": "send reasoning and text as fields of the request",
}


class Strict(BaseModel):
    """A request type: values are not converted, and unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


T = TypeVar("T", bound=Strict)
R = TypeVar("R")
# What pydantic says in terms of Python: what an object should be, and that the key of one is wrong.
_PYTHON_OBJECT = re.compile(r"a valid dictionary( or instance of \w+)?")
_KEY = "[key]"


def read_json(kind: type[T], read: Callable[[T], R], body: bytes | bytearray) -> R:
    """Parse a JSON body as `kind` and return what `read` makes of it; raises InvalidRequest naming the first invalid
    field. A body with too many values is not parsed."""
    check_values(body)
    return read(parse_json(kind, body))


def parse_json(kind: type[T], body: bytes | bytearray) -> T:
    """Parse a JSON body as `kind`; raises InvalidRequest naming the first invalid field."""
    try:
        return kind.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path, why = _path(first["loc"]), _PYTHON_OBJECT.sub("an object", first["msg"])
        if first["type"] == "part_kind":
            path, why = f"{path}.type", _why_not(first["input"]) or why
        raise InvalidRequest(f"{path or 'the body'}: {why}", param=path or None, code=_code(first)) from None


def _code(error: ErrorDetails) -> Code | None:
    """Return OpenAI's code of an error, where it has one that is finer than the type."""
    if error["type"] == "too_long":
        return "object_above_max_properties" if isinstance(error["input"], dict) else "array_above_max_length"
    return "string_above_max_length" if error["type"] == "string_too_long" else None


def _why_not(part: object) -> str | None:
    name = part.get("type") if isinstance(part, dict) else None
    return UNSUPPORTED_TYPES.get(name) if isinstance(name, str) else None


def _path(location: tuple[int | str, ...]) -> str:
    steps = [step for step in location if not (isinstance(step, str) and (step == _KEY or step.startswith("~")))]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def bounded(name: str) -> Any:
    """Return what limits a pydantic field to a number of SAMPLING_RANGES."""
    return within(SAMPLING_RANGES[name])


def at_most(count: int) -> Any:
    """Return what limits a list to `count` items; what follows the first invalid one is not looked at."""
    return Field(max_length=count, fail_fast=True)


def within(allowed: Range) -> Any:
    """Return what limits a pydantic field to `allowed`."""
    return Field(gt=allowed.low, le=allowed.high) if allowed.open_low else Field(ge=allowed.low, le=allowed.high)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Makes an integer field take 16.0, which to JSON is the same number as 16. After the limits, which it passes.
WHOLE = BeforeValidator(_whole)


# Tags begin with "~" so that `_path` can leave them out of a field's path.
def by_content(what: str) -> Discriminator:
    """Tell a string, tagged `~text`, from a list of `what`, tagged `~parts`."""

    def tag(value: object) -> str | None:
        return "~text" if isinstance(value, str) else "~parts" if isinstance(value, list) else None

    message = f"Input should be a string or a list of {what}"
    return Discriminator(tag, custom_error_type="content_kind", custom_error_message=message)


def by_type(*names: str | tuple[str, ...], default: str | None = None) -> Discriminator:
    """Tell objects apart by their `type`, which is their tag; `default` is the type of an object without one. Types
    that share a class are a tuple, whose first is the tag of all."""
    groups = [(each,) if isinstance(each, str) else each for each in names]
    tags = {name: f"~{group[0]}" for group in groups for name in group}

    def tag(value: object) -> str | None:
        name = (value.get("type") if isinstance(value, dict) else getattr(value, "type", None)) or default
        return tags.get(name) if isinstance(name, str) else None

    message = f"Input should have one of the types {', '.join(tags)}"
    return Discriminator(tag, custom_error_type="part_kind", custom_error_message=message)


class RefusalContent(Strict):
    """Words with which an assistant refused to answer."""

    type: Literal["refusal"]
    refusal: str


class InputAudio(Strict):
    """A recording, in base64, as a data: URL, or as `sha256:` and the hash of one that was sent before. Its format is
    told from its bytes."""

    data: str
    format: AudioFormat | None = None


class AudioContent(Strict):
    """A recording: WAV, MP3, FLAC, Ogg, AAC, M4A/MP4, WebM or AMR; of a video the sound is read."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def recording(part: AudioContent, param: str) -> MediaPart:
    """Return the recording in `part`, which is at `param`; raises InvalidRequest for malformed base64 or URLs."""
    param += ".input_audio.data"
    data = part.input_audio.data
    if is_data_url(data) or is_hash(data):
        return at_url(data, MODALITY_AUDIO, param)
    return MediaPart(MODALITY_AUDIO, in_base64(data, param), param)


class FunctionDefinition(Strict):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionName(Strict):
    """The name of a function."""

    name: str


class FunctionCallParam(Strict):
    """A function's name with arguments: JSON as text, or whatever else a model wrote."""

    model_config = ConfigDict(title="FunctionCall-Input")

    name: str
    arguments: str | None = None


class CustomCallParam(Strict):
    """The name of a custom tool, and the text that it was called with."""

    name: str
    input: str


Mode = Literal["none", "auto", "required"]
BY_CHOICE = Discriminator(
    lambda value: "~mode" if isinstance(value, str) else "~named" if isinstance(value, dict) else None,
    custom_error_type="choice_kind",
    custom_error_message="Input should be none, auto, required or a function",
)


def tools_of(functions: Sequence[FunctionDefinition], path: str) -> list[generation_pb2.Tool]:
    """Return the tools of a request, each with its function at `path`; raises InvalidRequest for a schema that is
    nested too deeply."""
    return [_tool(function, f"tools[{i}]{path}.parameters") for i, function in enumerate(functions)]


def _tool(function: FunctionDefinition, param: str) -> generation_pb2.Tool:
    return generation_pb2.Tool(
        function=generation_pb2.Function(
            name=function.name,
            description=function.description or "",
            parameters="" if function.parameters is None else schema_text(function.parameters, param),
            strict=bool(function.strict),
        )
    )


def tool_choice_of(choice: str | FunctionName | None) -> generation_pb2.ToolChoice | None:
    """Return the tool choice of a request: a mode, or a function to call."""
    if choice is None:
        return None
    if isinstance(choice, str):
        return generation_pb2.ToolChoice(mode=MODES[choice])
    return generation_pb2.ToolChoice(function=choice.name)


def restricted(conversation: Conversation, names: Sequence[str], param: str) -> Conversation:
    """Return `conversation` with those tools alone that `names`, at `param`, allow; raises InvalidRequest for a name
    that is not in its tools."""
    offered = tuple(i for i, tool in enumerate(conversation.tools) if tool.function.name in names)
    if len(offered) < len(set(names)):
        raise InvalidRequest(f"{param} names a function that is not in tools", param=param)
    tools, paths = [conversation.tools[i] for i in offered], replace(conversation.paths, offered=offered)
    return replace(conversation, tools=tools, paths=paths)


def tool_call_of(call_id: str, function: FunctionCallParam) -> generation_pb2.ToolCall:
    """Return a call that the assistant made in an earlier turn."""
    made = generation_pb2.FunctionCall(name=function.name, arguments=function.arguments or "")
    return generation_pb2.ToolCall(id=call_id, function=made)


def custom_call_of(call_id: str, tool: CustomCallParam) -> generation_pb2.ToolCall:
    """Return an earlier call of a custom tool: to the model, its text is an argument named `input`."""
    made = generation_pb2.FunctionCall(name=tool.name, arguments=orjson.dumps({"input": tool.input}).decode())
    return generation_pb2.ToolCall(id=call_id, function=made)


def schema_text(schema: dict[str, Any], param: str) -> str:
    """Return a JSON Schema as text; raises InvalidRequest for one that is nested too deeply."""
    json_text({"response": {"text": {"format": {"schema": schema}}}}, param)  # an answer repeats it at this depth
    return json_text(schema, param)


def json_text(value: object, param: str) -> str:
    """Return a value as JSON; raises InvalidRequest for one that is nested too deeply."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{param} is nested too deeply", param=param) from None

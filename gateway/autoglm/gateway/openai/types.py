"""Request types that several routes of OpenAI's API share, and how a body is parsed into them.

Types are strict and unknown fields are ignored, as on OpenAI's own server. A body that pydantic rejects becomes an
InvalidRequest whose `param` is the field's path, such as `messages[0].content[1].image_url.url`.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, Field, ValidationError

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import SAMPLING_RANGES, MediaPart
from autoglm.gateway.media.verify import in_data_url, is_data_url
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
}


class Strict(BaseModel):
    """A request type: values are not converted, and unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


T = TypeVar("T", bound=Strict)


def parse_json(kind: type[T], body: bytes | bytearray) -> T:
    """Parse a JSON body as `kind`; raises InvalidRequest naming the first invalid field."""
    try:
        return kind.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = _path(first["loc"]) + (".type" if first["type"] == "part_kind" else "")
        raise InvalidRequest(f"{path or 'the body'}: {first['msg']}", param=path or None) from None


def _path(location: tuple[int | str, ...]) -> str:
    steps = [step for step in location if not (isinstance(step, str) and step.startswith("~"))]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def bounded(name: str) -> Any:
    """Return the pydantic field for a number of SAMPLING_RANGES."""
    allowed = SAMPLING_RANGES[name]
    if allowed.open_low:
        return Field(None, gt=allowed.low, le=allowed.high)
    return Field(None, ge=allowed.low, le=allowed.high)


# Tags begin with "~" so that `_path` can leave them out of a field's path.
def by_content(what: str) -> Discriminator:
    """Tell a string, tagged `~text`, from a list of `what`, tagged `~parts`."""

    def tag(value: object) -> str | None:
        return "~text" if isinstance(value, str) else "~parts" if isinstance(value, list) else None

    message = f"Input should be a string or a list of {what}"
    return Discriminator(tag, custom_error_type="content_kind", custom_error_message=message)


def by_type(*names: str, default: str | None = None) -> Discriminator:
    """Tell objects apart by their `type`, which is their tag; `default` is the type of an object without one."""

    def tag(value: object) -> str | None:
        name = value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default)
        return f"~{name}" if name in names else None

    message = f"Input should have one of the types {', '.join(names)}"
    return Discriminator(tag, custom_error_type="part_kind", custom_error_message=message)


AudioFormat = Literal[
    "wav", "mp3", "mpeg", "mpga", "flac", "ogg", "oga", "opus", "aac", "m4a", "mp4", "mov", "webm", "amr", "3gp"
]


class InputAudio(Strict):
    """A recording, in base64 or as a data: URL; its format is told from its bytes."""

    data: str
    format: AudioFormat | None = None


class AudioContent(Strict):
    """A recording: WAV, MP3, FLAC, Ogg, AAC, M4A/MP4, WebM or AMR; of a video the sound is read."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def recording(part: AudioContent, param: str) -> MediaPart:
    """Return the recording in `part`, which is at `param`; raises InvalidRequest for a malformed data: URL."""
    param += ".input_audio.data"
    data = part.input_audio.data
    return MediaPart(MODALITY_AUDIO, in_data_url(data, param) if is_data_url(data) else data, param)


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
    """A function's name with arguments, a JSON object as text."""

    model_config = ConfigDict(title="FunctionCall-Input")

    name: str
    arguments: str


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
        )
    )


def tool_choice_of(choice: str | FunctionName | None) -> generation_pb2.ToolChoice | None:
    """Return the tool choice of a request: a mode, or a function to call."""
    if choice is None:
        return None
    if isinstance(choice, str):
        return generation_pb2.ToolChoice(mode=MODES[choice])
    return generation_pb2.ToolChoice(function=choice.name)


def tool_call_of(call_id: str, function: FunctionCallParam) -> generation_pb2.ToolCall:
    """Return a call that the assistant made in an earlier turn."""
    made = generation_pb2.FunctionCall(name=function.name, arguments=function.arguments)
    return generation_pb2.ToolCall(id=call_id, function=made)


def schema_text(schema: dict[str, Any], param: str) -> str:
    """Return a JSON Schema as text; raises InvalidRequest for one that is nested too deeply."""
    try:
        orjson.dumps({"response": {"text": {"format": {"schema": schema}}}})  # an answer repeats it at this depth
        return orjson.dumps(schema).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{param} is nested too deeply", param=param) from None

"""The messages of POST /v1/chat/completions as pydantic types, and how each becomes a turn of a conversation.

docs/conversations.md says what becomes of each field and part that OpenAI's API knows.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Tag

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import ConversationMessage, MediaPart, TextPart
from autoglm.gateway.limits import MAX_PARTS
from autoglm.gateway.media.verify import at_url
from autoglm.gateway.openai.types import (
    ROLES,
    AudioContent,
    CustomCallParam,
    FunctionCallParam,
    RefusalContent,
    Strict,
    at_most,
    by_content,
    by_type,
    custom_call_of,
    recording,
    tool_call_of,
)
from autoglm.v1.generation_pb2 import ROLE_TOOL, ToolCall
from autoglm.v1.modality_pb2 import MODALITY_AUDIO, MODALITY_IMAGE


class TextContent(Strict):
    """Written text."""

    type: Literal["text"]
    text: str


class MediaUrl(Strict):
    """The URL of an image or a recording: data:, or https: to a host that the server fetches from. `sha256:` and the 64
    hexadecimal digits of a file's SHA-256 name one that was sent before with the same API key."""

    url: str


class ImageContent(Strict):
    """A picture: PNG, JPEG, WebP or GIF."""

    type: Literal["image_url"]
    image_url: MediaUrl


class AudioUrlContent(Strict):
    """A recording by its URL, as in vLLM; `input_audio` names the formats."""

    type: Literal["audio_url"]
    audio_url: MediaUrl


Content = Annotated[
    Annotated[TextContent, Tag("~text")]
    | Annotated[ImageContent, Tag("~image_url")]
    | Annotated[AudioUrlContent, Tag("~audio_url")]
    | Annotated[AudioContent, Tag("~input_audio")]
    | Annotated[RefusalContent, Tag("~refusal")],
    by_type("text", "image_url", "audio_url", "input_audio", "refusal"),
]


class ToolCallParam(Strict):
    """A function that the assistant called."""

    model_config = ConfigDict(title="ToolCall")

    id: str
    type: Literal["function"] = "function"
    function: FunctionCallParam


class CustomToolCallParam(Strict):
    """A custom tool that the assistant called, in a conversation with another model."""

    id: str
    type: Literal["custom"]
    custom: CustomCallParam


class SpokenAnswer(Strict):
    """An answer that another model spoke."""

    id: str
    transcript: str | None = None


class ChatMessage(Strict):
    """One turn of a conversation; it may say nothing. `function` is the role of a result in OpenAI's older API."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[
            Annotated[str, Tag("~text")] | Annotated[list[Content], at_most(MAX_PARTS), Tag("~parts")],
            by_content("parts"),
        ]
        | None
    ) = None
    refusal: str | None = None
    audio: SpokenAnswer | None = None
    tool_calls: (
        Annotated[
            list[
                Annotated[
                    Annotated[ToolCallParam, Tag("~function")] | Annotated[CustomToolCallParam, Tag("~custom")],
                    by_type("function", "custom", default="function"),
                ]
            ],
            at_most(MAX_PARTS),
        ]
        | None
    ) = None
    function_call: FunctionCallParam | None = None
    tool_call_id: str | None = None
    name: str | None = None


def message(given: ChatMessage, param: str) -> ConversationMessage:
    """Return the turn at `param`; raises InvalidRequest for a malformed URL, or speech that only OpenAI stores."""
    role, calls = ROLES[given.role], [_call(call) for call in given.tool_calls or ()]
    if given.function_call:
        calls.append(tool_call_of(given.function_call.name, given.function_call))
    if given.role == "function":  # it names the function, which then is the id of the call
        return ConversationMessage(role, _parts(given, param), f"{param}.name", calls, given.name or "")
    field = "tool_call_id" if role == ROLE_TOOL else "tool_calls"
    return ConversationMessage(role, _parts(given, param), f"{param}.{field}", calls, given.tool_call_id or "")


def _call(call: ToolCallParam | CustomToolCallParam) -> ToolCall:
    if isinstance(call, CustomToolCallParam):
        return custom_call_of(call.id, call.custom)
    return tool_call_of(call.id, call.function)


def _parts(given: ChatMessage, param: str) -> list[TextPart | MediaPart]:
    """Return the content, and what an answer says in fields of its own: a refusal, or the transcript of speech."""
    if isinstance(given.content, str):
        parts: list[TextPart | MediaPart] = [TextPart(given.content)]
    else:
        parts = [_part(part, f"{param}.content[{i}]") for i, part in enumerate(given.content or ())]
    if given.refusal:
        parts.append(TextPart(given.refusal))
    if given.audio and not given.content:
        parts.append(_spoken(given.audio, f"{param}.audio"))
    return parts


def _spoken(answer: SpokenAnswer, param: str) -> TextPart:
    if answer.transcript is None:
        raise InvalidRequest(f"{param}: this server does not store speech; send its transcript in content", param=param)
    return TextPart(answer.transcript)


def _part(
    part: TextContent | ImageContent | AudioUrlContent | AudioContent | RefusalContent, param: str
) -> TextPart | MediaPart:
    if isinstance(part, TextContent):
        return TextPart(part.text)
    if isinstance(part, RefusalContent):
        return TextPart(part.refusal)
    if isinstance(part, ImageContent):
        return at_url(part.image_url.url, MODALITY_IMAGE, f"{param}.image_url.url")
    if isinstance(part, AudioUrlContent):
        return at_url(part.audio_url.url, MODALITY_AUDIO, f"{param}.audio_url.url")
    return recording(part, param)

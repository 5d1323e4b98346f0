"""OpenAI's Responses API: its request as pydantic types, and how it becomes a Conversation.

The server keeps nothing between requests: `store` is taken and answered as false, and what needs a store is refused.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.chat import (
    ROLES,
    AudioContent,
    bounded,
    by_content,
    by_type,
    read,
    recording,
)
from autoglm.gateway.conversation import Conversation, MediaPart, Message, TextPart, check_messages
from autoglm.gateway.media import at_url
from autoglm.gateway.tools import Strict, schema_text
from autoglm.v1.generation_pb2 import ROLE_SYSTEM, ROLE_USER, SamplingParams
from autoglm.v1.modality_pb2 import MODALITY_IMAGE

REFUSED = {
    "previous_response_id": "this server keeps no responses; send the earlier items in input",
    "conversation": "this server keeps no conversations; send the earlier items in input",
    "prompt": "this server keeps no prompts; send them in instructions and input",
    "background": "this server answers at once only; use stream",
    "tools": "this route has no tools",
}


class ResponseText(Strict):
    """Written text: `output_text` in what the model said."""

    type: Literal["input_text", "output_text"]
    text: str


class ResponseImage(Strict):
    """A picture by its URL: PNG, JPEG, WebP or GIF."""

    type: Literal["input_image"]
    image_url: str


ResponsePart = Annotated[
    Annotated[ResponseText, Tag("~input_text")]
    | Annotated[ResponseText, Tag("~output_text")]
    | Annotated[ResponseImage, Tag("~input_image")]
    | Annotated[AudioContent, Tag("~input_audio")],
    by_type("input_text", "output_text", "input_image", "input_audio"),
]


class ResponseMessage(Strict):
    """One turn of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Annotated[str, Tag("~text")] | Annotated[list[ResponsePart], Tag("~parts")], by_content("parts")]


class EarlierReasoning(Strict):
    """Reasoning of an earlier answer, sent back with it. The model does not read it again."""

    type: Literal["reasoning"]


ResponseItem = Annotated[
    Annotated[ResponseMessage, Tag("~message")] | Annotated[EarlierReasoning, Tag("~reasoning")],
    by_type("message", "reasoning", default="message"),
]


class TextFormat(Strict):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """OpenAI's `text`."""

    format: TextFormat | None = None


class ReasoningOptions(Strict):
    """OpenAI's `reasoning`: `none` answers at once, any other effort thinks first."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponseRequest(Strict):
    """The body of POST /v1/responses."""

    model: str
    input: Annotated[Annotated[str, Tag("~text")] | Annotated[list[ResponseItem], Tag("~parts")], by_content("items")]
    instructions: str | None = None
    max_output_tokens: int | None = bounded("max_tokens")
    temperature: float | None = bounded("temperature")
    top_p: float | None = bounded("top_p")
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(None, max_length=16)
    stream: bool | None = None
    store: bool | None = Field(None, description="Without effect: nothing is stored.")
    previous_response_id: str | None = Field(None, description="Refused: nothing is stored.")
    conversation: Any = Field(None, description="Refused: nothing is stored.")
    prompt: Any = Field(None, description="Refused: nothing is stored.")
    background: bool | None = Field(None, description="Refused when true.")
    tools: list[Any] | None = Field(None, description="Refused unless empty.")

    @property
    def format(self) -> TextFormat:
        """What the answer has to look like."""
        return (self.text and self.text.format) or TextFormat(schema=None)


def parse(body: bytes | bytearray) -> ResponseRequest:
    """Read a request's JSON; raises InvalidRequest naming the first field at fault."""
    request = read(ResponseRequest, body)
    for name, why in REFUSED.items():
        if getattr(request, name):
            raise InvalidRequest(f"{name}: {why}", param=name)
    return request


def to_conversation(request: ResponseRequest, max_media: int) -> Conversation:
    """Return what `request` asks for; raises InvalidRequest for what its types cannot rule out."""
    said = _messages(request.input)
    check_messages(said, "input", max_media)
    standing = [Message(ROLE_SYSTEM, [TextPart(request.instructions)], "instructions")] if request.instructions else []
    effort = request.reasoning and request.reasoning.effort
    return Conversation(
        messages=[*standing, *said],
        sampling=SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_output_tokens,
            **_structure(request.format),
        ),
        enable_thinking=None if effort is None else effort != "none",
        return_reasoning=True,
    )


def _structure(wanted: TextFormat) -> dict[str, Any]:
    if wanted.type == "text":
        return {}
    if wanted.type == "json_schema" and wanted.schema_ is None:
        raise InvalidRequest("text.format.schema is missing", param="text.format.schema")
    schema = {"type": "object"} if wanted.schema_ is None else wanted.schema_
    return {"json_schema": schema_text(schema, "text.format.schema")}


def _messages(given: str | Sequence[ResponseMessage | EarlierReasoning]) -> list[Message]:
    if isinstance(given, str):
        return [Message(ROLE_USER, [TextPart(given)], "input")]
    return [_message(item, f"input[{i}].content") for i, item in enumerate(given) if isinstance(item, ResponseMessage)]


def _message(message: ResponseMessage, param: str) -> Message:
    if isinstance(message.content, str):
        return Message(ROLES[message.role], [TextPart(message.content)], param)
    parts = [_part(part, f"{param}[{i}]") for i, part in enumerate(message.content)]
    return Message(ROLES[message.role], parts, param)


def _part(part: ResponseText | ResponseImage | AudioContent, param: str) -> TextPart | MediaPart:
    if isinstance(part, ResponseText):
        return TextPart(part.text)
    if isinstance(part, ResponseImage):
        return at_url(part.image_url, MODALITY_IMAGE, f"{param}.image_url")
    return recording(part, param)

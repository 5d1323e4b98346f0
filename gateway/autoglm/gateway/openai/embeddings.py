"""OpenAI's POST /v1/embeddings, and vLLM's form of it with `messages`, by which an image or a recording comes.

Vectors are sent a few at a time: two thousand of them are twenty megabytes of JSON, and others wait meanwhile.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import orjson
from pydantic import BeforeValidator, ConfigDict, Field, Tag
from pydantic_core import PydanticCustomError

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import Inputs, MediaPart, TextPart, check_messages
from autoglm.gateway.openai.chat import request as chat
from autoglm.gateway.tool_checks import Strict
from autoglm.v1.decoder_pb2 import DecoderServiceEmbedResponse

MAX_INPUTS = 2048
PIECE = 32  # vectors rendered at a time, which takes about a millisecond
ELEMENT_BYTES = 4


def _no_token_ids(value: object) -> object:
    if isinstance(value, int | list):
        raise PydanticCustomError("token_ids", "Input should be text, not token ids; send strings")
    return value


Text = Annotated[str, BeforeValidator(_no_token_ids, json_schema_input_type=str), Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingRequest(Strict):
    """The body of POST /v1/embeddings; either `input` or `messages`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["input"]}, {"required": ["messages"]}]})

    model: str
    input: (
        Annotated[Annotated[Text, Tag("~text")] | Annotated[Texts, Tag("~parts")], chat.by_content("strings")] | None
    ) = Field(None, description="A text, or up to 2048; each becomes a vector.")
    messages: list[chat.ChatMessage] | None = Field(
        None, description="As in a chat, with one text, image or recording in all, which becomes a vector."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`base64` is of float32, little-endian."
    )
    dimensions: int | None = Field(None, ge=1, description="The elements of a vector; no other number is possible.")
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    model: str
    inputs: Inputs
    base64: bool


def parse(body: bytes | bytearray) -> Asked:
    """Read a request's JSON; raises InvalidRequest naming the first field at fault."""
    request = chat.read(EmbeddingRequest, body)
    if (request.input is None) == (request.messages is None):
        raise InvalidRequest("input: one of input and messages is needed, and not both", param="input")
    texts = [request.input] if isinstance(request.input, str) else request.input
    parts = [TextPart(text) for text in texts or ()] if request.messages is None else [_only(request.messages)]
    param = "input" if request.messages is None else "messages"
    inputs = Inputs(parts, param, request.dimensions)
    return Asked(request.model, inputs, request.encoding_format == "base64")


def _only(given: Sequence[chat.ChatMessage]) -> TextPart | MediaPart:
    """Return the one part of a conversation; several have no common vector."""
    messages = [chat.message(each, f"messages[{i}].content") for i, each in enumerate(given)]
    check_messages(messages, "messages", 1)
    parts = [part for each in messages for part in each.parts]
    if len(parts) != 1:
        raise InvalidRequest(
            "messages: one text, image or recording becomes a vector; send each in a request of its own",
            param="messages",
        )
    return parts[0]


def render(found: DecoderServiceEmbedResponse, asked: Asked, model: str) -> Iterator[bytes]:
    """Yield the answer's JSON in pieces."""
    yield b'{"object":"list","data":['
    count, width = found.vectors.shape
    data, size = memoryview(found.vectors.data), width * ELEMENT_BYTES
    for first in range(0, count, PIECE):
        rows = [
            {"object": "embedding", "index": i, "embedding": _vector(data[i * size : (i + 1) * size], asked.base64)}
            for i in range(first, min(first + PIECE, count))
        ]
        yield (b"," if first else b"") + orjson.dumps(rows)[1:-1]
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    yield b"]," + orjson.dumps({"model": model, "usage": usage})[1:]


def _vector(raw: memoryview, in_base64: bool) -> str | list[float]:
    return base64.b64encode(raw).decode() if in_base64 else list(raw.cast("f"))

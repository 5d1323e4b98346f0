"""POST /v1/embeddings: OpenAI's form with `input`, and vLLM's with `messages` for an image or a recording.

Vectors are rendered and sent a few at a time: two thousand of them are twenty megabytes of JSON, and rendering them at
once would block all other requests.
"""

import asyncio
import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag
from pydantic_core import PydanticCustomError

from autoglm.common.errors import InvalidRequest
from autoglm.gateway.conversation import EmbeddingInputs, MediaPart, TextPart, check_messages
from autoglm.gateway.limits import MAX_EMBEDDING_INPUTS, MAX_MESSAGES
from autoglm.gateway.openai.chat.messages import ChatMessage, message
from autoglm.gateway.openai.openapi import Spec
from autoglm.gateway.openai.route import Incoming, Responder, Route
from autoglm.gateway.openai.types import WHOLE, Strict, at_most, by_content, read_json
from autoglm.v1.decoder_pb2 import DecoderServiceEmbedResponse

PIECE = 32  # vectors rendered at a time, in about a millisecond
ELEMENT_BYTES = 4


def _no_token_ids(value: object) -> object:
    """Refuse what OpenAI takes as ids of its own tokenizers: which one made them cannot be told from the numbers."""
    if isinstance(value, int | list):
        raise PydanticCustomError(
            "token_ids",
            "Input should be text: token ids are of an unknown tokenizer, so send strings (LangChain's OpenAIEmbeddings"
            " does with check_embedding_ctx_length=False)",
        )
    return value


Text = Annotated[str, BeforeValidator(_no_token_ids, json_schema_input_type=str), Field(min_length=1)]
Texts = Annotated[list[Text], at_most(MAX_EMBEDDING_INPUTS), Field(min_length=1)]


def _one_of(given: str, other: str) -> dict[str, Any]:
    """Return the JSON Schema of an object that has the field `given`, and not the `other`."""
    return {"required": [given], "properties": {given: {"not": {"type": "null"}}, other: {"type": "null"}}}


class EmbeddingRequest(Strict):
    """The body of POST /v1/embeddings; either `input` or `messages`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_one_of("input", "messages"), _one_of("messages", "input")]})

    model: str
    input: Annotated[Annotated[Text, Tag("~text")] | Annotated[Texts, Tag("~parts")], by_content("strings")] | None = (
        Field(None, description="A text, or up to 2048 texts; each becomes a vector.")
    )
    messages: Annotated[list[ChatMessage], at_most(MAX_MESSAGES)] | None = Field(
        None,
        description="As in a chat, with exactly one text, image or recording, which becomes a vector.",
        json_schema_extra={"minItems": 1},
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`base64` encodes little-endian float32."
    )
    dimensions: Annotated[int | None, WHOLE] = Field(
        None, ge=1, description="Elements of a vector; only the model's own number is accepted."
    )
    user: str | None = None


class EmbeddingData(BaseModel):
    """A vector of unit length, as numbers or in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """One vector for each input, in order."""

    object: Literal["list"]
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage


@dataclass(frozen=True, slots=True)
class ParsedEmbeddingRequest:
    """The inputs to embed, and whether vectors are sent in base64."""

    model: str
    inputs: EmbeddingInputs
    base64: bool


async def read(incoming: Incoming) -> ParsedEmbeddingRequest:
    """Read a request; raises InvalidRequest naming the first invalid field."""
    return await incoming.readers.read(incoming.body, partial(read_json, EmbeddingRequest, _parsed))


def _parsed(request: EmbeddingRequest) -> ParsedEmbeddingRequest:
    if (request.input is None) == (request.messages is None):
        raise InvalidRequest("input: exactly one of input and messages is required", param="input")
    texts = [request.input] if isinstance(request.input, str) else request.input
    parts = [TextPart(text) for text in texts or ()] if request.messages is None else [_only(request.messages)]
    param = "input" if request.messages is None else "messages"
    inputs = EmbeddingInputs(parts, param, request.dimensions)
    return ParsedEmbeddingRequest(request.model, inputs, request.encoding_format == "base64")


def _only(given: Sequence[ChatMessage]) -> TextPart | MediaPart:
    """Return the only part of a conversation that is not empty; raises InvalidRequest for none or several."""
    messages = [message(each, f"messages[{i}]") for i, each in enumerate(given)]
    check_messages(messages, "messages", 1)
    parts = [part for each in messages for part in each.parts if isinstance(part, MediaPart) or part.text]
    if len(parts) != 1:
        raise InvalidRequest(
            "messages: exactly one text, image or recording per request; send each in its own request",
            param="messages",
        )
    return parts[0]


async def reply(request: ParsedEmbeddingRequest, respond: Responder) -> None:
    """Send one vector for each input; raises MeshError."""
    found = await respond.backend.assistant.embed(respond.slot, respond.model, request.inputs)
    await respond.start("application/json")
    for piece in render(found, respond.model.name, request.base64):
        await respond.write(piece)
        await asyncio.sleep(0)  # let other requests run
    await respond.finish()


def render(found: DecoderServiceEmbedResponse, model: str, in_base64: bool) -> Iterator[bytes]:
    """Yield the answer's JSON in pieces."""
    yield b'{"object":"list","data":['
    count, width = found.vectors.shape
    data, size = memoryview(found.vectors.data), width * ELEMENT_BYTES
    for first in range(0, count, PIECE):
        rows = [
            {"object": "embedding", "index": i, "embedding": _vector(data[i * size : (i + 1) * size], in_base64)}
            for i in range(first, min(first + PIECE, count))
        ]
        yield (b"," if first else b"") + orjson.dumps(rows)[1:-1]
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    yield b"]," + orjson.dumps({"model": model, "usage": usage})[1:]


def _vector(raw: memoryview, in_base64: bool) -> str | list[float]:
    return base64.b64encode(raw).decode() if in_base64 else list(raw.cast("f"))


ROUTE = Route(
    "/v1/embeddings",
    read,
    reply,
    Spec(
        name="create_embeddings",
        description="Make a vector of each text, or of an image or a recording.",
        request={"application/json": EmbeddingRequest},
        answers={"application/json": EmbeddingList},
    ),
)

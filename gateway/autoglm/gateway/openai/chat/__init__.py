"""POST /v1/chat/completions."""

from functools import partial

from autoglm.gateway.openai.chat.render import ChatRenderer
from autoglm.gateway.openai.chat.request import ChatCompletionRequest, to_conversation
from autoglm.gateway.openai.chat.schema import ChatCompletion, ChatCompletionChunk
from autoglm.gateway.openai.errors import Error
from autoglm.gateway.openai.generation import Generation, generate
from autoglm.gateway.openai.openapi import Events, Spec
from autoglm.gateway.openai.route import Incoming, Route
from autoglm.gateway.openai.types import read_json


async def read(incoming: Incoming) -> Generation:
    """Read a chat request; raises InvalidRequest naming the first invalid field."""
    parsed = partial(_generation, max_media_parts=incoming.max_media_parts)
    return await incoming.readers.read(incoming.body, partial(read_json, ChatCompletionRequest, parsed))


def _generation(request: ChatCompletionRequest, max_media_parts: int) -> Generation:
    conversation = to_conversation(request, max_media_parts)
    renderer = partial(ChatRenderer, include_usage=request.include_usage, service_tier=request.service_tier)
    return Generation(request.model, conversation, bool(request.stream), renderer)


ROUTE = Route(
    "/v1/chat/completions",
    read,
    generate,
    Spec(
        name="create_chat_completion",
        description="Answer a conversation of text, images and speech; with `stream`, as server-sent events.",
        request={"application/json": ChatCompletionRequest},
        answers={"application/json": ChatCompletion, "text/event-stream": Events([ChatCompletionChunk, Error])},
    ),
)

"""POST /v1/responses."""

from functools import partial

from autoglm.gateway.openai.generation import Generation, generate
from autoglm.gateway.openai.openapi import Events, Spec
from autoglm.gateway.openai.responses.render import ResponsesRenderer
from autoglm.gateway.openai.responses.request import ResponseRequest, to_conversation
from autoglm.gateway.openai.responses.schema import Response, ResponseEvent
from autoglm.gateway.openai.route import Incoming, Route
from autoglm.gateway.openai.types import read_json


async def read(incoming: Incoming) -> Generation:
    """Read a request for a response; raises InvalidRequest naming the first invalid field."""
    parsed = partial(_generation, max_media_parts=incoming.max_media_parts)
    return await incoming.readers.read(incoming.body, partial(read_json, ResponseRequest, parsed))


def _generation(request: ResponseRequest, max_media_parts: int) -> Generation:
    conversation = to_conversation(request, max_media_parts)
    renderer = partial(ResponsesRenderer, echo=request.echo())
    return Generation(request.model, conversation, bool(request.stream), renderer)


ROUTE = Route(
    "/v1/responses",
    read,
    generate,
    Spec(
        name="create_response",
        description="Answer items of text, images and speech; with `stream`, as server-sent events.",
        request={"application/json": ResponseRequest},
        answers={"application/json": Response, "text/event-stream": Events([ResponseEvent], closing="")},
    ),
)

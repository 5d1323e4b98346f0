"""How a conversation is answered over HTTP, whole or as a stream, whatever the API renders the answer as."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from autoglm.common.errors import MeshError
from autoglm.gateway.conversation import Conversation
from autoglm.gateway.openai.route import Responder
from autoglm.gateway.openai.telemetry import server_timing
from autoglm.gateway.pipeline import Choice, Step, Summary, collect

# By the header alone, `requests` and others would read text without a charset as ISO-8859-1.
EVENT_STREAM = "text/event-stream; charset=utf-8"
STREAM_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
)


class Renderer(Protocol):
    """The JSON of one answer in one API: `body` whole, or else `opening`, `chunk` after `chunk`, and then `end` or
    `failed` as the events of a stream."""

    @property
    def end(self) -> bytes:
        """The event after the last chunk."""

    def opening(self, n: int) -> bytes:
        """Return the events before the first step of `n` choices."""

    def chunk(self, step: Step) -> bytes:
        """Return the events of one step."""

    def failed(self, error: MeshError) -> bytes:
        """Return the events that end a stream which fails after its first step."""

    def body(self, choices: Sequence[Choice], summary: Summary) -> bytes:
        """Return the whole answer."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A request for an answer; `renderer` takes the request's id and the name of the model that answers."""

    model: str
    conversation: Conversation
    stream: bool
    renderer: Callable[[str, str], Renderer]


def generate(request: Generation, respond: Responder) -> Awaitable[None]:
    """Answer a conversation, as a stream of events where the client asked for one; raises MeshError.

    Not a coroutine itself: an open stream would hold its frame too.
    """
    renderer = request.renderer(respond.slot.context.request_id, respond.model.name)
    return (_stream if request.stream else _whole)(request.conversation, renderer, respond)


async def _whole(conversation: Conversation, renderer: Renderer, respond: Responder) -> None:
    async with aclosing(
        respond.backend.assistant.chat(respond.slot, respond.model, conversation, stream=False)
    ) as steps:
        choices, summary = await collect(steps, conversation.n)
    await respond.start("application/json", (b"server-timing", server_timing(summary.stages).encode()))
    await respond.finish(renderer.body(choices, summary))


def _failed(error: BaseException, respond: Responder) -> MeshError:
    """Count an error that ends a stream, and note it as the outcome of the request."""
    known = respond.backend.failed(error)
    respond.slot.context.failed = known.http_status
    return known


async def _stream(conversation: Conversation, renderer: Renderer, respond: Responder) -> None:
    """Send the steps as they come. The status waits for the first, so a request that fails before it has its own.

    Backpressure: the next step is read only after the client's connection took the last one.
    """
    opened = False
    try:
        async with aclosing(
            respond.backend.assistant.chat(respond.slot, respond.model, conversation, stream=True)
        ) as steps:
            async for step in steps:
                opening = b""
                if not opened:
                    await respond.start(EVENT_STREAM, *STREAM_HEADERS)
                    opening, opened = renderer.opening(conversation.n), True
                await respond.write(opening + renderer.chunk(step))
    except Exception as error:
        if not opened:
            raise
        await respond.finish(renderer.failed(_failed(error, respond)))
    else:
        await respond.finish(renderer.end)

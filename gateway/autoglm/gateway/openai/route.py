"""A route of the API that takes a body and answers it: one row of `app.ROUTES`.

The row is all there is to add: it is served by one `Exchange` and described at /openapi.json.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from starlette.datastructures import Headers
from starlette.types import Send

from autoglm.gateway.admission.admission import AdmittedSlot
from autoglm.gateway.assistant import ResolvedModel
from autoglm.gateway.backend import Backend
from autoglm.gateway.openai.openapi import Spec
from autoglm.gateway.readers import ReaderPool


@dataclass(frozen=True, slots=True)
class Incoming:
    """A whole request as a route reads it."""

    headers: Headers
    body: bytearray
    max_media_parts: int
    readers: ReaderPool


class ParsedRequest(Protocol):
    """What a route reads from a request. It must not keep the body, which would stay in memory during the answer."""

    @property
    def model(self) -> str:
        """The name that the client gave."""


P = TypeVar("P", bound=ParsedRequest)


@dataclass(frozen=True, slots=True)
class Responder:
    """What a route answers with: the admitted request's slot, the model it resolved to, and the way to the client."""

    backend: Backend
    slot: AdmittedSlot
    model: ResolvedModel
    send: Send

    async def start(self, content_type: str, *headers: tuple[bytes, bytes]) -> None:
        """Send the status 200 and the headers."""
        fields = [(b"content-type", content_type.encode()), *headers]
        await self.send({"type": "http.response.start", "status": 200, "headers": fields})

    async def write(self, data: bytes) -> None:
        """Send a piece of the body, waiting while the client reads more slowly."""
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece of the body."""
        await self.send({"type": "http.response.body", "body": data, "more_body": False})


@dataclass(frozen=True, slots=True)
class Route(Generic[P]):
    """One row: the path, how a request is read and answered, and how /openapi.json describes it.

    `read` raises InvalidRequest. `reply` raises MeshError, which becomes the response if nothing was sent yet.
    """

    path: str
    read: Callable[[Incoming], Awaitable[P]]
    reply: Callable[[P, Responder], Awaitable[None]]
    spec: Spec

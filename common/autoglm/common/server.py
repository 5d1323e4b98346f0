"""How a servicer behind Ray Serve answers with an error that keeps its details.

Serve passes on what was *set* on the context before the handler returns; an exception would lose
the trailing metadata and with it google.rpc.Status.
"""

import asyncio
import logging
from typing import Protocol

import grpc
from grpc_status import rpc_status

from autoglm.common.errors import DeadlineExceeded, InternalError, MeshError, to_status

logger = logging.getLogger("autoglm")


class Context(Protocol):
    """The part of ray.serve's RayServegRPCContext that an error needs."""

    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None: ...


def fail(context: Context, error: BaseException) -> None:
    """Put `error` on `context`; the handler then returns. Only faults of our own are logged whole."""
    known = as_mesh_error(error)
    status = rpc_status.to_status(to_status(known))
    context.set_code(status.code)
    context.set_details(status.details)
    context.set_trailing_metadata(list(status.trailing_metadata))  # Serve adds a list to it


def as_mesh_error(error: BaseException) -> MeshError:
    """Return `error` as one that clients may see; a stranger is logged and becomes InternalError."""
    if isinstance(error, MeshError):
        return error
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return DeadlineExceeded("the deadline passed before the answer was complete; allow more time")
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return InternalError("an internal error occurred; the service's log has it under this request's id")

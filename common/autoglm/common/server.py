"""How a servicer behind Ray Serve answers with an error that keeps its details.

Serve passes on what was *set* on the context before the handler returns; an exception would lose
the trailing metadata and with it google.rpc.Status.
"""

import asyncio
import hmac
import logging
import os
from typing import Any, Protocol

import grpc
from grpc_status import rpc_status

from autoglm.common.errors import AuthenticationFailed, DeadlineExceeded, InternalError, MeshError, to_status

logger = logging.getLogger("autoglm")


class Context(Protocol):
    """The part of ray.serve's RayServegRPCContext that an error needs."""

    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None: ...


class Caller(Context, Protocol):
    """The same with what the caller sent beside its request, as pairs of name and value."""

    def invocation_metadata(self) -> Any: ...


def let_in(context: Caller) -> bool:
    """Return whether the caller shows the token of AUTOGLM_SERVE_TOKEN, if one is set; if not, the error is put."""
    token = os.environ.get("AUTOGLM_SERVE_TOKEN")
    shown = dict(context.invocation_metadata()).get("authorization", "")
    if not token or hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
        return True
    fail(context, AuthenticationFailed("this service answers only callers with the token of its AUTOGLM_SERVE_TOKEN"))
    return False


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

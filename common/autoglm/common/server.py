"""How a servicer in Ray Serve authenticates callers, and answers with errors that keep their details.

Serve passes on what was *set* on the context before the handler returns. An exception would lose the trailing metadata,
and google.rpc.Status with it.
"""

import asyncio
import hmac
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import grpc
from grpc_status import rpc_status

from autoglm.common.errors import ELLIPSIS, AuthenticationFailed, DeadlineExceeded, InternalError, MeshError, to_status
from autoglm.common.logs import omit_access_line
from autoglm.common.tracing import current_span, enter, request_span

logger = logging.getLogger("autoglm")

Description = TypeVar("Description")

TRACEBACK_CHARACTERS = 10_000


class Context(Protocol):
    """The part of ray.serve's RayServegRPCContext that an error needs."""

    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None: ...


class Caller(Context, Protocol):
    """The same with the metadata that the caller sent, as pairs of name and value, and the code that was set."""

    def invocation_metadata(self) -> Any: ...
    def code(self) -> Any: ...


def serve_tokens(setting: str) -> list[str]:
    """Return the tokens in AUTOGLM_SERVE_TOKEN: gateways send the first, services accept each, so that one can be
    replaced while both run."""
    return [token for each in setting.split(",") if (token := each.strip())]


def authenticate(context: Caller) -> bool:
    """Return whether the caller sent a token of AUTOGLM_SERVE_TOKEN, if that is set; if not, set the error."""
    setting = os.environ.get("AUTOGLM_SERVE_TOKEN")
    shown = dict(context.invocation_metadata()).get("authorization", "").encode()
    accepted = [hmac.compare_digest(shown, f"Bearer {token}".encode()) for token in serve_tokens(setting or "")]
    if not setting or any(accepted):
        return True
    fail(context, AuthenticationFailed("this service answers only callers that send its AUTOGLM_SERVE_TOKEN"))
    return False


@contextmanager
def served(context: Caller, method: str) -> Iterator[None]:
    """Trace a call of `method`, such as autoglm.v1.VisionService/Encode, in the block, and let the running task belong
    to its request."""
    headers = dict(context.invocation_metadata())
    attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": "OK"}
    with request_span(method, headers, attributes) as span:
        enter(str(headers.get("x-request-id", "-")), span)
        yield


def described(context: Caller, describe: Callable[[], Description], refused: Description) -> Description:
    """Return the response to a Describe: `refused`, with the error set, to a caller without the token. What others get
    has no line in the access log, as it is how gateways poll."""
    if not authenticate(context):
        return refused
    description = describe()
    omit_access_line()
    return description


def fail(context: Context, error: BaseException) -> None:
    """Set `error` on `context`; the handler then returns. Only unexpected errors are logged, with their traceback."""
    known = as_mesh_error(error)
    status = rpc_status.to_status(to_status(known))
    span = current_span()
    span.failed(known)
    span.set({"rpc.response.status_code": status.code.name})
    context.set_code(status.code)
    context.set_details(status.details)
    context.set_trailing_metadata(list(status.trailing_metadata))  # Serve adds a list to it


def as_mesh_error(error: BaseException) -> MeshError:
    """Return `error` as one that clients may see; an unexpected one is logged and becomes InternalError."""
    if isinstance(error, MeshError):
        return error
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return DeadlineExceeded("the deadline passed before the answer was complete; allow more time")
    logger.error("unexpected %s\n%s", type(error).__name__, _traceback(error))
    return InternalError("an internal error occurred; the service's log has it under this request's id")


def _traceback(error: BaseException) -> str:
    """Return the traceback of `error`, of bounded size: the text of an exception may quote what a client sent."""
    text = "".join(traceback.format_exception(error))
    if len(text) <= TRACEBACK_CHARACTERS:
        return text
    half = TRACEBACK_CHARACTERS // 2
    return f"{text[:half]}{ELLIPSIS}{text[-half:]}"

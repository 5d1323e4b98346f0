"""One call over as many tries as it takes: what to send, until when, and whether to ask again. Knows no I/O.

Asking changes nothing in the mesh, so every call may be repeated. It is when the mesh says when (RetryInfo) or when
the connection fails, as long as the deadline allows and no step of a stream has come. An error without RetryInfo is
final. As google.rpc asks, the told wait doubles with each try. A mesh that no longer knows the media that a hash names
gets the bytes, at once.
"""

import random
import time
import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from autoglm.common.errors import (
    DeadlineExceeded,
    InternalError,
    MediaUnknown,
    MeshError,
    RequestTooLarge,
    UpstreamUnavailable,
    from_status,
)

RECONNECT_SECONDS = 0.5
JITTER = 0.25  # of the told wait, added at random so that those who were refused together do not come back together

Request = TypeVar("Request", bound=Message)


class RetryingCall(Generic[Request]):
    """A request on its way. `build` makes it: its argument says whether every medium is to go as bytes."""

    def __init__(self, build: Callable[[bool], Request], key: str | None, timeout: float, retries: int) -> None:
        self._build, self._key, self._retries = build, key, retries
        self._whole, self._failures = False, 0
        self._deadline = time.monotonic() + timeout
        self._request_id = uuid.uuid4().hex
        self.request = build(False)

    def options(self) -> dict[str, Any]:
        """Return what gRPC is told for the next try."""
        metadata = [("x-request-id", self._request_id)]
        if self._key is not None:
            metadata.append(("authorization", f"Bearer {self._key}"))
        return {"timeout": self._remaining(), "metadata": tuple(metadata)}

    def failed(self, failure: grpc.RpcError, begun: bool = False) -> float:
        """Return the seconds to wait before the next try; raises the MeshError when there is to be none."""
        error = to_error(failure)
        error.request_id = self._request_id
        if begun:
            raise error from failure
        if isinstance(error, MediaUnknown) and not self._whole:
            self._whole, self.request = True, self._build(True)
            return 0.0
        if error.retry_after is None or self._failures == self._retries:
            raise error from failure
        wait = error.retry_after * 2.0**self._failures * (1 + JITTER * random.random())
        if wait >= self._remaining():
            raise error from failure
        self._failures += 1
        return wait

    def _remaining(self) -> float:
        return self._deadline - time.monotonic()


def to_error(failure: grpc.RpcError) -> MeshError:
    """Return what the mesh said, or what gRPC says when the mesh said nothing."""
    call = cast(grpc.Call, failure)
    status = rpc_status.from_call(call)
    if status is not None:
        return from_status(status)
    details = call.details() or call.code().name
    match call.code():
        case grpc.StatusCode.UNAVAILABLE:
            return UpstreamUnavailable(f"the mesh cannot be reached: {details}", retry_after=RECONNECT_SECONDS)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("the deadline passed before the answer was complete; allow more time")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:  # gRPC's own word for a message beyond the server's limit
            return RequestTooLarge(f"the request is too large: {details}")
    return InternalError(details)

"""A call and its retries: what is sent, until when, and whether another try makes sense. Does no I/O.

Calls change nothing in the mesh, so all of them may be retried. A call is retried if its error has a RetryInfo or if
the connection fails, while the deadline allows it and before the first message of a stream. An error without RetryInfo
is final. As google.rpc specifies, the delay of RetryInfo doubles with each try. If the mesh no longer knows the media
of a hash, the call is repeated at once with the bytes.
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
JITTER = 0.25  # share of the delay that is added at random, so that clients refused together do not return together

Request = TypeVar("Request", bound=Message)


class RetryingCall(Generic[Request]):
    """A request until its answer. `build` makes it; its argument says whether all media are sent as bytes."""

    def __init__(self, build: Callable[[bool], Request], key: str | None, timeout: float, retries: int) -> None:
        self._build, self._key, self._retries = build, key, retries
        self._whole, self._failures = False, 0
        self._deadline = time.monotonic() + timeout
        self._request_id = uuid.uuid4().hex
        self.request = build(False)

    def options(self) -> dict[str, Any]:
        """Return the gRPC options of the next try: timeout in seconds, and metadata."""
        metadata = [("x-request-id", self._request_id)]
        if self._key is not None:
            metadata.append(("authorization", f"Bearer {self._key}"))
        return {"timeout": self._remaining(), "metadata": tuple(metadata)}

    def failed(self, failure: grpc.RpcError, begun: bool = False) -> float:
        """Return the seconds to wait before the next try; raises the MeshError if there is none."""
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
    """Return the error that the mesh sent, or else the one that gRPC reports."""
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
        case grpc.StatusCode.RESOURCE_EXHAUSTED:  # gRPC's own code for a message that exceeds the server's limit
            return RequestTooLarge(f"the request is too large: {details}")
    return InternalError(details)

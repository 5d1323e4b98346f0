"""Every error a client can see, as one tree; each class is one stable code.

    MeshError
    ├── InvalidRequest        invalid_request_error   400  INVALID_ARGUMENT
    ├── AuthenticationFailed  authentication_error    401  UNAUTHENTICATED
    ├── PermissionDenied      permission_error        403  PERMISSION_DENIED
    ├── NotFound              not_found               404  NOT_FOUND
    ├── MediaUnknown          media_unknown           404  NOT_FOUND
    ├── RequestTooLarge       request_too_large       413  INVALID_ARGUMENT
    ├── UnsupportedMedia      unsupported_media       415  INVALID_ARGUMENT
    ├── RateLimited           rate_limit_exceeded     429  RESOURCE_EXHAUSTED
    ├── ModalityUnavailable   modality_unavailable    503  UNAVAILABLE
    ├── UpstreamUnavailable   upstream_unavailable    503  UNAVAILABLE
    ├── DeadlineExceeded      deadline_exceeded       504  DEADLINE_EXCEEDED
    └── InternalError         internal                500  INTERNAL

Over gRPC an error is a google.rpc.Status with ErrorInfo (reason = the code in upper case), with
BadRequest if a field caused it, and with RetryInfo if trying again can help.
"""

from typing import ClassVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "autoglm.v1"
RETRY_SECONDS = 2.0  # until a part that is down may be back


class MeshError(Exception):
    """An error with a stable code.

    `param` is the path of the request field that caused it, if there is one; `retry_after` the seconds after which
    trying again can help; `request_id` the id of the request, in the log and at the client.
    """

    code: ClassVar[str]
    http_status: ClassVar[int]
    grpc_code: ClassVar[int]
    default_retry_after: ClassVar[float | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.request_id: str | None = None

    def at(self, param: str) -> "MeshError":
        """Return the same error with `param` as the field that caused it."""
        return type(self)(self.message, param=param, retry_after=self.retry_after)


class InvalidRequest(MeshError):
    """The request is malformed, or a value is out of range."""

    code, http_status, grpc_code = "invalid_request_error", 400, code_pb2.INVALID_ARGUMENT


class AuthenticationFailed(MeshError):
    """The key is missing or wrong."""

    code, http_status, grpc_code = "authentication_error", 401, code_pb2.UNAUTHENTICATED


class PermissionDenied(MeshError):
    """The key is valid but is not allowed to do this."""

    code, http_status, grpc_code = "permission_error", 403, code_pb2.PERMISSION_DENIED


class NotFound(MeshError):
    """The model or route does not exist."""

    code, http_status, grpc_code = "not_found", 404, code_pb2.NOT_FOUND


class MediaUnknown(MeshError):
    """The cache has no embedding of the media that a hash names; the bytes must be sent."""

    code, http_status, grpc_code = "media_unknown", 404, code_pb2.NOT_FOUND


class RequestTooLarge(MeshError):
    """A body, an image or a recording exceeds a limit."""

    code, http_status, grpc_code = "request_too_large", 413, code_pb2.INVALID_ARGUMENT


class UnsupportedMedia(MeshError):
    """The bytes are not in a format that the mesh can read."""

    code, http_status, grpc_code = "unsupported_media", 415, code_pb2.INVALID_ARGUMENT


class RateLimited(MeshError):
    """The mesh is overloaded (load shedding), or the caller is over its rate limit or quota."""

    code, http_status, grpc_code = "rate_limit_exceeded", 429, code_pb2.RESOURCE_EXHAUSTED
    default_retry_after = 1.0


class ModalityUnavailable(MeshError):
    """The encoder of this modality is down; without `retry_after`, the bundle has none."""

    code, http_status, grpc_code = "modality_unavailable", 503, code_pb2.UNAVAILABLE


class UpstreamUnavailable(MeshError):
    """A service of the mesh does not answer."""

    code, http_status, grpc_code = "upstream_unavailable", 503, code_pb2.UNAVAILABLE
    default_retry_after = RETRY_SECONDS


class DeadlineExceeded(MeshError):
    """The caller's deadline passed."""

    code, http_status, grpc_code = "deadline_exceeded", 504, code_pb2.DEADLINE_EXCEEDED


class InternalError(MeshError):
    """An error in the mesh; the log has it under the request's id."""

    code, http_status, grpc_code = "internal", 500, code_pb2.INTERNAL


BY_REASON: dict[str, type[MeshError]] = {kind.code.upper(): kind for kind in MeshError.__subclasses__()}

_BY_GRPC_CODE: dict[grpc.StatusCode, type[MeshError]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimited,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: UpstreamUnavailable,
    grpc.StatusCode.NOT_FOUND: UpstreamUnavailable,
}


def to_status(error: MeshError) -> status_pb2.Status:
    """Return `error` as a google.rpc.Status with its details."""
    status = status_pb2.Status(code=error.grpc_code, message=error.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=DOMAIN))
    if error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=error.message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_rpc_error(error: grpc.RpcError) -> MeshError:
    """Return the error that another process of the mesh sent, by its ErrorInfo, else by its code."""
    call = cast(grpc.Call, error)  # which every error that a stub raises is
    status = rpc_status.from_call(call)
    if status is not None:
        return from_status(status)
    kind = _BY_GRPC_CODE.get(call.code(), InternalError)
    return kind(call.details() or f"a service failed with {call.code().name}")


def from_status(status: status_pb2.Status) -> MeshError:
    """Return the MeshError that `to_status` made `status` from; InternalError for a status without ErrorInfo."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad, retry):
            detail.Unpack(message)
    kind = BY_REASON.get(info.reason, InternalError)
    param = bad.field_violations[0].field if bad.field_violations else None
    delay = retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None
    return kind(status.message, param=param, retry_after=delay)

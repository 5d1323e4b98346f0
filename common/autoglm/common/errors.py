"""Every error a client can see, as one tree; each class is one stable type.

    MeshError
    ├── InvalidRequest        invalid_request_error   400  INVALID_ARGUMENT
    ├── AuthenticationFailed  authentication_error    401  UNAUTHENTICATED
    ├── PermissionDenied      permission_error        403  PERMISSION_DENIED
    ├── NotFound              not_found               404  NOT_FOUND
    │   └── MethodNotFound    not_found               404  UNIMPLEMENTED
    ├── MediaUnknown          media_unknown           404  NOT_FOUND
    ├── RequestTooLarge       request_too_large       413  INVALID_ARGUMENT
    ├── UnsupportedMedia      unsupported_media       415  INVALID_ARGUMENT
    ├── RateLimited           rate_limit_exceeded     429  RESOURCE_EXHAUSTED
    ├── ModalityUnavailable   modality_unavailable    503  UNAVAILABLE
    ├── UpstreamUnavailable   upstream_unavailable    503  UNAVAILABLE
    ├── DeadlineExceeded      deadline_exceeded       504  DEADLINE_EXCEEDED
    └── InternalError         internal                500  INTERNAL

Where programs act on more than the type, an error also has one of OpenAI's codes, such as context_length_exceeded; the
code of any other error is its type.

Over gRPC an error is a google.rpc.Status with ErrorInfo (reason = the type in upper case, metadata `code` = the code),
with BadRequest if a field caused it, and with RetryInfo if trying again can help.

Messages and fields quote what clients sent. Both become headers and lines of logs, so each is one line of bounded size:
a status with both stays under 8 kB of trailers in any encoding. gRPC's peers refuse more, and proxies close the
connection for it, with everyone's calls on it.
"""

import re
from typing import ClassVar, Literal, cast, get_args

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "autoglm.v1"
RETRY_SECONDS = 2.0  # until a part that is down may be back
MESSAGE_BYTES, PARAM_BYTES = 1000, 200  # of UTF-8
ELLIPSIS = "…"
# Control characters, line breaks, changes of the writing direction, and surrogates, which UTF-8 has no bytes for.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Code = Literal[
    "array_above_max_length",
    "context_length_exceeded",
    "image_too_large",
    "invalid_api_key",
    "invalid_image_format",
    "invalid_image_url",
    "model_not_found",
    "object_above_max_properties",
    "string_above_max_length",
    "unsupported_parameter",
    "unsupported_value",
]
CODES: tuple[Code, ...] = get_args(Code)


def bounded(text: str, limit: int) -> str:
    """Return `text` as one printable line of at most `limit` bytes; what is too much is left out of its middle, since
    messages end with what to do."""
    if len(text) > 2 * limit:  # so that a text of megabytes costs no more than a short one
        text = text[:limit] + text[-limit:]
    data = _UNPRINTABLE.sub(" ", text).encode()
    if len(data) <= limit:
        return data.decode()
    tail = limit // 4
    head = limit - tail - len(ELLIPSIS.encode())
    return data[:head].decode(errors="ignore") + ELLIPSIS + data[-tail:].decode(errors="ignore")


class MeshError(Exception):
    """An error with a stable type.

    `message` and `param` are made printable and cut to MESSAGE_BYTES and PARAM_BYTES. `code` is finer than the type
    where programs act on it. `param` is the path of the request field that caused the error, if there is one;
    `retry_after` the seconds after which trying again can help; `request_id` the id of the request, in the log and at
    the client.
    """

    type: ClassVar[str]
    http_status: ClassVar[int]
    grpc_code: ClassVar[int]
    default_code: ClassVar[Code | None] = None
    default_retry_after: ClassVar[float | None] = None

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None, code: Code | None = None
    ) -> None:
        self.message = bounded(message, MESSAGE_BYTES)
        super().__init__(self.message)
        self.param = None if param is None else bounded(param, PARAM_BYTES)
        self._code = code or self.default_code
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.request_id: str | None = None

    @property
    def code(self) -> str:
        """The code that programs act on: one of CODES, or else the type."""
        return self._code or self.type

    def at(self, param: str) -> "MeshError":
        """Return the same error with `param` as the field that caused it."""
        return self.__class__(self.message, param=param, retry_after=self.retry_after, code=self._code)


class InvalidRequest(MeshError):
    """The request is malformed, or a value is out of range."""

    type, http_status, grpc_code = "invalid_request_error", 400, code_pb2.INVALID_ARGUMENT


class AuthenticationFailed(MeshError):
    """The key is missing or wrong."""

    type, http_status, grpc_code = "authentication_error", 401, code_pb2.UNAUTHENTICATED
    default_code = "invalid_api_key"


class PermissionDenied(MeshError):
    """The key is valid but is not allowed to do this."""

    type, http_status, grpc_code = "permission_error", 403, code_pb2.PERMISSION_DENIED


class NotFound(MeshError):
    """The model or route does not exist."""

    type, http_status, grpc_code = "not_found", 404, code_pb2.NOT_FOUND


class MethodNotFound(NotFound):
    """The gRPC method does not exist."""

    grpc_code = code_pb2.UNIMPLEMENTED  # by which clients fall back to an older version of a service


class MediaUnknown(MeshError):
    """The cache has no embedding of the media that a hash names; the bytes must be sent."""

    type, http_status, grpc_code = "media_unknown", 404, code_pb2.NOT_FOUND


class RequestTooLarge(MeshError):
    """A body, an image or a recording exceeds a limit."""

    type, http_status, grpc_code = "request_too_large", 413, code_pb2.INVALID_ARGUMENT


class UnsupportedMedia(MeshError):
    """The bytes are not in a format that the mesh can read."""

    type, http_status, grpc_code = "unsupported_media", 415, code_pb2.INVALID_ARGUMENT


class RateLimited(MeshError):
    """The mesh is overloaded (load shedding), or the caller is over its rate limit or quota."""

    type, http_status, grpc_code = "rate_limit_exceeded", 429, code_pb2.RESOURCE_EXHAUSTED
    default_retry_after = 1.0


class ModalityUnavailable(MeshError):
    """The encoder of this modality is down; without `retry_after`, the bundle has none."""

    type, http_status, grpc_code = "modality_unavailable", 503, code_pb2.UNAVAILABLE


class UpstreamUnavailable(MeshError):
    """A service of the mesh does not answer."""

    type, http_status, grpc_code = "upstream_unavailable", 503, code_pb2.UNAVAILABLE
    default_retry_after = RETRY_SECONDS


class DeadlineExceeded(MeshError):
    """The caller's deadline passed."""

    type, http_status, grpc_code = "deadline_exceeded", 504, code_pb2.DEADLINE_EXCEEDED


class InternalError(MeshError):
    """An error in the mesh; the log has it under the request's id."""

    type, http_status, grpc_code = "internal", 500, code_pb2.INTERNAL


BY_REASON: dict[str, type[MeshError]] = {kind.type.upper(): kind for kind in MeshError.__subclasses__()}

_BY_GRPC_CODE: dict[grpc.StatusCode, type[MeshError]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimited,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: UpstreamUnavailable,
    grpc.StatusCode.NOT_FOUND: UpstreamUnavailable,
}


def to_status(error: MeshError) -> status_pb2.Status:
    """Return `error` as a google.rpc.Status with its details."""
    status = status_pb2.Status(code=error.grpc_code, message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.type.upper(), domain=DOMAIN, metadata={"code": error.code})
    status.details.add().Pack(info)
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
    code = next((code for code in CODES if code == info.metadata.get("code")), None)
    return kind(status.message, param=param, retry_after=delay, code=code)

"""Who asks, until when, and what the log line will say: the state of one request on its way through the gateway."""

import re
import time
import uuid
from dataclasses import dataclass, field

from autoglm.common.deadlines import Deadline

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SAMPLED = 1  # among the flags of a traceparent
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who shares a cache and limits. `id` is a hash that tells tenants apart; `name` is for the log; a limit of 0 means
    no limit."""

    name: str = "-"
    id: str = ""
    requests_per_minute: int = 0
    max_concurrent_requests: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """A tenant's rate limit: requests per minute, how many are left, and the seconds until one more is available."""

    limit: int
    remaining: int
    reset: float


@dataclass(slots=True)
class RequestContext:
    """One request: its id, deadline, tenant, and what its log line reports."""

    request_id: str
    deadline: Deadline = field(default_factory=Deadline)
    tenant: Tenant = Tenant()
    allowance: Allowance | None = None
    traceparent: str | None = None
    started: float = field(default_factory=time.monotonic)
    received: int = 0
    media: list[str] = field(default_factory=list)
    failed: int | None = None  # the HTTP status of what ended an answer after it began

    @property
    def trace_id(self) -> str | None:
        """The id of the trace that the request belongs to, if that is recorded."""
        if self.traceparent is None:
            return None
        _, trace_id, _, flags = self.traceparent.split("-")
        return trace_id if int(flags, 16) & _SAMPLED else None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The gRPC metadata that follows the request into the services."""
        trace = () if self.traceparent is None else (("traceparent", self.traceparent),)
        return (("x-request-id", self.request_id), *trace)


def new_context(request_id: str | None, traceparent: str | None) -> RequestContext:
    """Return the context of a new request. It keeps the client's id if that is usable, and makes one otherwise."""
    usable = request_id is not None and _REQUEST_ID.fullmatch(request_id)
    traced = traceparent is not None and _TRACEPARENT.fullmatch(traceparent)
    return RequestContext(
        request_id=request_id if request_id is not None and usable else uuid.uuid4().hex,
        traceparent=traceparent if traced else None,
    )

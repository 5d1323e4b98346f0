"""Who asks, until when, and what the log line will say: the state of one request on its way through the gateway."""

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from autoglm.common.deadlines import Deadline
from autoglm.common.tracing import CONTEXT_NAMES, NO_SPAN, Attributes, Span, enter, request_span

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SAMPLED = 1  # among the flags of a traceparent
_TRACE_CONTEXT = {  # by name
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[ -~]{1,512}"),
}


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
    """One request: its id, deadline, tenant, span, the model that answers, and what its log line reports. `trace` is
    its client's W3C context, which is passed on while this gateway traces nothing itself."""

    request_id: str
    deadline: Deadline = field(default_factory=Deadline)
    tenant: Tenant = Tenant()
    allowance: Allowance | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    span: Span = NO_SPAN
    model: str = ""
    started: float = field(default_factory=time.monotonic)
    received: int = 0
    media: list[str] = field(default_factory=list)
    failed: int | None = None  # the HTTP status of what ended an answer after it began

    @property
    def trace_id(self) -> str | None:
        """The id of the trace that the request belongs to, if that is recorded, here or by its client."""
        if self.span.is_recorded:
            return self.span.trace_id
        if (traceparent := self.trace.get("traceparent")) is None:
            return None
        _, trace_id, _, flags = traceparent.split("-")
        return trace_id if int(flags, 16) & _SAMPLED else None

    def answered_by(self, operation: str, model: str) -> None:
        """Record what is done, in a word of OpenTelemetry's, and the name of the model, if one has a name."""
        self.model = model
        self.span.set({"gen_ai.operation.name": operation} | ({"gen_ai.request.model": model} if model else {}))

    def end_span(self) -> None:
        """End the request's span, with what both servers know of it."""
        self.span.set({"autoglm.request_id": self.request_id, "autoglm.tenant": self.tenant.name})
        self.span.end()

    def metadata(self, span: Span) -> tuple[tuple[str, str], ...]:
        """Return the gRPC metadata that follows the request into a service, which continues its trace below `span`.

        The request's id is there twice: as our services read it, and as Ray Serve does for its own log.
        """
        ids = (("x-request-id", self.request_id), ("request_id", self.request_id))
        return (*ids, *(span.metadata() or self.trace.items()))


def new_context(
    headers: Mapping[str, str], span_name: str | None, attributes: Attributes | None = None
) -> RequestContext:
    """Return the context of a new request, and let the running task belong to it.

    It keeps the client's id if that is usable, and makes one otherwise. Its span continues the client's trace, and has
    a better name later; without `span_name` there is none.
    """
    given = headers.get("x-request-id", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    trace = _trace_context(headers)
    span = NO_SPAN if span_name is None else request_span(span_name, trace, attributes or {})
    enter(request_id, span)
    return RequestContext(request_id, trace=trace, span=span)


def _trace_context(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return what is usable of the W3C context that a client sent."""
    given = {name: headers.get(name, "") for name in CONTEXT_NAMES}
    usable = {name: value for name, value in given.items() if _TRACE_CONTEXT[name].fullmatch(value)}
    return usable if "traceparent" in usable else {}

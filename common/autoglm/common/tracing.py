"""Traces: OpenTelemetry spans of the stages of a request, made by hand, and which request the running code belongs to.

Off unless variables of OpenTelemetry turn it on (trace_variables.py). While it is off nothing of OpenTelemetry is
imported, and all spans are one object whose methods do nothing.

A stage gets its parent's span as an argument, because stages run in tasks and generators of their own. Only the
request's own span is also in a context variable, for the log and for the exemplars of metrics. Attributes are sizes,
counts, names and hashes: never what a client sent or an answer says.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from autoglm.common.errors import MeshError
from autoglm.common.trace_variables import TraceConfig, trace_config

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span as OpenTelemetrySpan
    from opentelemetry.trace import Tracer

Attributes = Mapping[str, str | int | float | bool | Sequence[str]]
Kind = Literal["internal", "server", "client"]

FLUSH_SECONDS = 3.0  # for the last spans of a process that ends
CONTEXT_NAMES = ("traceparent", "tracestate")  # of W3C Trace Context, as headers and as metadata


class Span:
    """A span that is not recorded: what every span is while tracing is off. A block ends it, with the block's error."""

    __slots__ = ()

    @property
    def trace_id(self) -> str | None:
        """The id of its trace in hexadecimal; None while tracing is off."""
        return None

    @property
    def is_recorded(self) -> bool:
        """Whether anybody will see its attributes, which then are worth computing."""
        return False

    def child(
        self, name: str, attributes: Attributes | None = None, kind: Kind = "internal", at: float | None = None
    ) -> "Span":
        """Return a new span below this one, which starts now or `at` monotonic seconds."""
        return self

    def record(self, name: str, start: float, end: float, attributes: Attributes | None = None) -> None:
        """Add a span below this one for what ran between two monotonic times."""

    def rename(self, name: str) -> None:
        """Give the span the name that is known now."""

    def set(self, attributes: Attributes) -> None:
        """Set attributes."""

    def event(self, name: str, at: float | None = None) -> None:
        """Record that something happened, now or `at` monotonic seconds."""

    def failed(self, error: BaseException) -> None:
        """Record that what the span stands for failed. A server's span has no error status for what its client did."""

    def end(self, at: float | None = None) -> None:
        """End the span, now or `at` monotonic seconds."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the W3C context by which another process continues the trace below this span."""
        return ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.failed(error)
        self.end()


NO_SPAN = Span()


class _TracedSpan(Span):
    """A span of OpenTelemetry's, which is recorded if its trace is sampled."""

    __slots__ = ("_kind", "_span", "_tracer")

    def __init__(self, tracer: "Tracer", span: "OpenTelemetrySpan", kind: Kind) -> None:
        self._tracer, self._span, self._kind = tracer, span, kind

    @property
    def trace_id(self) -> str | None:
        return format(self._span.get_span_context().trace_id, "032x")

    @property
    def is_recorded(self) -> bool:
        return self._span.is_recording()

    def child(
        self, name: str, attributes: Attributes | None = None, kind: Kind = "internal", at: float | None = None
    ) -> Span:
        if not self.is_recorded:  # then its children are not, and one stands for all
            return self
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = set_span_in_context(self._span)
        span = self._tracer.start_span(name, parent, SpanKind[kind.upper()], attributes, start_time=_wall(at))
        return _TracedSpan(self._tracer, span, kind)

    def record(self, name: str, start: float, end: float, attributes: Attributes | None = None) -> None:
        if self.is_recorded:
            self.child(name, attributes, at=start).end(end)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, at: float | None = None) -> None:
        self._span.add_event(name, timestamp=_wall(at))

    def failed(self, error: BaseException) -> None:
        if not self.is_recorded:
            return
        from opentelemetry.trace import StatusCode

        if not isinstance(error, Exception):  # cancelled: whoever asked has left, or a sibling failed
            self._span.set_attribute("autoglm.cancelled", True)
            return
        kind = error.type if isinstance(error, MeshError) else type(error).__name__
        self._span.set_attribute("error.type", kind)
        if self._kind != "server" or not isinstance(error, MeshError) or error.http_status >= 500:
            self._span.set_status(StatusCode.ERROR, kind)  # without the message, which may quote the client

    def end(self, at: float | None = None) -> None:
        if self.is_recorded:
            self._span.end(_wall(at))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._span))
        return tuple(carrier.items())


def _wall(monotonic: float | None) -> int | None:
    """Return monotonic seconds as nanoseconds since 1970."""
    if monotonic is None:
        return None
    ago = time.monotonic() - monotonic  # read first, so that no child begins before its parent
    return time.time_ns() - round(ago * 1e9)


# --- the request that the running code belongs to -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestIds:
    """By what a request is found again: the id that its client knows, and that of its trace, if it has one."""

    request_id: str
    trace_id: str | None = None


_ids: ContextVar[RequestIds | None] = ContextVar("autoglm_request_ids", default=None)
_span: ContextVar[Span] = ContextVar("autoglm_request_span", default=NO_SPAN)


def enter(request_id: str, span: Span) -> None:
    """Let the running task belong to a request. Each request has a task of its own, so nothing leaves it."""
    _ids.set(RequestIds(request_id, span.trace_id))
    _span.set(span)


def current() -> RequestIds | None:
    """Return the ids of the request that the running code belongs to."""
    return _ids.get()


@contextmanager
def belonging_to(ids: RequestIds | None) -> Iterator[None]:
    """Let what a thread does in the block belong to a request."""
    token = _ids.set(ids)
    try:
        yield
    finally:
        _ids.reset(token)


def current_span() -> Span:
    """Return the span of the request that the running code belongs to."""
    return _span.get()


def request_span(name: str, carrier: Mapping[str, str], attributes: Attributes) -> Span:
    """Start the span of a request that a server has received, below the one of its W3C context in `carrier`, if any."""
    if _tracer is None:
        return NO_SPAN
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(carrier, Context())
    return _TracedSpan(_tracer, _tracer.start_span(name, parent, SpanKind.SERVER, attributes), "server")


# --- on and off -------------------------------------------------------------------------------------------

_tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None


def start(component: str) -> None:
    """Trace from now on, if the environment asks for it, as the service autoglm-`component` unless it names another.

    The environment has been reviewed (environment.py), so that there is no fault left in it.
    """
    global _tracer, _provider
    config = trace_config(os.environ)
    if not config.exporters:
        return
    from opentelemetry.sdk.trace import TracerProvider

    _provider = TracerProvider(resource=_resource(component), shutdown_on_exit=False)
    for name in config.exporters:
        _provider.add_span_processor(_processor(name, config))
    _tracer = _provider.get_tracer("autoglm", version("autoglm-mesh"))


def _resource(component: str) -> "Resource":
    from opentelemetry.sdk.resources import Resource

    named = Resource.create().attributes.get("service.name", "")
    known = {"service.version": version("autoglm-mesh"), "autoglm.component": component}
    if str(named).startswith("unknown_service"):
        known["service.name"] = f"autoglm-{component}"
    return Resource.create(known)


def _processor(name: str, config: TraceConfig) -> "SpanProcessor":
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    if name == "console":
        return BatchSpanProcessor(ConsoleSpanExporter())
    if config.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

        return BatchSpanProcessor(grpc_exporter.OTLPSpanExporter())
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_exporter

    return BatchSpanProcessor(http_exporter.OTLPSpanExporter())


def stop() -> None:
    """Send what is left, but wait no longer than FLUSH_SECONDS for a collector that does not answer."""
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is not None:
        sending = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)

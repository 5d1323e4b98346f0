"""A receiver of traces, as a collector is: OTLP over gRPC, on a real socket."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1 import trace_pb2

from autoglm.common import tracing


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it arrived."""

    service: str
    span: trace_pb2.Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace(self) -> str:
        return self.span.trace_id.hex()

    @property
    def kind(self) -> str:
        return trace_pb2.Span.SpanKind.Name(self.span.kind).removeprefix("SPAN_KIND_").lower()

    @property
    def status(self) -> str:
        """`unset`, `ok`, or `error: ` and its description."""
        code = trace_pb2.Status.StatusCode.Name(self.span.status.code).removeprefix("STATUS_CODE_").lower()
        return f"{code}: {self.span.status.message}" if self.span.status.message else code

    @property
    def attributes(self) -> Mapping[str, Any]:
        return {each.key: _plain(each.value) for each in self.span.attributes}

    @property
    def events(self) -> Sequence[str]:
        return [event.name for event in self.span.events]

    def is_around(self, other: "ReceivedSpan") -> bool:
        """Return whether `other` ran while this one did."""
        mine, theirs = self.span, other.span
        begun = mine.start_time_unix_nano <= theirs.start_time_unix_nano
        return begun and theirs.end_time_unix_nano <= mine.end_time_unix_nano

    @property
    def milliseconds(self) -> float:
        return (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1e6


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@dataclass
class Receiver(TraceServiceServicer):
    """Keeps the spans that arrive."""

    spans: list[ReceivedSpan] = field(default_factory=list)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = next(
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            )
            self.spans += [ReceivedSpan(service, span) for scope in resource.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()

    def of(self, trace: str) -> Sequence[ReceivedSpan]:
        """Return the spans of a trace, by their start."""
        return sorted(
            (each for each in list(self.spans) if each.trace == trace), key=lambda s: s.span.start_time_unix_nano
        )

    def tree(self, trace: str) -> list[str]:
        """Return a line for each span of a trace: its service and name, indented below its parent."""
        return [f"{'  ' * depth}{each.service}: {each.name}" for depth, each in self.nested(trace)]

    def nested(self, trace: str) -> list[tuple[int, ReceivedSpan]]:
        """Return the spans of a trace below one another, each with its depth."""
        spans = self.of(trace)
        known = {each.span.span_id for each in spans}

        def below(parent: bytes, depth: int) -> Iterator[tuple[int, ReceivedSpan]]:
            for each in spans:
                if each.span.parent_span_id == parent or (depth == 0 and each.span.parent_span_id not in known):
                    yield depth, each
                    yield from below(each.span.span_id, depth + 1)

        return list(below(b"", 0))


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive traces in the block."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield receiver
    finally:
        stopped: threading.Event = server.stop(0)
        stopped.wait()


@contextmanager
def traced(component: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Trace this process in the block, as a component of the mesh, and receive what it sends at once."""
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        tracing.start(component)
        try:
            yield receiver
        finally:
            tracing.stop()

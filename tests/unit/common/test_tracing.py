"""What turns tracing on, where spans go, and what they say of the process that they come from."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from autoglm.common import tracing

from ...otlp import traced
from ...waiting import eventually

OFF = """
import sys
from autoglm.common import tracing
tracing.start("gateway")
with tracing.request_span("x", {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, {}) as span:
    with span.child("y") as child:
        child.event("z")
print(span is tracing.NO_SPAN, span.metadata(), span.trace_id, "opentelemetry" in sys.modules)
"""


def test_while_it_is_off_nothing_of_opentelemetry_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run([sys.executable, "-c", OFF], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "True () None False\n"


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "autoglm-vision"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=phones,team=x"}, "phones"),
    ],
)
def test_a_service_has_the_name_of_its_component_or_its_own(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with traced("vision", monkeypatch) as receiver:
        tracing.request_span("x", {}, {}).end()
        eventually(lambda: receiver.spans, "the span arrives")
    assert receiver.spans[0].service == name


class Collector(BaseHTTPRequestHandler):
    """A collector that speaks OTLP over HTTP."""

    received: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        type(self).received.append(ExportTraceServiceRequest.FromString(data))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def collector() -> Iterator[int]:
    """Its port."""
    Collector.received = []
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_spans_go_over_http_too(monkeypatch: pytest.MonkeyPatch, collector: int) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector}")
    tracing.start("gateway")
    tracing.request_span("x", {}, {}).end()
    tracing.stop()  # which sends it
    eventually(lambda: Collector.received, "the span arrives")
    assert Collector.received[0].resource_spans[0].scope_spans[0].spans[0].name == "x"

"""Routes for monitoring: liveness, readiness and metrics. They need no key."""

import asyncio
from collections.abc import Iterable
from typing import Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from autoglm.gateway.backend import Backend
from autoglm.gateway.metrics import GatewayMetrics, content_type
from autoglm.gateway.openai import openapi
from autoglm.gateway.openai.errors import JsonResponse


class Liveness(BaseModel):
    """The process runs."""

    status: Literal["live"]


class Readiness(BaseModel):
    """Whether text requests can be answered, and the state of each dependency."""

    status: Literal["ready", "unavailable"]
    dependencies: dict[str, Literal["up", "idle", "down", "off"]]


ANSWERS = (Liveness, Readiness)
_LIVE = {"application/json": Liveness}
_READY = {"application/json": Readiness}
_METRICS = {"text/plain": openapi.TEXT, "application/openmetrics-text": openapi.TEXT}


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Serve health and metrics."""
    scrapes = Scrapes(backend.metrics)

    @app.get("/health/live", **openapi.watching({200: _LIVE}))
    async def live() -> JsonResponse:
        """Tell that the process runs."""
        return JsonResponse({"status": "live"})

    @app.get("/health/ready", **openapi.watching({200: _READY, 503: _READY}))
    async def ready() -> JsonResponse:
        """Tell whether text requests can be answered, and the state of each dependency."""
        state = backend.state
        status, code = ("ready", 200) if state.ready else ("unavailable", 503)
        return JsonResponse({"status": status, "dependencies": state.report()}, code)

    @app.get("/metrics", **openapi.watching({200: _METRICS}), response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Return the metrics in Prometheus' text format, or as OpenMetrics if `Accept` has it."""
        as_openmetrics = accepts_openmetrics(request.headers.getlist("accept"))
        text = await scrapes.text(as_openmetrics)
        return Response(text, headers={"content-type": content_type(as_openmetrics)})


class Scrapes:
    """Renders metrics in a thread, for everyone who asks while an earlier text is made at once: who scrapes too often
    keeps one thread busy, and not the event loop."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics, self._lock = metrics, asyncio.Lock()
        self._next: dict[bool, asyncio.Task[bytes]] = {}

    async def text(self, as_openmetrics: bool) -> bytes:
        """Return what the metrics are after this call."""
        if as_openmetrics not in self._next:
            self._next[as_openmetrics] = asyncio.create_task(self._render(as_openmetrics))
        return await asyncio.shield(self._next[as_openmetrics])

    async def _render(self, as_openmetrics: bool) -> bytes:
        async with self._lock:
            del self._next[as_openmetrics]  # from here on it may be too late for what has just happened
            return await asyncio.to_thread(self._metrics.render, as_openmetrics)


def accepts_openmetrics(accept: Iterable[str]) -> bool:
    """Return whether headers `accept` name the format of OpenMetrics."""
    ranges = [each.partition(";")[0].strip().lower() for header in accept for each in header.split(",")]
    return "application/openmetrics-text" in ranges

"""Routes for monitoring: liveness, readiness and metrics. They need no key."""

from typing import Literal

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from autoglm.gateway.backend import Backend
from autoglm.gateway.openai import openapi
from autoglm.gateway.openai.errors import JsonResponse


class Liveness(BaseModel):
    """The process runs."""

    status: Literal["live"]


class Readiness(BaseModel):
    """Whether text requests can be answered, and the state of each dependency."""

    status: Literal["ready", "unavailable"]
    dependencies: dict[str, Literal["up", "down", "off"]]


ANSWERS = (Liveness, Readiness)
_LIVE = {"application/json": Liveness}
_READY = {"application/json": Readiness}
_METRICS = {"text/plain": openapi.TEXT}


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Serve health and metrics."""

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
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(backend.metrics.render(), media_type=CONTENT_TYPE_LATEST)

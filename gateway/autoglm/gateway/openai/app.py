"""The HTTP server: OpenAI's API, models, health, metrics and the playground. Every error has OpenAI's error body."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoglm.common.errors import InvalidRequest, MeshError, NotFound
from autoglm.gateway.backend import Backend, log_request
from autoglm.gateway.context import Allowance, RequestContext, new_context
from autoglm.gateway.openai import chat, embeddings, models, openapi, operations, responses, transcriptions
from autoglm.gateway.openai.canonical_path import MODELS, CanonicalPath
from autoglm.gateway.openai.errors import JsonResponse, error_body, error_response
from autoglm.gateway.openai.exchange import Exchange
from autoglm.gateway.openai.page_origins import PageOrigins
from autoglm.gateway.openai.route import Route
from autoglm.gateway.openai.security_headers import add_security_headers

ROUTES: tuple[Route[Any], ...] = (chat.ROUTE, responses.ROUTE, embeddings.ROUTE, transcriptions.ROUTE)
QUIET = ("/health/", "/metrics", "/playground/")  # requested automatically and often, so logged at DEBUG
CLIENT_GONE = 499


def create_app(backend: Backend) -> FastAPI:
    """Return the application in front of `backend`."""
    app = FastAPIOffline(
        title="AutoGLM", description="An OpenAI-compatible API.", redoc_url=None, redirect_slashes=False
    )
    if backend.settings.is_open:
        app.add_middleware(PageOrigins, settings=backend.settings)
    app.add_middleware(RequestScope, backend=backend)
    add_security_headers(app, backend.settings)
    app.add_middleware(CanonicalPath, paths=(MODELS, *(route.path for route in ROUTES)))
    _add_errors(app, backend)
    for route in ROUTES:
        app.add_api_route(route.path, _endpoint(backend, route), methods=["POST"], **openapi.answering(route.spec))
    models.add_routes(app, backend)
    operations.add_routes(app, backend)
    _add_playground(app)
    openapi.complete(app, [route.spec for route in ROUTES], (*models.ANSWERS, *operations.ANSWERS))
    return app


def _endpoint(backend: Backend, route: Route[Any]) -> Callable[..., Any]:
    async def endpoint() -> Response:
        return Exchange(backend, route)

    return endpoint


def _add_errors(app: FastAPI, backend: Backend) -> None:
    @app.exception_handler(MeshError)
    async def mesh_error(_: Request, error: MeshError) -> Response:
        return error_response(backend.failed(error))

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:200]
        if error.status_code == 404:
            return error_response(backend.failed(NotFound(f"there is no route {path}")))
        known = backend.failed(InvalidRequest(f"{request.method} is not allowed on {path}"))
        allowed = (error.headers or {}).get("Allow", "GET").split(", ")
        methods = sorted({*allowed, "HEAD"} if "GET" in allowed else allowed)
        return JsonResponse(error_body(known), error.status_code, {"allow": ", ".join(methods)})


def _add_playground(app: FastAPI) -> None:
    files = PageFiles(directory=Path(__file__).parents[1] / "playground")
    app.mount("/playground", files)

    @app.get("/", include_in_schema=False)
    async def playground(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)


class PageFiles(StaticFiles):
    """The files of a page. Browsers ask each time whether they have changed, so that all have the same version."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or that it has not changed."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


class RequestScope:
    """Plain ASGI middleware: gives each request its context, its line in the access log, and a response to any
    failure. HEAD is answered like GET; the server sends no body then."""

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self._app, self._backend = app, backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        headers = Headers(scope=scope)
        quiet = scope["path"].startswith(QUIET)
        context = new_context(headers, None if quiet else scope["method"])
        scope.setdefault("state", {})["context"] = context
        routed = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        status, gone = CLIENT_GONE, False

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", context.request_id.encode()),
                    *_allowance_headers(context.allowance),
                ]
            await send(message)

        try:
            await self._app(routed, receive, send_with_id)
        except ClientDisconnect:
            gone = True
            context.span.set({"autoglm.cancelled": True})
        except Exception as error:
            known = self._backend.failed(error)
            if status != CLIENT_GONE:
                context.failed = known.http_status
            else:
                await error_response(known)(routed, receive, send_with_id)
        finally:
            route, ended = _template(routed), CLIENT_GONE if gone else context.failed or status
            self._backend.metrics.answered("http", route, str(ended))
            log_request(context, f"{scope['method']} {route}", ended, logging.DEBUG if quiet else logging.INFO)
            _end_span(context, scope["method"], route, status)


def _end_span(context: RequestContext, method: str, route: str, status: int) -> None:
    """End a request's span, with the attributes of OpenTelemetry's conventions for HTTP servers."""
    context.span.rename(f"{method} {route}")
    context.span.set({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    context.end_span()


def _allowance_headers(allowance: Allowance | None) -> list[tuple[bytes, bytes]]:
    """Return OpenAI's headers for a tenant's rate limit."""
    if allowance is None:
        return []
    return [
        (b"x-ratelimit-limit-requests", b"%d" % allowance.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % allowance.remaining),
        (b"x-ratelimit-reset-requests", b"%.3fs" % allowance.reset),
    ]


def _template(scope: Scope) -> str:
    """Return the route's template, so that no client text reaches the log."""
    return getattr(scope.get("route"), "path_format", "(no route)")

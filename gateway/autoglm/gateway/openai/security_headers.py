"""Security headers and CORS: which origins may read answers, and what a page may load."""

from fastapi import FastAPI, Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoglm.common.errors import PermissionDenied
from autoglm.gateway.openai.errors import JsonResponse, error_body
from autoglm.gateway.settings import Settings

# The headers that scripts of other origins may read, in addition to the body.
EXPOSED = (
    "retry-after",
    "server-timing",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-request-id",
)
ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# Pages load scripts and styles only from this server; what a user attaches is shown from memory.
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# FastAPI's page starts Swagger with an inline script; it contains nothing from a client.
DOCS_POLICY = PAGE_POLICY + "; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"


def add_security_headers(app: FastAPI, settings: Settings) -> None:
    """Add the security headers and, for the allowed origins, CORS."""
    app.add_middleware(SecurityHeaders)
    if settings.origins:
        app.add_middleware(
            Cors,
            allow_origins=settings.origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )


class Cors(CORSMiddleware):
    """CORS, with our errors."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer what a browser asks before a page's request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        reason = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        error = PermissionDenied(f"a page may not send this request: its {reason} is not allowed")
        headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return JsonResponse(error_body(error), error.http_status, headers)


class SecurityHeaders:
    """Plain ASGI middleware: adds the headers to every response, and the content security policy to pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_headers(scope["path"], message)]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _headers(path: str, start: Message) -> list[tuple[bytes, bytes]]:
    if not Headers(raw=start["headers"]).get("content-type", "").startswith("text/html"):
        return ALWAYS
    policy = DOCS_POLICY if path == "/docs" else PAGE_POLICY
    return [*ALWAYS, (b"content-security-policy", policy.encode())]

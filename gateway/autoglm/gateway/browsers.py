"""What browsers are told about the answers: who may read them, and what a page may load."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoglm.gateway.settings import Settings

# What scripts of other origins may read of an answer beside its body.
EXPOSED = (
    "retry-after",
    "server-timing",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-request-id",
)
ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# Pages take scripts and styles from here alone; what a user attaches is shown from memory.
PAGE_POLICY = (
    b"default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; "
    b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def protect(app: FastAPI, settings: Settings) -> None:
    """Add the headers of security and, for the origins of the settings, those of CORS."""
    app.add_middleware(SecurityHeaders)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )


class SecurityHeaders:
    """Plain ASGI middleware: adds the headers to every answer, and the policy to pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_headers(message)]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _headers(start: Message) -> list[tuple[bytes, bytes]]:
    page = any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in start["headers"])
    return [*ALWAYS, (b"content-security-policy", PAGE_POLICY)] if page else ALWAYS

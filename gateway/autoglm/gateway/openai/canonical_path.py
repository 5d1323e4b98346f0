"""The forms of a path that clients get from their base URL, as the one that is routed."""

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

VERSION = "/v1"
MODELS = f"{VERSION}/models"
_SLASHES = re.compile("/{2,}")


class CanonicalPath:
    """Plain ASGI middleware: routes a path with a slash at its end, with double slashes, or without /v1 like the one
    without them.

    A redirect would cost the client its request body or its key, and behind a proxy with TLS it would lead to http://.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        """Take the paths of the API, which begin with /v1."""
        self._app, self._paths = app, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        path = _SLASHES.sub("/", scope["path"]).rstrip("/") or "/"
        versioned = VERSION + path
        if versioned in self._paths or versioned.startswith(f"{MODELS}/"):
            path = versioned
        await self._app({**scope, "path": path}, receive, send)
